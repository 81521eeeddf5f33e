"""States of consecutive layers that are processed together, and the buffers that this takes.

One layer of a small batch is too little work for a call, so a layer pass collects some layers to a `LayerChunk`.
States stay in the model's dtype until they are processed. They are then converted to fp32 some samples at a time (a
tile), all layers of these samples, so that the values are still in the CPU's cache when they are used. `EarlierStates`
keeps the last layers, which consecutive similarity compares the chunk with. A `BufferPool` reuses memory from pass to
pass, because fresh pages cost more than the arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ima.alignment.reference_pass import Scale
from ima.models.llm.sites import version_of

MAX_BYTES = 32 * 2**20  # of a chunk, in the dtype of the model
TILE_BYTES = 4 * 2**20  # of a tile in fp32: large enough to make a call cheap, small enough for the cache


class BufferPool:
    """Named buffers that are reused from pass to pass. A name always has the same device and dtype."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def get(self, name: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer of this shape. Its content is whatever was left in it."""
        size = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = torch.empty(size, dtype=dtype, device=device)
        return self.kept[name][:size].view(shape)


class OutputPass(Protocol):
    """The layer pass of the block outputs. Its results are copied for the block inputs, because the input of a block is
    the output of the block before, one layer earlier. The first dimension of every tensor is the layer."""

    layers: list[int]
    means: dict[str, Tensor]
    cosines_LBS: dict[int, Tensor]

    @property
    def norms_LBS(self) -> Tensor: ...

    @property
    def has_LBR(self) -> Tensor: ...

    @property
    def norms_LBR(self) -> Tensor: ...

    @property
    def dots_LBQ(self) -> Tensor: ...

    def take_pending(self) -> Sequence[LayerChunk]:
        """The layers that were added and are not processed yet, as a chunk, if there are any."""
        ...


@dataclasses.dataclass
class LayerChunk:
    """States of consecutive layers in the dtype of the model. versions: the version counter of each state when the tap
    showed it, which tells whether it was written to since. copy_from: the pass that saw the same states one layer
    earlier, if there is one. seen: for each layer the positions that have a state, None for all positions."""

    copy_from: OutputPass | None
    layers: list[int] = dataclasses.field(default_factory=list)
    states: list[Tensor] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)
    scales: list[Scale] = dataclasses.field(default_factory=list)  # empty where no variant needs them
    seen: list[Tensor | None] = dataclasses.field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether one more layer would exceed MAX_BYTES. A single layer is always allowed."""
        first = self.states[0]
        return (len(self.states) + 1) * first.numel() * first.element_size() > MAX_BYTES


@dataclasses.dataclass
class ComparedLayers:
    """The states of a chunk, after those of the earlier layers that it is compared with. pairs: (n, a slice of
    `layers`, the slice of the layers n before them)."""

    layers: list[int]
    states: list[Tensor]
    pairs: list[tuple[int, slice, slice]]

    def tiles(self) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        """(samples, their states) of each tile. On a GPU there is one tile of all samples."""
        first = self.states[0]
        num_bytes = 4 * len(self.states) * first.numel() if first.device.type == "cpu" else 0
        size = -(-len(first) // max(1, -(-num_bytes // TILE_BYTES)))
        tiles = zip(*(x_BSD.split(size) for x_BSD in self.states), strict=True)
        return ((slice(index * size, (index + 1) * size), tile) for index, tile in enumerate(tiles))


class Float32Buffer(threading.local):
    """States in fp32. Each thread has a buffer of its own, which the next call overwrites."""

    def __init__(self) -> None:
        self.buffers = BufferPool()

    def stack(self, states: Sequence[Tensor]) -> Tensor:
        """x_LBSD."""
        first = states[0]
        if len(states) == 1 and first.dtype == torch.float32:
            return first[None]
        shape = len(states), *first.shape
        stacked_LBSD = self.buffers.get(str(first.dtype), shape, first.device, first.dtype)
        torch.stack(list(states), out=stacked_LBSD)
        if first.dtype == torch.float32:
            return stacked_LBSD
        return self.buffers.get("states", shape, first.device).copy_(stacked_LBSD)


class EarlierStates:
    """The states of the last layers of a pass. They are no copies: nobody may write to them until they are dropped."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, int]] = {}

    def keep(self, chunk: LayerChunk) -> None:
        self.kept |= zip(chunk.layers, zip(chunk.states, chunk.versions, strict=True), strict=True)

    def with_chunk(self, chunk: LayerChunk, wanted: Mapping[int, Sequence[int]]) -> ComparedLayers:
        """The chunk, together with the kept layers that are n before a layer in wanted[n]."""
        found = {layer - n for n, layers in wanted.items() for layer in layers} & self.kept.keys()
        before = sorted(found - set(chunk.layers))
        layers = before + chunk.layers
        at = {layer: index for index, layer in enumerate(layers)}
        pairs = []
        for n, compared in wanted.items():
            both = [(at[layer], at[layer - n]) for layer in compared if layer - n in at]
            pairs += [(n, *slices) for slices in consecutive_runs(both)]
        return ComparedLayers(layers, [unchanged(*self.kept[layer]) for layer in before] + chunk.states, pairs)

    def drop(self, layer: int | None = None) -> None:
        """Drop this layer and those before it. Without an argument drop all."""
        self.kept = {} if layer is None else {at: kept for at, kept in self.kept.items() if at > layer}


def unchanged(x: Tensor, version: int) -> Tensor:
    assert version_of(x) == version, "a state was written to after it was shown"
    return x


def consecutive_runs(both: Sequence[tuple[int, int]]) -> Iterator[tuple[slice, slice]]:
    """Pairs of indices, as pairs of slices in which both indices grow by one."""
    start = 0
    for end in range(1, len(both) + 1):
        if end == len(both) or both[end] != (both[end - 1][0] + 1, both[end - 1][1] + 1):
            yield slice(both[start][0], both[end - 1][0] + 1), slice(both[start][1], both[end - 1][1] + 1)
            start = end
