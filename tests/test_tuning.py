"""What of the LLM is trained: LoRA changes only LoRA, merged it computes the same; checkpoints hold it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Launcher
from safetensors.torch import load_file
from test_mixture import RUN, TINY, config_of, curve

from ima.checkpoint import weight_sum
from ima.data.collate import Collate
from ima.errors import UserError
from ima.llm.frozen import FrozenLLM
from ima.llm.load import tiny
from ima.llm.tuning import load_tensors, trained_names, trained_tensors
from ima.parts import assemble
from ima.results import read_result
from ima.types import Role


@pytest.fixture
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def stepped(train: str) -> tuple[Any, FrozenLLM, dict[str, torch.Tensor]]:
    """The parts after three steps, and the LLM's state before."""
    parts = assemble(config_of(*TINY, f"llm.train={train}", "trainer.llm_lr=1e-2"))
    module, llm = parts.module(num_steps=3).train(), parts.llm
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    collate = Collate(parts.task, llm, parts.percepts, training=True)
    for step in range(3):
        module.loss_sum(collate([(sample, step) for sample in parts.source.samples("train")[:4]])).backward()
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


TUNED = [*RUN, "trainer.llm_lr=1e-2"]


@pytest.mark.parametrize("train", ["lora", "all"])
def test_a_tuned_run_is_resumed_evaluated_and_measured_under_an_intervention(
    launcher: Launcher, tmp_path: Path, train: str
) -> None:
    argv = [*TUNED, f"llm.train={train}", f"output_dir={tmp_path}"]
    done = launcher.run("train", [*argv, "name=whole"])
    assert done.code == 0, done.stderr
    killed = launcher.run("train", [*argv, "name=killed"], die="ima.callbacks.StepRecorder.on_train_batch_end", call=6)
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
