"""Tensors on disk: one safetensors file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.files import replace_atomic


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises UserError where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata)
        except SafetensorError as error:  # its own kind even for a full disk
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error
        sort_header(temporary)

    replace_atomic(path, write)


def checksum_of(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Of names, types, shapes and bytes of numpy arrays or tensors, and of what else the header says."""
    digest = hashlib.sha256()
    for name, value in sorted(metadata.items()):
        if name != "checksum":
            digest.update(f"{len(name)}|{name}|{len(value)}|{value}|".encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}|".encode())
        digest.update(memoryview(raw_bytes(value)))
    return digest.hexdigest()


def raw_bytes(value: Any) -> Any:
    """The memory of a numpy array or a tensor as bytes (N,)."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    import torch

    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def check_sum(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Raises UserError where a file is not what was written. Files of before carry no checksum and pass."""
    wanted = metadata.get("checksum")
    if wanted is None:  # perhaps its name is what was damaged
        wanted = next((value for value in metadata.values() if re.fullmatch("[0-9a-f]{64}", value)), None)
    if wanted is not None and wanted != checksum_of(arrays, metadata):
        raise UserError(
            f"{path}: damaged: its content does not have the checksum in its header; copy it again, or make it anew"
        )


def sort_header(path: Path) -> None:
    """Metadata in the order of its keys: the library writes it in any, and equal content would not be equal files."""
    with open(path, "rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(raw) <= size:  # the same text in another order
            file.seek(8)
            file.write(raw + b" " * (size - len(raw)))
