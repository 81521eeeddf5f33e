"""Reader of CTranslate2's model.bin, and the names that its Whisper tensors have in transformers.

The file, little endian: version (u32), name of the architecture, its revision (u32), the variables (name, rank, sizes,
kind, bytes), aliases. Texts are a length (u16, the final NUL included) and bytes. Hides the format; reads nothing
beyond the file's own lengths.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ima.core.errors import UserError

VERSION = 6
KINDS = (np.dtype("<f4"), np.dtype("<i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<f2"))
PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
ENDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


class Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.place = path, memoryview(path.read_bytes()), 0

    def take(self, num: int) -> memoryview:
        if not 0 <= num <= len(self.data) - self.place:
            raise UserError(f"{self.path}: ends at byte {len(self.data)}, in the middle of a value; fetch it again")
        self.place += num
        return self.data[self.place - num : self.place]

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", errors="replace")


def read_ct2(path: Path) -> dict[str, np.ndarray]:
    """Variables by name, read-only views of the file; aliases point to the same ones. Raises UserError."""
    reader = Reader(path)
    if (version := reader.number("I")) != VERSION:
        raise UserError(f"{path}: version {version} of CTranslate2's format, {VERSION} is the one that is read here")
    reader.text(), reader.number("I")
    out: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        sizes = [reader.number("I") for _ in range(reader.number("B"))]
        kind = reader.number("B")
        content = reader.take(reader.number("I"))
        if kind >= len(KINDS) or len(content) != int(np.prod(sizes)) * KINDS[kind].itemsize:
            raise UserError(
                f"{path}: {name!r} of kind {kind} and sizes {sizes} has {len(content)} bytes; fetch it again"
            )
        out[name] = np.frombuffer(content, dtype=KINDS[kind]).reshape(sizes)
    for _ in range(reader.number("I")):
        alias, target = reader.text(), reader.text()
        out[alias] = out[target]
    return out


def whisper_encoder_weights(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The encoder's tensors under the names of transformers' WhisperEncoder, float32.

    Query, key and value are one matrix in the file, a third of its rows each; keys have no bias in Whisper.
    """
    out: dict[str, np.ndarray] = {}
    for name, array in variables.items():
        side, _, rest = name.partition("/")
        if side != "encoder" or rest.rpartition("/")[2] not in (*ENDS, "encodings"):
            continue
        part, _, end = rest.rpartition("/")
        if end == "encodings":
            out["embed_positions.weight"] = array
        elif not part.startswith("layer_") or part == "layer_norm":
            out[f"{part}.{ENDS[end]}"] = array
        else:
            layer, _, inner = part.partition("/")
            place = f"layers.{layer.removeprefix('layer_')}"
            if inner == "self_attention/linear_0":
                for letter, third in zip("qkv", np.split(array, 3), strict=True):
                    if (letter, end) != ("k", "bias"):
                        out[f"{place}.self_attn.{letter}_proj.{end}"] = third
            else:
                out[f"{place}.{PARTS[inner]}.{ENDS[end]}"] = array
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in out.items()}
