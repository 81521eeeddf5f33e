"""The two readers of foreign model files, against files and blocks that the tests write themselves."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ima.core.errors import UserError
from ima.models.formats.gguf import FORMATS, read_gguf
from ima.models.formats.onnx import read_onnx


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def get_half(raw: bytes, at: int) -> float:
    return struct.unpack_from("<e", raw, at)[0]


def bit(raw: bytes, i: int) -> int:
    return raw[i // 8] >> (i % 8) & 1


def slow_value(name: str, raw: bytes, i: int) -> float:
    """Element i of one block, one element at a time, written from the layout of the format."""
    d = get_half(raw, 0)
    if name == "Q8_0":
        return d * struct.unpack_from("b", raw, 2 + i)[0]
    if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        at = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8}[name]
        byte = raw[at + i % 16]
        quant = byte & 15 if i < 16 else byte >> 4
        if name[1] == "5":
            quant += 16 * bit(raw[at - 4 : at], i)
        return d * (quant - 2 ** (int(name[1]) - 1)) if name[-1] == "0" else d * quant + get_half(raw, 2)
    if name == "Q6_K":
        part, group, j = i // 128, i % 128 // 32, i % 32
        byte = raw[64 * part + j + 32 * (group % 2)]
        low = byte & 15 if group < 2 else byte >> 4
        high = raw[128 + 32 * part + j] >> (2 * group) & 3
        scale = struct.unpack_from("b", raw, 192 + i // 16)[0]
        return get_half(raw, 208) * scale * (low + 16 * high - 32)
    group, packed = i // 32, raw[4:16]
    if group < 4:
        scale, minimum = packed[group] & 63, packed[group + 4] & 63
    else:
        scale = (packed[group + 4] & 15) + 16 * (packed[group - 4] >> 6)
        minimum = (packed[group + 4] >> 4) + 16 * (packed[group] >> 6)
    byte = raw[(16 if name == "Q4_K" else 48) + 32 * (group // 2) + i % 32]
    quant = byte & 15 if group % 2 == 0 else byte >> 4
    if name == "Q5_K":
        quant += 16 * (raw[16 + i % 32] >> group & 1)
    return d * scale * quant - get_half(raw, 2) * minimum


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_every_block_format_equals_an_element_by_element_reference(name: str) -> None:
    form = next(form for form in FORMATS.values() if form.name == name)
    raw = np.random.default_rng(3).integers(0, 256, (5, form.num_bytes), dtype=np.uint8)
    for at in (208,) if name == "Q6_K" else (0, 2) if name not in ("Q4_0", "Q5_0", "Q8_0") else (0,):
        raw[:, at : at + 2] = np.frombuffer(half(0.37) * 5, dtype=np.uint8).reshape(5, 2)
    fast = form.decode(raw).reshape(5, form.num_values)
    slow = [[slow_value(name, block.tobytes(), i) for i in range(form.num_values)] for block in raw]
    np.testing.assert_allclose(fast, np.array(slow), rtol=1e-6, atol=1e-6)


def test_q4_1_by_hand() -> None:
    raw = half(0.5) + half(-1.0) + bytes([0x21] + [0x00] * 14 + [0xF3])
    values = FORMATS[3].decode(np.frombuffer(raw, dtype=np.uint8)[None])[0]
    assert values[[0, 1, 15, 16, 17, 31]].tolist() == [-0.5, -1.0, 0.5, 0.0, -1.0, 6.5]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_bytes(blocks: bytes, kind: int, shape: tuple[int, ...], version: int = 3) -> bytes:
    keys = [
        text("name") + struct.pack("<I", 8) + text("tiny Ġ"),
        text("flag") + struct.pack("<I?", 7, True),
        text("eps") + struct.pack("<If", 6, 0.25),
        text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bb"),
        text("kinds") + struct.pack("<IIQ3i", 9, 5, 3, 1, -2, 3),
    ]
    info = text("w") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
    info += struct.pack("<IQ", kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(keys)) + b"".join(keys) + info
    return head + b"\0" * (-len(head) % 32) + blocks


def test_a_written_gguf_file_is_read_back(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(values.tobytes(), 0, (2, 3)))
    gguf = read_gguf(path)
    words = {"name": "tiny Ġ", "flag": True, "eps": 0.25, "words": ["a", "bb"], "kinds": [1, -2, 3]}
    assert gguf.metadata == words
    np.testing.assert_array_equal(gguf.tensors["w"].read(), values)


@pytest.mark.parametrize("kind, dtype", [(1, "<f2"), (30, "bf16")])
def test_16_bit_floats_are_widened_exactly(tmp_path: Path, kind: int, dtype: str) -> None:
    values = np.array([1.0, -2.5, 0.15625, 0.0], dtype=np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2") if dtype == "bf16" else values.astype(dtype)
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(raw.tobytes(), kind, (4,)))
    np.testing.assert_array_equal(read_gguf(tmp_path / "a.gguf").tensors["w"].read(), values)


@pytest.mark.parametrize(
    "content, words",
    [
        (gguf_bytes(b"", 0, (8, 8)), "cut short in tensor w"),
        (gguf_bytes(b"\0" * 64, 0, (2, 2))[:60], "not a whole GGUF"),
        (gguf_bytes(b"\0" * 64, 19, (2, 2)), "ggml type 19"),
        (gguf_bytes(b"\0" * 64, 0, (2, 2), version=9), "version 2 or 3"),
        (b"PK\3\4" + b"\0" * 99, "not a little-endian GGUF"),
        (b"", "cannot be read"),
    ],
)
def test_a_broken_gguf_file_is_a_one_line_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(key: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return number(key << 3) + number(value)
    raw = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(raw)) + raw


def onnx_bytes(*tensors: bytes, nodes: tuple[bytes, ...] = ()) -> bytes:
    graph = b"".join(field(1, node) for node in nodes) + field(2, "graph") + b"".join(field(5, t) for t in tensors)
    return field(1, 8) + field(2, "writer") + field(7, graph)


def test_a_written_onnx_file_is_read_back(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    raw = field(1, 2) + field(1, 3) + field(2, 1) + field(8, "raw") + field(9, values.tobytes())
    listed = field(1, number(2)) + field(2, 1) + field(8, "listed") + field(4, struct.pack("<2f", 1.5, -2))
    whole = field(1, number(2)) + field(2, 7) + field(8, "whole") + field(7, number(300) + number((1 << 64) - 1))
    node = field(1, "x") + field(1, "raw") + field(2, "y") + field(3, "/layer/MatMul") + field(4, "MatMul")
    (tmp_path / "a.onnx").write_bytes(onnx_bytes(raw, listed, whole, nodes=(node,)))
    graph = read_onnx(tmp_path / "a.onnx")
    np.testing.assert_array_equal(graph.tensors["raw"], values)
    assert graph.tensors["listed"].tolist() == [1.5, -2.0]
    assert graph.tensors["whole"].tolist() == [300, -1]
    (found,) = graph.nodes
    assert (found.name, found.op_type, found.inputs, found.outputs) == ("/layer/MatMul", "MatMul", ("x", "raw"), ("y",))


@pytest.mark.parametrize(
    "content, words",
    [
        (onnx_bytes(field(1, 3) + field(2, 1) + field(8, "w") + field(9, b"1234")), "4 bytes"),
        (onnx_bytes(field(1, 1) + field(2, 8) + field(8, "w")), "data type 8"),
        (onnx_bytes(field(8, "w") + field(13, b"elsewhere")), "another file"),
        (onnx_bytes(field(1, 1) + field(2, 1) + field(8, "w") + field(9, b"1234"))[:-3], "not a whole ONNX"),
        (b"", "no graph"),
        (b"GGUF and other text", "ONNX"),
    ],
)
def test_a_broken_onnx_file_is_a_one_line_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_onnx(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
