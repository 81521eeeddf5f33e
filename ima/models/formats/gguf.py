"""Reader for GGUF files (llama.cpp's container): metadata and tensors, dequantised with numpy.

Our own because the usual path needs about twenty seconds for a file that this one reads in one. It hides the block
formats: a tensor is seen as a float32 array in row-major order, with the dimensions turned round (GGUF stores the
fastest one first). Only little-endian files of version 2 and 3. Layouts: ggml's `ggml-common.h`.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ima.core.errors import UserError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def half(raw: Bytes) -> Floats:
    """(num, 2k) bytes of k little-endian float16 -> (num, k) float32."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def nibbles(raw: Bytes) -> Bytes:
    """(num, k) bytes -> (num, 2k) values 0..15: all low halves first, then all high halves."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def fifth_bits(raw: Bytes) -> Bytes:
    """(num, 4) bytes of one little-endian word -> (num, 32) values 0 or 16, bit i for element i."""
    return np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little") << np.uint8(4)


def f32(raw: Bytes) -> Floats:
    return raw.view("<f4").astype(np.float32)


def f16(raw: Bytes) -> Floats:
    return raw.view("<f2").astype(np.float32)


def bf16(raw: Bytes) -> Floats:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def q4_0(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * (nibbles(raw[:, 2:]).astype(np.float32) - 8)


def q4_1(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * nibbles(raw[:, 4:]).astype(np.float32) + half(raw[:, 2:4])


def q5_0(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * ((nibbles(raw[:, 6:]) | fifth_bits(raw[:, 2:6])).astype(np.float32) - 16)


def q5_1(raw: Bytes) -> Floats:
    quants = (nibbles(raw[:, 8:]) | fifth_bits(raw[:, 4:8])).astype(np.float32)
    return half(raw[:, :2]) * quants + half(raw[:, 2:4])


def q8_0(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """12 bytes -> the 8 six-bit scales and 8 six-bit minima of a K block, each (num, 8, 1)."""
    low, high, mixed = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scale = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=1)
    minimum = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=1)
    return scale[..., None].astype(np.float32), minimum[..., None].astype(np.float32)


def k_nibbles(raw: Bytes) -> Bytes:
    """(num, 128) bytes -> (num, 8, 32): each run of 32 bytes holds two groups, low halves then high halves."""
    runs = raw.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)


def q4_k(raw: Bytes) -> Floats:
    scale, minimum = k_scales(raw[:, 4:16])
    d, dmin = half(raw[:, :2])[..., None], half(raw[:, 2:4])[..., None]
    return d * scale * k_nibbles(raw[:, 16:]).astype(np.float32) - dmin * minimum


def q5_k(raw: Bytes) -> Floats:
    scale, minimum = k_scales(raw[:, 4:16])
    d, dmin = half(raw[:, :2])[..., None], half(raw[:, 2:4])[..., None]
    fifth = (raw[:, 16:48, None].swapaxes(1, 2) >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return d * scale * (k_nibbles(raw[:, 48:]) | fifth).astype(np.float32) - dmin * minimum


def q6_k(raw: Bytes) -> Floats:
    # Two halves of 128 values, each four groups of 32: low bits from 64 bytes, two high bits from 32 bytes.
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    quants = (low | high << 4).astype(np.float32) - 32
    scale = raw[:, 192:208].view(np.int8).astype(np.float32)[..., None]
    return half(raw[:, 208:])[..., None] * scale * quants.reshape(-1, 16, 16)


@dataclasses.dataclass(frozen=True)
class Format:
    """A tensor type: `num_values` values are stored in `num_bytes` bytes; `decode` takes (blocks, num_bytes) bytes."""

    name: str
    num_values: int
    num_bytes: int
    decode: Callable[[Bytes], Floats]


FORMATS = {
    0: Format("F32", 1, 4, f32),
    1: Format("F16", 1, 2, f16),
    2: Format("Q4_0", 32, 18, q4_0),
    3: Format("Q4_1", 32, 20, q4_1),
    6: Format("Q5_0", 32, 22, q5_0),
    7: Format("Q5_1", 32, 24, q5_1),
    8: Format("Q8_0", 32, 34, q8_0),
    12: Format("Q4_K", 256, 144, q4_k),
    13: Format("Q5_K", 256, 176, q5_k),
    14: Format("Q6_K", 256, 210, q6_k),
    30: Format("BF16", 1, 2, bf16),
}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor that is still in the file; `read()` makes a fresh float32 array of `shape`."""

    name: str
    shape: tuple[int, ...]
    format: Format
    raw: Bytes

    def read(self) -> Floats:
        blocks = np.ascontiguousarray(self.raw).reshape(-1, self.format.num_bytes)
        return self.format.decode(blocks).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Gguf:
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class Cursor:
    """Reads values one after the other from the head of the file."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.take("Q")
        if self.at + length > len(self.data):
            raise struct.error("a string runs over the end")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(SCALARS[kind])
        item, num = self.take("I"), self.take("Q")
        if item in SCALARS:
            size = struct.calcsize("<" + SCALARS[item])
            values = struct.unpack_from(f"<{num}{SCALARS[item]}", self.data, self.at) if num else ()
            self.at += num * size
            return list(values)
        return [self.value(item) for _ in range(num)]


def read_gguf(path: Path) -> Gguf:
    """Metadata and tensors of a GGUF file; the tensors stay mapped until read.

    Raises UserError where the file is missing, cut short, of another version, or holds a format that we cannot read.
    """
    try:
        data: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    cursor = Cursor(memoryview(data))  # type: ignore[arg-type]
    try:
        return parse(path, data, cursor)
    except (struct.error, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: not a whole GGUF file ({error}); fetch it again") from error


def parse(path: Path, data: Bytes, cursor: Cursor) -> Gguf:
    magic, version = cursor.take("4s"), cursor.take("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise UserError(f"{path}: not a little-endian GGUF file of version 2 or 3 (starts with {magic!r}, {version})")
    num_tensors, num_keys = cursor.take("Q"), cursor.take("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.take("I"))
    heads = []
    for _ in range(num_tensors):
        name = cursor.string()
        shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))[::-1]
        heads.append((name, shape, cursor.take("I"), cursor.take("Q")))
    alignment = int(metadata.get("general.alignment", 32))
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in heads:
        if kind not in FORMATS:
            known = ", ".join(form.name for form in FORMATS.values())
            raise UserError(f"{path}: tensor {name} has ggml type {kind}; readable are {known}")
        form = FORMATS[kind]
        num_bytes = math.prod(shape) // form.num_values * form.num_bytes
        raw = data[start + offset : start + offset + num_bytes]
        if len(raw) != num_bytes:
            raise UserError(f"{path}: cut short in tensor {name}; fetch it again")
        tensors[name] = GgufTensor(name, shape, form, raw)
    return Gguf(metadata, tensors)
