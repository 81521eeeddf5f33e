"""LLM families by config: each file of conf/llm composes and gives a working model from a tiny folder of its class."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ima.config.compose import CONF, compose
from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.skip.fast_path import unsupported_reason
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.families import FAMILIES, REFUSED, TINY, Family, family_of
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import hf
from ima.models.llm.pass_context import Generation
from ima.models.llm.projections import projections_of
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

# conf/llm -> the tiny family of the same class
FAMILY = {
    "opt": "opt", "opt_350m": "opt_350m", "vicuna": "llama", "llama2": "llama", "llama3": "llama",
    "mistral": "mistral", "qwen2_5": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3", "phi3": "phi3",
    "pythia": "gpt_neox", "smollm3": "smollm3",
}  # fmt: skip
ELSEWHERE = {"hf", "tiny", "smollm2", "random_smollm2", "gemma3_270m", "qwen_coder_0_5b", "qwen_coder_1_5b"}


def test_every_llm_of_conf_is_tried_here_or_elsewhere() -> None:
    assert {path.stem for path in CONF.glob("llm/*.yaml")} == {*FAMILY, *ELSEWHERE}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        tiny_model(family, seed=1).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


def logits(llm: FrozenLLM, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h_BSD = llm(llm.embed(ids_BT), torch.full_like(ids_BT, int(Role.PROMPT)))
        return llm.logits(h_BSD.flatten(0, 1))


IDS = torch.randint(3, 259, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("choice", FAMILY)
def test_a_config_loads_a_checkpoint_of_its_class(choice: str, folder_of: Any) -> None:
    folder = folder_of(FAMILY[choice])
    config = compose([f"llm={choice}", f"llm.path={folder}", "llm.dtype=float32"])
    llm = instantiate(OmegaConf.to_container(config.llm))
    tokenizer = tiny_tokenizer()
    assert llm.encode("a word") == tokenizer("a word", add_special_tokens=False).input_ids
    assert (llm.bos_id is not None) == (choice == "gemma3")
    torch.testing.assert_close(logits(llm, IDS), logits(FrozenLLM(tiny_model(FAMILY[choice], seed=1), tokenizer), IDS))
    assert llm.width == llm.model.get_input_embeddings().embedding_dim


@pytest.mark.parametrize("choice", FAMILY)
def test_random_weights_need_the_config_only_and_have_a_seed(choice: str, folder_of: Any, tmp_path: Path) -> None:
    for path in folder_of(FAMILY[choice]).iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, same, other = (hf(str(tmp_path), "float32", pretrained=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected), "the global stream was touched"
    assert torch.equal(logits(one, IDS), logits(same, IDS))
    assert not torch.allclose(logits(one, IDS), logits(other, IDS))


@pytest.mark.parametrize("family", ["gemma3", "mistral", "phi3"])
def test_a_window_shorter_than_the_text_agrees_in_cached_whole_and_padded_passes(family: str) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_model(family).config
    config.sliding_window = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
    llm = FrozenLLM(model, tiny_tokenizer())
    rows = [torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 6)]
    roles_BS = torch.zeros(2, 9, dtype=torch.long)
    x_BSD = torch.zeros(2, 9, llm.width)
    with torch.no_grad():
        for index, ids in enumerate(rows):
            x_BSD[index, 9 - len(ids) :], roles_BS[index, 9 - len(ids) :] = llm.embed(ids), int(Role.PROMPT)
        found = llm.generate(x_BSD, roles_BS, Generation(6))
        wide = logits(llm, rows[0][None])
        model.config.sliding_window = 4096
        assert not torch.allclose(logits(FrozenLLM(model, tiny_tokenizer()), rows[0][None]), wide), "no window at all"
        model.config.sliding_window = 4
        for ids, written in zip(rows, found, strict=True):
            whole = ids[None]
            for token in written:
                assert int(logits(llm, whole)[-1].argmax()) == token
                whole = torch.cat([whole, torch.tensor([[token]])], dim=1)


def gemma3_that_sees(folder: Path) -> Any:
    """A tiny Gemma 3 with a vision tower, as it is published from 4B on."""
    import transformers as t

    text = tiny_model("gemma3").config
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = t.Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = t.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def test_of_a_model_that_sees_the_language_part_is_taken(tmp_path: Path) -> None:
    whole = gemma3_that_sees(tmp_path)
    llm = hf(str(tmp_path), "float32", bos="always")
    assert type(llm.model).__name__ == "Gemma3ForCausalLM" and llm.table.model_type == "gemma3_text"
    assert not [name for name, _ in llm.named_parameters() if "vision" in name]
    with torch.no_grad():
        expected = whole(input_ids=IDS).logits.flatten(0, 1)
    torch.testing.assert_close(logits(llm, IDS), expected, rtol=1e-5, atol=1e-5)
    assert llm.model.config is llm.model.model.config
    random = hf(str(tmp_path), "float32", pretrained=False)
    assert type(random.model) is type(llm.model)


def test_embeddings_of_gemma_are_scaled_as_they_enter_the_first_block(folder_of: Any) -> None:
    llm = hf(str(folder_of("gemma3")), "float32")
    table_VD = llm.model.get_input_embeddings().weight
    torch.testing.assert_close(llm.embed(IDS), table_VD[IDS] * 32**0.5, rtol=1e-3, atol=1e-4)
    assert llm.embedding_norm == pytest.approx(float(table_VD.norm(dim=1).mean()) * 32**0.5, rel=1e-3)


class Trap:
    """Pickled into a checkpoint: would make a file when unpickled freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_read_as_tensors_and_nothing_else(folder_of: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for path in folder_of("opt").iterdir():
        if path.suffix == ".safetensors":
            weights = dict(load_file(path))
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(hf(str(tmp_path), "float32"), IDS), logits(hf(str(folder_of("opt")), "float32"), IDS))
    torch.save(weights | {"lm_head.weight": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        hf(str(tmp_path), "float32")
    assert "\n" not in str(caught.value) and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("fault", ["absent", "no weights", "cut short", "no config"])
def test_what_cannot_be_loaded_is_one_line_that_names_the_path(fault: str, folder_of: Any, tmp_path: Path) -> None:
    for path in folder_of("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights, path = tmp_path / "model.safetensors", str(tmp_path)
    match fault:
        case "absent":
            path = "someone/nothing"
        case "no weights":
            weights.unlink()
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no config":
            (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="llm.path") as caught:
        hf(path, "float32")
    assert path in str(caught.value) and "\n" not in str(caught.value) and "hf download" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("vit", "type 'vit' is not supported; supported are gemma, gemma2, "),
        ("somebody's", 'type "somebody\'s" is not supported; '),
        ("granite", "type 'granite' is not supported (its blocks multiply what they add to the stream"),
        ("clap", "type 'clap' is not supported; "),
        ("t5", "type 't5' is not supported; "),
        ("internvl", "type 'internvl' is not supported as a whole; give the checkpoint of its language model"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_type_without_a_record_is_refused_by_config_json_alone(
    kind: str, said: str, pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    for loader in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError) as caught:
        hf(str(tmp_path), "float32", pretrained=pretrained)
    assert str(caught.value).startswith(f"llm.path: {tmp_path}: {said}") and "\n" not in str(caught.value)
    assert "download" not in str(caught.value)


# -- the records -------------------------------------------------------------------------------------------------------


def test_every_config_has_one_record_and_every_tiny_twin_its_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for name, family in TINY.items():
        config = tiny_model(name).config
        assert family_of(config) is family
        assert sum(each.model_type == config.model_type and each.when(config) for each in FAMILIES) == 1
    assert not {family.model_type for family in FAMILIES} & REFUSED.keys()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_record_says_truly_what_is_faster(family: Family) -> None:
    if family.tiny is None:
        assert not family.accelerated and not family.plain_block
        return
    llm = FrozenLLM(tiny_model(family.name), tiny_tokenizer())
    assert (accelerate(llm.model).num_accelerated == llm.num_blocks) == family.accelerated
    assert (unsupported_reason(llm, 0) == "") == family.plain_block
    maps = projections_of(llm.table, 0)
    assert all(isinstance(module, torch.nn.Linear) for module in (maps.out, maps.query, maps.key, maps.value) if module)


def test_weights_that_lack_some_are_refused_and_not_drawn(tmp_path: Path) -> None:
    """transformers fills them with random numbers and says so in a log."""
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        hf(str(tmp_path), dtype="float32")
