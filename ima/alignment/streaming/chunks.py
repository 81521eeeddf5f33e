"""States of layers that follow each other, looked at together, and those of earlier layers they are compared with.

Whatever the model computes in, all that is measured is fp32. States stay as they came until they are looked at, and
are then made fp32 a few samples at a time, all layers of these: what is made of them is found in the CPU's cache.
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

MAX_BYTES = 32 * 2**20  # of a stretch, as it came
TILE_BYTES = 4 * 2**20  # of some samples in fp32: what a call costs is then little, and they stay in the cache


class Rooms:
    """Memory that is used again from pass to pass: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def room(self, name: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """A place of this shape; its content is what was left there. One name has one device and one dtype."""
        size = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = torch.empty(size, dtype=dtype, device=device)
        return self.kept[name][:size].view(shape)


class Lender(Protocol):
    """The part of a pass that lends what it found: it saw the same states a layer before. Layers first in all of it."""

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

    def rest(self) -> Sequence[Stretch]:
        """What was added and not looked at yet."""
        ...


@dataclasses.dataclass
class Stretch:
    """States of layers that follow each other, as they came, with their versions when they were shown, which may be
    earlier. lender: who saw the same states a layer before. seen: of each layer the positions that are states, None
    for all."""

    lender: Lender | None
    layers: list[int] = dataclasses.field(default_factory=list)
    states: list[Tensor] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)
    scales: list[Scale] = dataclasses.field(default_factory=list)  # empty where the plan needs none
    seen: list[Tensor | None] = dataclasses.field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether another layer would be too much; one never is."""
        first = self.states[0]
        return (len(self.states) + 1) * first.numel() * first.element_size() > MAX_BYTES


@dataclasses.dataclass
class Block:
    """States of some layers, in order. pairs: (n, where layers are, where those n before them are), of layers that
    stand side by side at both places."""

    layers: list[int]
    states: list[Tensor]
    pairs: list[tuple[int, slice, slice]]

    def tiles(self) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        """Samples that are made fp32 at a time, and their states: all where there is no cache to keep them in."""
        first = self.states[0]
        num_bytes = 4 * len(self.states) * first.numel() if first.device.type == "cpu" else 0
        size = -(-len(first) // max(1, -(-num_bytes // TILE_BYTES)))
        tiles = zip(*(x_BSD.split(size) for x_BSD in self.states), strict=True)
        return ((slice(index * size, (index + 1) * size), tile) for index, tile in enumerate(tiles))


class Floats(threading.local):
    """States in fp32, in a place of each thread's own, which the next overwrite."""

    def __init__(self) -> None:
        self.rooms = Rooms()

    def of(self, states: Sequence[Tensor]) -> Tensor:
        """x_LBSD."""
        first = states[0]
        if len(states) == 1 and first.dtype == torch.float32:
            return first[None]
        shape = len(states), *first.shape
        came_LBSD = self.rooms.room(str(first.dtype), shape, first.device, first.dtype)
        torch.stack(list(states), out=came_LBSD)
        if first.dtype == torch.float32:
            return came_LBSD
        return self.rooms.room("states", shape, first.device).copy_(came_LBSD)


class Earlier:
    """States of earlier layers of a pass, as they came, so that nobody may write to them before they are forgotten."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, int]] = {}

    def keep(self, stretch: Stretch) -> None:
        self.kept |= zip(stretch.layers, zip(stretch.states, stretch.versions, strict=True), strict=True)

    def beside(self, stretch: Stretch, wanted: Mapping[int, Sequence[int]]) -> Block:
        """The stretch, before it those of the layers n before wanted[n] that are kept, and which pairs they make."""
        found = {layer - n for n, layers in wanted.items() for layer in layers} & self.kept.keys()
        before = sorted(found - set(stretch.layers))
        layers = before + stretch.layers
        at = {layer: index for index, layer in enumerate(layers)}
        pairs = []
        for n, its in wanted.items():
            both = [(at[layer], at[layer - n]) for layer in its if layer - n in at]
            pairs += [(n, *places) for places in side_by_side(both)]
        return Block(layers, [unchanged(*self.kept[layer]) for layer in before] + stretch.states, pairs)

    def forget(self, layer: int | None = None) -> None:
        """The states of this layer and of those before; all."""
        self.kept = {} if layer is None else {at: kept for at, kept in self.kept.items() if at > layer}


def unchanged(x: Tensor, version: int) -> Tensor:
    assert version_of(x) == version, "a state was written to after it was shown"
    return x


def side_by_side(both: Sequence[tuple[int, int]]) -> Iterator[tuple[slice, slice]]:
    """Pairs of places, as stretches in which both go on by one."""
    start = 0
    for end in range(1, len(both) + 1):
        if end == len(both) or both[end] != (both[end - 1][0] + 1, both[end - 1][1] + 1):
            yield slice(both[start][0], both[end - 1][0] + 1), slice(both[start][1], both[end - 1][1] + 1)
            start = end
