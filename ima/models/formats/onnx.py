"""Reads the stored tensors out of an ONNX file, without the onnx package.

Just enough protobuf: a message is a run of (field number, wire type, value). Fields and numbers are those of
onnx.proto3 (ModelProto.graph = 7; GraphProto.node = 1, initializer = 5; NodeProto.input = 1, output = 2, name = 3,
op_type = 4; TensorProto.dims = 1, data_type = 2, float_data = 4, int64_data = 7, name = 8, raw_data = 9).
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ima.core.errors import UserError

DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True)
class Node:
    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OnnxGraph:
    """The initialisers by name (read-only views where stored raw) and the nodes in file order."""

    tensors: dict[str, NDArray[Any]]
    nodes: list[Node]


def read_onnx(path: Path) -> OnnxGraph:
    """Raises UserError where the file is missing, cut short, keeps its weights elsewhere or uses an odd data type."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    tensors: dict[str, NDArray[Any]] = {}
    nodes = []
    try:
        graphs = [value for field, value in fields(data) if field == 7]
        for field, value in (item for graph in graphs for item in fields(graph)):
            if field == 5:
                name, tensor = parse_tensor(path, value)
                tensors[name] = tensor
            elif field == 1:
                nodes.append(parse_node(value))
    except (IndexError, ValueError, TypeError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a whole ONNX file ({error})") from error
    if not nodes and not tensors:
        raise UserError(f"{path}: no graph inside; is it an ONNX file?")
    return OnnxGraph(tensors, nodes)


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, int | memoryview) of one message."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut short")
        yield key >> 3, data[at : at + size]
        at += size


def packed(value: int | memoryview) -> list[int]:
    """A repeated integer, stored one by one or packed."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        numbers.append(number)
    return numbers


def signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def parse_tensor(path: Path, data: memoryview) -> tuple[str, NDArray[Any]]:
    dims: list[int] = []
    numbers: list[int] = []
    kind, name, raw = 0, "", b""
    for field, value in fields(data):
        if field == 1:
            dims += packed(value)
        elif field == 2:
            kind = value
        elif field in (4, 9):
            raw = raw + bytes(value) if field == 4 and raw else value
        elif field == 7:
            numbers += packed(value)
        elif field == 8:
            name = bytes(value).decode()
        elif field == 13:
            raise UserError(f"{path}: tensor {name} lies in another file (external data), which is not supported")
    if kind not in DTYPES:
        raise UserError(f"{path}: tensor {name} has data type {kind}; readable are {sorted(DTYPES)}")
    dtype = np.dtype(DTYPES[kind])
    if numbers and kind == 7:
        raw = np.array([signed(number) for number in numbers], dtype=dtype).tobytes()
    if len(raw) != math.prod(dims) * dtype.itemsize:
        raise UserError(f"{path}: tensor {name} of shape {dims} has {len(raw)} bytes of {dtype}")
    return name, np.frombuffer(raw, dtype=dtype).reshape(dims)


def parse_node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""]}
    for field, value in fields(data):
        if field in texts:
            texts[field].append(bytes(value).decode())
    return Node(texts[3][-1], texts[4][-1], tuple(texts[1]), tuple(texts[2]))
