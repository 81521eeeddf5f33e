"""What of the LLM is trained: LoRA changes only LoRA, merged it computes the same; checkpoints hold it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Launcher
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_mixture import RUN, TINY, config_of, curve

from ima.core.errors import UserError
from ima.core.types import Role
from ima.data.collate import Collate
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.lora import Fused, LoraMap
from ima.models.llm.tuning import load_tensors, make_trainable, trained_names, trained_tensors, weight_sum
from ima.pipeline.assemble import assemble
from ima.runs.record import read_result


@pytest.fixture
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def stepped(train: str) -> tuple[Any, FrozenLLM, dict[str, torch.Tensor]]:
    """The parts after three steps, and the LLM's state before."""
    parts = assemble(config_of(*TINY, f"llm.train={train}", "optimizer.llm_lr=1e-2"))
    module, llm = parts.module(3).train(), parts.llm
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    collate = Collate(parts.task, llm, parts.percepts, training=True)
    for step in range(3):
        module.model.loss_sum(collate([(sample, step) for sample in parts.source.samples("train")[:4]])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return parts, llm, before


@pytest.mark.parametrize("train", ["none", "lora", "all"])
def test_what_is_not_trained_stays_bit_for_bit(train: str) -> None:
    _, llm, before = stepped(train)
    changed = {name for name, value in llm.state_dict().items() if not torch.equal(value, before[name])}
    if train == "all":
        assert len(changed) > 0.9 * len(before)
    else:
        assert all("lora_" in name for name in changed) and bool(changed) == (train == "lora")
    after = weight_sum(llm, trained_names(llm))
    assert changed <= trained_names(llm) and not llm.training
    llm.load_state_dict(before)
    assert weight_sum(llm, trained_names(llm)) == after, "what is trained is left out of the sum, nothing else"


FAMILIES = ["llama", "gemma3", "opt", "phi3", "gpt_neox"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("seeded")
def test_lora_begins_as_nothing_and_merged_equals_unmerged(family: str) -> None:
    plain, tuned = tiny(family), tiny(family, train="lora")
    x_BSD, roles_BS = torch.randn(2, 9, 32), torch.full((2, 9), int(Role.PROMPT))
    with torch.no_grad():
        torch.testing.assert_close(tuned(x_BSD, roles_BS), plain(x_BSD, roles_BS))
        for tensor in trained_tensors(tuned).values():
            tensor.normal_(0, 0.1)
        unmerged = tuned(x_BSD, roles_BS)
        assert not torch.allclose(unmerged, plain(x_BSD, roles_BS), atol=1e-2)
        tuned.merge()
        torch.testing.assert_close(tuned(x_BSD, roles_BS), unmerged, rtol=1e-4, atol=1e-4)
    assert tuned.state_dict().keys() == plain.state_dict().keys() and not trained_tensors(tuned)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    lora, whole = tiny(train="lora"), tiny(train="all")
    with pytest.raises(UserError, match=r"x: .* weight .* is llm.train that of the run"):
        load_tensors(lora, dict(trained_tensors(whole)), Path("x"))
    with pytest.raises(UserError, match="llm.train: 'some'"):
        tiny(train="some")  # type: ignore[arg-type]


TUNED = [*RUN, "optimizer.llm_lr=1e-2"]


@pytest.mark.parametrize("train", ["lora", "all"])
def test_a_tuned_run_is_resumed_evaluated_and_measured_under_an_intervention(
    launcher: Launcher, tmp_path: Path, train: str
) -> None:
    argv = [*TUNED, f"llm.train={train}", f"output_dir={tmp_path}"]
    done = launcher.run("train", [*argv, "name=whole"])
    assert done.code == 0, done.stderr
    killed = launcher.run(
        "train", [*argv, "name=killed"], die="ima.pipeline.callbacks.StepRecorder.on_train_batch_end", call=6
    )
    assert killed.code == -9
    again = launcher.run("train", [*argv, "name=killed"])
    assert again.code == 0, again.stderr
    whole = tmp_path / "whole"
    for name in ("adapter.safetensors", "adapter.llm.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()
    assert curve(tmp_path / "killed", "train_loss") == curve(whole, "train_loss")
    names = set(load_file(whole / "adapter.llm.safetensors"))
    assert all("lora_" in name for name in names) == (train == "lora")
    assert (whole / "checkpoints" / "epoch-001.llm.safetensors").is_file() == (train == "lora")
    done = launcher.run("evaluate", [f"checkpoint={whole}", "name=same", f"output_dir={tmp_path}"])
    assert done.code == 0, done.stderr
    before = {key: value for key, value in read_result(whole)["metrics"].items() if not key.startswith("train/")}
    assert read_result(tmp_path / "same")["metrics"] == before
    skipped = [f"checkpoint={whole}", "intervention=skip_ffn", "intervention.skip_ffn.start=1", "name=skipped"]
    done = launcher.run("evaluate", [*skipped, f"output_dir={tmp_path}"])
    assert done.code == 0, done.stderr
    assert read_result(tmp_path / "skipped")["metrics"]["val/loss"] != before["val/loss"]


def lora_layer(dtype: torch.dtype, bias: bool) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(48, 40, bias=bias, dtype=dtype)

    holder = Holder().requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=12, target_modules=["map"]), holder)
    layer: Any = holder.map
    for part in (layer.lora_A, layer.lora_B):
        part.default.weight = torch.nn.Parameter(torch.randn_like(part.default.weight, dtype=torch.float32) * 0.3)
    return layer


def outcome(forward: Any, layer: Any, x_BSD: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    x_BSD = x_BSD.clone().requires_grad_(True)
    y = forward(x_BSD)
    layer.zero_grad()
    y.backward(grad)
    assert x_BSD.grad is not None
    return [y.detach(), x_BSD.grad, *(part.default.weight.grad for part in (layer.lora_A, layer.lora_B))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("seeded")
def test_lora_as_one_node_computes_what_peft_does(bias: bool) -> None:
    layer = lora_layer(torch.float32, bias)
    x, grad = torch.randn(3, 5, 48), torch.randn(3, 5, 40)
    for found, slow in zip(outcome(Fused(layer), layer, x, grad), outcome(layer, layer, x, grad), strict=True):
        torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("seeded")
def test_lora_as_one_node_in_bf16_errs_by_bf16_and_leaves_its_own_weights_in_fp32() -> None:
    layer = lora_layer(torch.bfloat16, bias=True)
    x, grad = torch.randn(3, 5, 48).bfloat16(), torch.randn(3, 5, 40).bfloat16()
    found = outcome(Fused(layer), layer, x, grad)
    exact = copy.deepcopy(layer).float()
    for value, true in zip(found, outcome(exact, exact, x.float(), grad.float()), strict=True):
        assert float((value.float() - true).norm() / true.norm()) < 1e-2
    assert [value.dtype for value in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("change", ["disabled", "hook", "autocast", "dropout"])
@pytest.mark.usefixtures("seeded")
def test_what_one_node_does_not_understand_goes_to_peft(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lora_layer(torch.float32, bias=True)
    x = torch.randn(3, 5, 48)
    monkeypatch.setattr(LoraMap, "apply", lambda *args: pytest.fail("was taken"))
    if change == "disabled":
        layer.enable_adapters(False)
    elif change == "hook":
        layer.lora_A.default.register_forward_hook(lambda *args: None)
    elif change == "dropout":
        layer.lora_dropout["default"] = torch.nn.Dropout(0.5).eval()
    with torch.autocast("cpu", enabled=change == "autocast"):
        torch.testing.assert_close(Fused(layer)(x), type(layer).forward(layer, x))


def test_weights_that_learn_are_kept_in_fp32_and_all_layers_are_one_node() -> None:
    model = tiny(train="lora").model.bfloat16()
    make_trainable(plain := tiny().model.bfloat16(), "lora", 4, 8.0, seed=0)
    assert {tensor.dtype for tensor in trained_tensors(plain).values()} == {torch.float32}
    for one in (model, plain):
        layers = [module for module in one.modules() if isinstance(module, LoraLayer)]
        assert layers and all(isinstance(vars(layer)["forward"], Fused) for layer in layers)


@pytest.mark.usefixtures("seeded")
def test_attention_of_blocks_that_learn_in_bf16_is_the_same_through_plain_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = FrozenLLM(tiny().model.bfloat16(), tiny().tokenizer, "auto", trains="lora", lora_rank=4)
    for tensor in trained_tensors(llm).values():
        torch.nn.init.normal_(tensor, 0, 0.1)
    x_BSD, roles_BS = torch.randn(2, 9, 32).bfloat16(), torch.full((2, 9), int(Role.PROMPT))
    roles_BS[1, 6:] = Role.PAD
    direction_BSD = torch.randn(2, 9, 32) * (roles_BS != Role.PAD)[..., None]
    kinds: list[str] = []

    def gradient(llm: FrozenLLM) -> torch.Tensor:
        llm.zero_grad()
        hook = llm.model.base_model.register_forward_pre_hook(
            lambda *args: kinds.append(llm.model.config._attn_implementation)
        )
        h_BSD = llm(x_BSD, roles_BS)
        hook.remove()
        (h_BSD * direction_BSD).sum().backward()
        grads = [tensor.grad for tensor in trained_tensors(llm).values()]
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    exact = gradient(copy.deepcopy(llm).float())
    plain = gradient(llm)
    monkeypatch.setattr("ima.models.llm.frozen.MAX_PLAIN_LENGTH", 0)
    stock = gradient(llm)
    assert kinds == ["sdpa", "eager", "sdpa"] and llm.model.config._attn_implementation == "sdpa"
    assert 0 < float((plain - exact).norm()) < 1.5 * float((stock - exact).norm()) < 0.1 * float(exact.norm())
