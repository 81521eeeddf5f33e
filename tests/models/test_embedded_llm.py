"""The embedded LLM: conversion on a tiny GGUF file that the test writes, and the facts of the real one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima.core.errors import UserError
from ima.models.formats.gguf import FORMATS, Gguf, GgufTensor
from ima.models.llm.embedded import convert_llama, llama_key, load_llama, load_smollm2, unpermute

NUM_HEADS, NUM_KV, WIDTH, INNER, NUM_BLOCKS = 4, 2, 32, 24, 2
BYTES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abc012Ċ.", "Ġ", "ab", "ĊĊ", "01"]


def tensor(name: str, *shape: int) -> GgufTensor:
    values = np.random.default_rng(len(name) + sum(map(ord, name))).normal(0, 0.3, shape).astype("<f4")
    return GgufTensor(name, shape, FORMATS[0], values.reshape(-1).view(np.uint8))


@pytest.fixture(scope="module")
def tiny() -> Gguf:
    kv = WIDTH // NUM_HEADS * NUM_KV
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(BYTES), WIDTH), "output_norm": (WIDTH,)}
    inner = {
        "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH),
        "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }  # fmt: skip
    shapes |= {f"blk.{i}.{part}": shape for i in range(NUM_BLOCKS) for part, shape in inner.items()}
    metadata: dict[str, Any] = {
        "llama.vocab_size": len(BYTES), "llama.embedding_length": WIDTH, "llama.feed_forward_length": INNER,
        "llama.block_count": NUM_BLOCKS, "llama.attention.head_count": NUM_HEADS, "llama.context_length": 64,
        "llama.attention.head_count_kv": NUM_KV, "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.freq_base": 1e4, "tokenizer.ggml.tokens": BYTES,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(BYTES) - 3),
        "tokenizer.ggml.merges": ["a b", "Ċ Ċ", "0 1"], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip
    return Gguf(metadata, {f"{name}.weight": tensor(f"{name}.weight", *shape) for name, shape in shapes.items()})


@pytest.fixture
def folder(tiny: Gguf, tmp_path: Path) -> Path:
    convert_llama(tiny, tmp_path)
    return tmp_path


def llama_by_hand(gguf: Gguf, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) straight from GGUF's names and its rotary pairs (neighbouring rows), with no un-permutation."""
    w = {name: torch.from_numpy(tensor.read()) for name, tensor in gguf.tensors.items()}
    size, num = WIDTH // NUM_HEADS, len(ids)
    angle = torch.arange(num)[:, None] / 1e4 ** (torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def norm(h: torch.Tensor, name: str) -> torch.Tensor:
        return h * (h.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * w[f"{name}.weight"]

    def rotate(x: torch.Tensor, heads: int) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(num, heads, size // 2, 2)) * turn
        return torch.view_as_real(pairs).reshape(num, heads, size).transpose(0, 1)

    h = w["token_embd.weight"][ids]
    for i in range(NUM_BLOCKS):
        b = f"blk.{i}."
        x = norm(h, b + "attn_norm")
        q = rotate(x @ w[b + "attn_q.weight"].T, NUM_HEADS)
        k = rotate(x @ w[b + "attn_k.weight"].T, NUM_KV).repeat_interleave(NUM_HEADS // NUM_KV, 0)
        v = (x @ w[b + "attn_v.weight"].T).reshape(num, NUM_KV, size).transpose(0, 1)
        scores = q @ k.transpose(1, 2) / size**0.5 + torch.full((num, num), -torch.inf).triu(1)
        mixed = scores.softmax(-1) @ v.repeat_interleave(NUM_HEADS // NUM_KV, 0)
        h = h + mixed.transpose(0, 1).reshape(num, WIDTH) @ w[b + "attn_output.weight"].T
        x = norm(h, b + "ffn_norm")
        gate = torch.nn.functional.silu(x @ w[b + "ffn_gate.weight"].T)
        h = h + (gate * (x @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
    return norm(h, "output_norm") @ w["token_embd.weight"].T


def test_the_converted_model_computes_what_the_gguf_file_means(tiny: Gguf, folder: Path) -> None:
    model, _ = load_llama(folder, torch.float32)
    ids = [1, 4, 7, 11, 3, 3, 9]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, llama_by_hand(tiny, ids), rtol=1e-4, atol=1e-5)


def test_stock_loading_of_the_folder_gives_the_same_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor([[1, 4, 7]])
    model, tokenizer = load_llama(folder, torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, stock(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("ab 01").input_ids == tokenizer("ab 01").input_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_frozen_in_eval_mode_tied_and_of_the_asked_dtype(folder: Path, dtype: torch.dtype) -> None:
    default = torch.get_default_dtype()
    model, _ = load_llama(folder, dtype)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype} and model.dtype == dtype
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config._attn_implementation == "sdpa"
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert torch.get_default_dtype() == default


def test_writing_into_the_weights_never_reaches_the_file(folder: Path) -> None:
    model, _ = load_llama(folder, torch.float32)
    before = model.model.norm.weight.clone()
    model.model.norm.weight.zero_()
    again, _ = load_llama(folder, torch.float32)
    assert torch.equal(again.model.norm.weight, before) and not torch.equal(before, model.model.norm.weight)


# Heads are wider than 4 here: with two pairs the order and its inverse are the same, and a mix-up would pass.
def test_unpermuting_sorts_the_pairs_of_each_head_into_halves() -> None:
    rows = torch.arange(12.0)[:, None]
    assert unpermute(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_keys_are_translated() -> None:
    assert llama_key("token_embd.weight") == "model.embed_tokens.weight"
    assert llama_key("blk.11.ffn_norm.weight") == "model.layers.11.post_attention_layernorm.weight"


def test_the_tokenizer_takes_each_digit_alone_and_adds_nothing(folder: Path) -> None:
    _, tokenizer = load_llama(folder, torch.float32)
    assert tokenizer.tokenize("ab01\n\n1.") == ["ab", "0", "1", "ĊĊ", "1", "."]
    assert tokenizer("<|im_start|>a<|im_end|>").input_ids == [1, 3, 2]
    assert tokenizer.decode(tokenizer("ab 01").input_ids) == "ab 01"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_cache_folder_is_a_one_line_error(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="delete the folder") as caught:
        load_llama(folder, torch.float32)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_or_other_weights_are_a_one_line_error(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {key: value.clone() for key, value in weights.items() if "norm" not in key}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UserError, match="delete the folder"):
        load_llama(folder, torch.float32)
    os.unlink(folder / "model.safetensors")
    with pytest.raises(UserError, match="delete the folder"):
        load_llama(folder, torch.float32)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load_smollm2(torch.float32)


@pytest.mark.real
def test_smollm2_knows_the_capital_of_france(smollm2: Any) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, -1].softmax(0)
    assert tokenizer.decode(probabilities.argmax()) == " Paris"
    assert 0.75 < probabilities.max() < 0.79
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real
def test_smollm2_gives_the_same_logits_from_ids_and_from_embeddings(smollm2: Any) -> None:
    model, tokenizer = smollm2
    ids_BT = tokenizer("The quick brown fox", return_tensors="pt").input_ids
    with torch.no_grad():
        e_BTD = model.get_input_embeddings()(ids_BT)
        assert torch.equal(model(inputs_embeds=e_BTD).logits, model(input_ids=ids_BT).logits)
    assert 3.0 < model.get_input_embeddings().weight.norm(dim=1).mean() < 3.4


@pytest.mark.real
def test_smollm2_has_the_published_shape(smollm2: Any) -> None:
    model, tokenizer = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (576, 30, 3)
    assert config.rope_parameters["rope_theta"] == 1e5 and config.rms_norm_eps == 1e-5
    assert len(tokenizer) == config.vocab_size == 49152
    assert len(tokenizer.all_special_tokens) == 3  # start, end (also padding), text end
    assert tokenizer.tokenize("\n\n1.") == ["ĊĊ", "1", "."]
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer("It's 3 o'clock , really .").input_ids) == "It's 3 o'clock , really ."
