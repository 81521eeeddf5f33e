"""A mask: one bit per weight of every linear map inside the blocks, 1 where the weight is kept.

Bits are packed by matrix (row-major, first weight in the highest bit), so that and, or, minus and counting work on
whole bytes and nothing is ever unpacked at once. The file is safetensors: one uint8 tensor per module path, shapes and
provenance as JSON in its header; it is read through a memory map. Numpy only: no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ima.core.errors import UserError
from ima.core.files import replace_atomic, to_json
from ima.core.moved_names import current_names
from ima.core.tensor_file import check_sum, checksum_of

FORMAT = "ima-mask-1"
VALUES = "values of "  # before a module path: new weights
Shape = tuple[int, int]
Bits = np.ndarray
By = Literal["whole", "part", "kind", "block", "matrix"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Of a matrix: its block, its name inside the block, and whether that belongs to attention or the FFN."""

    block: int
    kind: str
    part: str

    def key(self, by: By) -> str:
        """The group that the matrix falls into; a matrix is told by block and kind."""
        names = {"whole": "", "part": self.part, "kind": self.kind, "block": str(self.block)}
        return names.get(by, f"{self.block}.{self.kind}")


@functools.lru_cache(maxsize=65536)
def place_of(path: str) -> Place:
    """`model.layers.3.self_attn.q_proj` -> block 3, kind self_attn.q_proj, part attn."""
    found = re.fullmatch(r"(?:.*?\.)?(\d+)\.(.+)", path)
    if found is None:
        raise UserError(f"mask: {path!r} is no module path with a block number in it")
    kind = found[2]
    return Place(int(found[1]), kind, "attn" if "attn" in kind or "attention" in kind else "ffn")


