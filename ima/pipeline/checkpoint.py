"""Checkpoints as one safetensors file each: tensors as tensors, everything else as JSON in its header.

`SafetensorsIO` is Lightning's door to it, so that `Trainer.fit(ckpt_path=...)` resumes from our files; nothing of
ours is ever unpickled. One file replaced by one rename cannot be half written. `save_adapter` / `load_adapter` are
the small published form: weights and a JSON beside them that says what they fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor, nn

from ima.core.errors import UserError, nearest
from ima.core.files import write_json
from ima.core.tensor_file import check_sum, checksum_of, write_tensors
from ima.models.llava import foreign_adapter, is_foreign
from ima.models.llm.tuning import load_tensors, trained_tensors
from ima.runs.record import RESULT

FORMAT = "ima-checkpoint-1"
# Facts of a run: the checksums of the weights that it wrote.
ADAPTER_SUM, LLM_SUM = "adapter_checksum", "llm_checksum"


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON form of a nested structure; tensors are put into `tensors` and named in their place."""
    if isinstance(value, Tensor):
        tensors[path or "value"] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": path or "value"}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: pack(item, tensors, f"{path}/{key}") for key, item in value.items()}
        items = [[key, pack(item, tensors, f"{path}/{key}")] for key, item in value.items()]
        return {"__items__": items}
    if isinstance(value, (list, tuple)):
        packed = [pack(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
        return {"__tuple__": packed} if isinstance(value, tuple) else packed
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    raise TypeError(f"checkpoint{path}: cannot be saved: {type(value).__name__}")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__tuple__" in value:
        return tuple(unpack(item, tensors) for item in value["__tuple__"])
    if "__items__" in value:
        return {key: unpack(item, tensors) for key, item in value["__items__"]}
    return {key: unpack(item, tensors) for key, item in value.items()}


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    structure = pack(checkpoint, tensors)
    write_checked(path, tensors, {"format": FORMAT, "structure": json.dumps(structure)})


def write_checked(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """With a checksum in the header, which reading compares; returns it."""
    checksum = checksum_of(tensors, metadata)
    write_tensors(path, tensors, metadata | {"checksum": checksum})
    return checksum


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises UserError where it is not readable or not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    check_sum(path, tensors, metadata)
    return tensors, metadata


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises UserError naming the first tensor with a number that is none."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            num = int((~value.isfinite()).sum())
            raise UserError(
                f"{path}: {num} of {value.numel()} numbers of {name} are NaN or infinite, nothing can be measured with "
                "it; train it again (a lower optimizer.lr, or llm.dtype=float32)"
            )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises UserError where the file is missing, damaged or of another kind."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    tensors, metadata = read_checked(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of a run (format {metadata.get('format')!r}, expected {FORMAT})")
    try:
        loaded: dict[str, Any] = unpack(json.loads(metadata["structure"]), tensors)
        if not isinstance(loaded, dict):
            raise ValueError("its structure is no JSON object")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); delete it, the run starts anew") from error
    return loaded


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoints in our format."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def save_adapter(folder: Path, adapter: nn.Module, facts: dict[str, Any], stem: str = "adapter") -> str:
    """`<stem>.safetensors` and `<stem>.json`, which tells the checksum of the first; returns it."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()}
    checksum = write_checked(folder / f"{stem}.safetensors", tensors, {"format": "pt"})
    write_json(folder / f"{stem}.json", facts | {ADAPTER_SUM: checksum})
    return checksum


def check_owner(path: Path, key: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Raises UserError where the JSON beside an adapter, or the record of its run, tells of another file of this name.
    Files of before tell nothing and pass. key: what they tell it by."""
    stem = path.stem.removesuffix(".llm")
    for teller in (path.with_name(f"{stem}.json"), path.with_name(RESULT) if stem == "adapter" else None):
        told = told_by(teller, key) if teller is not None and teller.is_file() else None
        if told is not None and told != (metadata.get("checksum") or checksum_of(tensors, metadata)):
            raise UserError(
                f"{path}: not the file that {teller} is about, another stands in its place; put the run's own back, "
                f"or keep this one with its own {stem}.json in a folder of its own"
            )


def told_by(path: Path, key: str) -> str | None:
    """What a JSON file tells by `key`, at the top or among its facts; None where it tells nothing."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    facts = told.get("facts", told) if isinstance(told, dict) else None
    value = facts.get(key) if isinstance(facts, dict) else None
    return value if isinstance(value, str) else None


def load_adapter(path: Path, adapter: nn.Module) -> None:
    """Weights of an exported adapter or of a run's checkpoint into `adapter`. Raises UserError naming the first key or
    shape that does not fit."""
    if not path.exists():
        raise UserError(f"checkpoint: {path} does not exist")
    if is_foreign(path):
        tensors = foreign_adapter(path)
    else:
        tensors, metadata = read_checked(path)
        check_owner(path, ADAPTER_SUM, tensors, metadata)
    prefix = "/state_dict/adapter."
    if any(key.startswith(prefix) for key in tensors):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own = adapter.state_dict()
    for key in sorted(own.keys() ^ tensors.keys()):
        side = "lacks" if key in own else "has an unexpected"
        raise UserError(f"{path}: {side} key {key!r} for a {type(adapter).__name__}; {nearest(key, own)}")
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise UserError(f"{path}: {key} is {tuple(value.shape)}, this adapter needs {tuple(own[key].shape)}")
    check_finite(path, tensors)
    adapter.load_state_dict(tensors)


def llm_file(adapter: Path) -> Path:
    """Where the trained weights of the LLM lie that belong to an adapter's file."""
    return adapter.with_name(f"{adapter.stem}.llm.safetensors")


def save_llm(folder: Path, llm: nn.Module, stem: str = "adapter") -> str:
    """`<stem>.llm.safetensors`: what of the LLM was trained. Returns its checksum."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in trained_tensors(llm).items()}
    return write_checked(llm_file(folder / f"{stem}.safetensors"), tensors, {"format": "pt"})


def load_llm(path: Path, llm: nn.Module) -> None:
    """Trained weights of the LLM that belong to the adapter (or run's checkpoint) at `path`."""
    prefix = "/state_dict/llm."
    beside = llm_file(path)
    file = beside if beside.is_file() else path
    tensors, metadata = read_checked(file)
    check_owner(file, LLM_SUM, tensors, metadata)
    if file == path:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if not tensors:
            raise UserError(f"{beside}: not there, but llm.train says that the LLM was trained with this adapter")
    check_finite(file, tensors)
    load_tensors(llm, tensors, file)
