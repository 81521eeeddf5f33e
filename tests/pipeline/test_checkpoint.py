"""Checkpoint files: what goes in comes out, what is not ours is refused in one line, nothing is half written."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import ima.core.files
from ima.core.errors import UserError
from ima.models.adapters.linear import LinearAdapter, MlpAdapter
from ima.models.llm.load import tiny
from ima.pipeline.checkpoint import (
    SafetensorsIO,
    load_adapter,
    load_checkpoint,
    load_llm,
    pack,
    save_adapter,
    save_checkpoint,
    save_llm,
    unpack,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8)
tensors = st.builds(
    lambda dtype, shape: torch.arange(math.prod(shape)).reshape(shape).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | tensors
keys = st.text(max_size=6) | st.integers() | st.sampled_from(["__tensor__", "__tuple__", "__items__", "a/b", ""])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@given(trees)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_nested_structure_survives_packing_and_json(tree: Any) -> None:
    found: dict[str, torch.Tensor] = {}
    structure = json.loads(json.dumps(pack(tree, found)))
    assert same(unpack(structure, found), tree)


@given(tree=trees)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_nested_structure_survives_the_file(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("file") / "c.safetensors"
    save_checkpoint({"tree": tree}, path)
    assert same(load_checkpoint(path), {"tree": tree})


def test_an_optimisers_state_survives_lightnings_door(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer_states": [optimizer.state_dict()], "infinite": math.inf}
    SafetensorsIO().save_checkpoint(state, tmp_path / "c.safetensors")
    loaded = SafetensorsIO().load_checkpoint(tmp_path / "c.safetensors")
    assert same(loaded, state)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/1: cannot be saved: object"):
        save_checkpoint({"a": [1, object()]}, tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def torn(path: Path) -> None:
    save_checkpoint({"x": torch.arange(100)}, path)
    path.write_bytes(path.read_bytes()[:-13])


def foreign(path: Path) -> None:
    save_file({"x": torch.arange(3)}, path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (torn, "not a readable safetensors file"),
        (foreign, "not a checkpoint of a run"),
        (lambda path: path.write_bytes(b""), "not a readable safetensors file"),
        (lambda path: torch.save({"x": 1}, path), "not a readable safetensors file"),
        (lambda path: None, "no such checkpoint"),
        (lambda path: save_file({}, path, {"format": "ima-checkpoint-1", "structure": "{"}), "damaged"),
        (
            lambda path: save_file({}, path, {"format": "ima-checkpoint-1", "structure": '{"__tensor__": "x"}'}),
            "damaged",
        ),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused_in_one_line(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "c.safetensors"
    make(path)
    with pytest.raises(UserError, match=says) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "save_file", "limit"])
def test_a_full_disk_leaves_the_old_file_whole_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint({"x": torch.arange(3)}, path)
    old = path.read_bytes()
    if where == "fsync":
        monkeypatch.setattr(ima.core.files.os, "fsync", full_disk)
    else:
        # The library reports even a full disk as its own kind of error.
        from safetensors import SafetensorError

        def save(_tensors: Any, path: Any, _metadata: Any = None) -> None:
            Path(path).write_bytes(old[:20])
            number = 27 if where == "limit" else 28
            raise SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")

        monkeypatch.setattr("safetensors.torch.save_file", save)
    says = "larger than files may be here" if where == "limit" else "no space left"
    with pytest.raises(UserError, match=says):
        save_checkpoint({"x": torch.arange(1000)}, path)
    assert path.read_bytes() == old
    assert [item.name for item in tmp_path.iterdir()] == ["c.safetensors"]


def test_an_adapter_comes_back_from_its_export_and_from_a_runs_checkpoint(tmp_path: Path) -> None:
    adapter, other = MlpAdapter(4, 6), MlpAdapter(4, 6)
    save_adapter(tmp_path, adapter, {"epoch": 1})
    load_adapter(tmp_path / "adapter.safetensors", other)
    assert same(dict(other.state_dict()), dict(adapter.state_dict()))
    assert json.loads((tmp_path / "adapter.json").read_text())["epoch"] == 1
    checkpoint = {"state_dict": {f"adapter.{key}": value for key, value in adapter.state_dict().items()}, "epoch": 3}
    save_checkpoint(checkpoint, tmp_path / "last.safetensors")
    another = MlpAdapter(4, 6)
    load_adapter(tmp_path / "last.safetensors", another)
    assert same(dict(another.state_dict()), dict(adapter.state_dict()))


@pytest.mark.parametrize("teller", ["adapter.json", "result.json", "epoch-001.json"])
def test_an_adapter_of_the_same_shape_from_another_run_is_refused(tmp_path: Path, teller: str) -> None:
    own, stem = tmp_path / "own", "epoch-001" if teller.startswith("epoch") else "adapter"
    checksum = save_adapter(own, MlpAdapter(4, 6), {}, stem)
    if teller == "result.json":
        (own / "adapter.json").unlink()
        (own / teller).write_text(json.dumps({"facts": {"adapter_checksum": checksum}}))
    load_adapter(own / f"{stem}.safetensors", MlpAdapter(4, 6))
    save_adapter(tmp_path / "other", MlpAdapter(4, 6), {}, stem)
    shutil.copy(tmp_path / "other" / f"{stem}.safetensors", own)
    into = MlpAdapter(4, 6)
    before = {key: value.clone() for key, value in into.state_dict().items()}
    with pytest.raises(UserError, match=rf"{stem}.safetensors: not the file that .*{teller} is about"):
        load_adapter(own / f"{stem}.safetensors", into)
    assert same(dict(into.state_dict()), before)
    (own / teller).write_text("no JSON")  # what tells nothing refuses nothing
    load_adapter(own / f"{stem}.safetensors", into)


def test_trained_weights_of_an_llm_from_another_run_are_refused(tmp_path: Path) -> None:
    llm = tiny(train="lora")
    (tmp_path / "adapter.json").write_text(json.dumps({"llm_checksum": save_llm(tmp_path, llm)}))
    load_llm(tmp_path / "adapter.safetensors", llm)
    next(parameter for parameter in llm.parameters() if parameter.requires_grad).data.add_(1)
    save_llm(tmp_path, llm)
    with pytest.raises(UserError, match=r"adapter.llm.safetensors: not the file that .*adapter.json is about"):
        load_llm(tmp_path / "adapter.safetensors", llm)


def test_weights_of_another_adapter_are_refused_naming_the_key_or_shape(tmp_path: Path) -> None:
    save_adapter(tmp_path, MlpAdapter(4, 6), {})
    with pytest.raises(UserError, match=r"up\.(bias|weight).*LinearAdapter"):
        load_adapter(tmp_path / "adapter.safetensors", LinearAdapter(4, 6))
    wider = MlpAdapter(5, 6)
    before = {key: value.clone() for key, value in wider.state_dict().items()}
    with pytest.raises(UserError, match=r"up.weight is \(6, 4\), this adapter needs \(6, 5\)"):
        load_adapter(tmp_path / "adapter.safetensors", wider)
    assert same(dict(wider.state_dict()), before)
    with pytest.raises(UserError, match="does not exist"):
        load_adapter(tmp_path / "nothing.safetensors", wider)