class Mask:
    """`bits`: module path -> packed bits; `shapes`: (out, in) of each matrix; `facts`: where the mask comes from.
    `values`: module path -> what the kept weights become, row by row, where the method changes them (SparseGPT): the
    bytes of numbers of the dtype in `facts`."""

    def __init__(
        self,
        bits: Mapping[str, Bits],
        shapes: Mapping[str, Shape],
        facts: Mapping[str, Any] | None = None,
        values: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        assert bits.keys() == shapes.keys()
        self.bits, self.shapes, self.facts = dict(bits), dict(shapes), dict(facts or {})
        self.values = dict(values or {})

    @classmethod
    def of(cls, kept: Mapping[str, np.ndarray], facts: Mapping[str, Any] | None = None) -> Mask:
        """From bool arrays (out, in), True where the weight is kept."""
        bits = {path: np.packbits(np.ascontiguousarray(each, dtype=bool).reshape(-1)) for path, each in kept.items()}
        return cls(bits, {path: (each.shape[0], each.shape[1]) for path, each in kept.items()}, facts)

    def kept(self, path: str) -> np.ndarray:
        """(out, in) bool of one matrix."""
        shape = self.shapes[path]
        return np.unpackbits(self.bits[path], count=math.prod(shape)).astype(bool).reshape(shape)

    # -- counting ----------------------------------------------------------------------------------------------------

    @property
    def num_weights(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_kept(self) -> int:
        return sum(ones(bits) for bits in self.bits.values())

    @property
    def density(self) -> float:
        """Share of the weights that are kept; the sparsity is 1 minus it."""
        return self.num_kept / self.num_weights

    def densities(self, by: By = "matrix") -> dict[str, float]:
        """Share kept in each group of matrices, in the order of the file."""
        counts: dict[str, list[int]] = {}
        for path, bits in self.bits.items():
            count = counts.setdefault(place_of(path).key(by), [0, 0])
            count[0] += ones(bits)
            count[1] += math.prod(self.shapes[path])
        return {key: kept / num for key, (kept, num) in counts.items()}

    # -- algebra -----------------------------------------------------------------------------------------------------

    def __and__(self, other: Mask) -> Mask:
        """Kept in both."""
        return self._with(other, np.bitwise_and, "and")

    def __or__(self, other: Mask) -> Mask:
        """Kept in one of them at least."""
        return self._with(other, np.bitwise_or, "or")

    def __sub__(self, other: Mask) -> Mask:
        """Kept here and not there."""
        return self._with(other, lambda a, b: a & ~b, "minus")

    def __invert__(self) -> Mask:
        """Kept where this one prunes."""
        bits = {path: clear_tail(~np.asarray(each), math.prod(self.shapes[path])) for path, each in self.bits.items()}
        return Mask(bits, self.shapes, model_facts(self.facts) | {"made": ["complement", short(self.facts)]})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask) or self.shapes != other.shapes:
            return False
        return all(np.array_equal(bits, other.bits[path]) for path, bits in self.bits.items())

    __hash__ = None  # type: ignore[assignment]

    def _with(self, other: Mask, combine: Callable[[Bits, Bits], Bits], name: str) -> Mask:
        same_model(self, other)
        bits = {path: combine(each, other.bits[path]) for path, each in self.bits.items()}
        facts = model_facts(self.facts) | {"made": [name, short(self.facts), short(other.facts)]}
        return Mask(bits, self.shapes, facts)

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Whole or not at all. Raises UserError where the disk is full."""
        from safetensors.numpy import save_file

        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "facts": json.dumps(to_json(self.facts))}
        tensors = {name: np.ascontiguousarray(each) for name, each in self.bits.items()}
        tensors |= {VALUES + name: np.ascontiguousarray(each) for name, each in self.values.items()}
        metadata["checksum"] = checksum_of(tensors, metadata)
        replace_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def load(cls, path: Path | str) -> Mask:
        """Bits stay on disk until they are looked at. Raises UserError for what is no mask file."""
        path = Path(path)
        header, start = read_header(path)
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            metadata = metadata if isinstance(metadata, dict) else {}
            raise UserError(f"{path}: not a mask (format {metadata.get('format')!r}, expected {FORMAT})")
        try:
            shapes = {name: (int(a), int(b)) for name, (a, b) in json.loads(metadata["shapes"]).items()}
            facts = current_names(json.loads(metadata["facts"]))  # of how its LLM is loaded
            names = [name for name in header if name in shapes or name.startswith(VALUES)]
            ends = {name: header[name]["data_offsets"] for name in (*shapes, *names)}
            if not shapes or not isinstance(facts, dict):
                raise ValueError("no matrices")
            for name, (start_at, end_at) in ends.items():
                if (header[name]["dtype"], header[name]["shape"]) != ("U8", [end_at - start_at]):
                    raise ValueError(f"{name} is no row of bytes")
            for name, shape in shapes.items():
                if ends[name][1] - ends[name][0] != -(-math.prod(shape) // 8):
                    raise ValueError(f"{name} has {ends[name][1] - ends[name][0]} bytes for {shape} bits")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged mask ({type(error).__name__}: {error}); make it again") from error
        size = start + max(end for _, end in ends.values())
        if path.stat().st_size != size:
            raise UserError(f"{path}: {path.stat().st_size} bytes where its header says {size}; make it again")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        arrays = {name: data[start + a : start + b] for name, (a, b) in ends.items()}
        check_sum(path, arrays, metadata)
        bits = {name: arrays[name] for name in shapes}
        values = {name.removeprefix(VALUES): each for name, each in arrays.items() if name not in shapes}
        return cls(bits, shapes, facts, values)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(header of a safetensors file, where its data begin). Raises UserError where there is none."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path}: {what}; give a mask file (python -m ima masks make ...)")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > path.stat().st_size:
                raise ValueError("no safetensors file, or the beginning of one")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable mask file ({reason})") from error
    return header, 8 + length


def ones(bits: Bits) -> int:
    """Bits that are set, eight bytes at a time."""
    whole = len(bits) // 8 * 8
    words = np.bitwise_count(np.ascontiguousarray(bits[:whole]).view(np.uint64))
    return int(words.sum(dtype=np.int64)) + int(np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


def clear_tail(bits: Bits, num: int) -> Bits:
    """Zero what is past the last weight, where a matrix does not fill its last byte."""
    if num % 8:
        bits[-1] &= (0xFF << (8 - num % 8)) & 0xFF
    return bits


def same_model(a: Mask, b: Mask) -> None:
    """Raises UserError where two masks are not about the same matrices."""
    if a.shapes != b.shapes:
        names = [str(mask.facts.get("llm", "?")) for mask in (a, b)]
        path = min(path for path, _ in a.shapes.items() ^ b.shapes.items())
        raise UserError(
            f"masks of different models ({names[0]} and {names[1]}): they differ at {path}; compare masks of one LLM"
        )


MODEL_FACTS = ("llm", "llm_node", "dtype", "weights")


def model_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in MODEL_FACTS if name in facts}


def short(facts: Mapping[str, Any]) -> str:
    """A name for a mask in the provenance of another."""
    return str(facts.get("name") or facts.get("method") or facts.get("made") or "?")


def intersection(masks: Iterable[Mask]) -> Mask:
    return functools.reduce(lambda a, b: a & b, masks)


def union(masks: Iterable[Mask]) -> Mask:
    return functools.reduce(lambda a, b: a | b, masks)
