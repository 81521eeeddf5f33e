"""States of layers that follow each other, made fp32 together, and those of earlier layers that they are compared with.

Whatever the model computes in, all that is measured is fp32.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ima.alignment.scales import Scale
from ima.llm.sites import version_of

if TYPE_CHECKING:
    from ima.alignment.passes import Pass

MAX_LAYERS, MAX_BYTES = 8, 16 * 2**20  # of a stretch: what a call costs is then little, and it stays in the CPU's cache


class Rooms:
    """Memory that is used again from pass to pass: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def room(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A place of this shape, fp32; its content is what was left there."""
        size = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = torch.empty(size, dtype=torch.float32, device=like.device)
        return self.kept[name][:size].view(shape)


class Floats(threading.local):
    """States in fp32, layer after layer in places of each thread's own, which the next of the same name overwrites."""

    def __init__(self) -> None:
        self.rooms = Rooms()

    def of(self, name: str, states: Sequence[Tensor]) -> Tensor:
        """x_LBSD."""
        first = states[0]
        if len(states) == 1 and first.dtype == torch.float32:
            return first[None]
        made_LBSD = self.rooms.room(name, (len(states), *first.shape), first)
        for made_BSD, x_BSD in zip(made_LBSD, states, strict=True):
            made_BSD.copy_(x_BSD)
        return made_LBSD


@dataclasses.dataclass
class Stretch:
    """States of layers that follow each other, as they came, with their versions when they were shown, which may be
    earlier. lender: who saw the same states a layer before."""

    lender: Pass | None
    layers: list[int] = dataclasses.field(default_factory=list)
    states: list[Tensor] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)
    scales: list[Scale] = dataclasses.field(default_factory=list)  # empty where the plan needs none

    @property
    def capacity(self) -> int:
        """In layers; one where states are large."""
        return min(MAX_LAYERS, max(1, MAX_BYTES // (4 * self.states[0].numel())))


@dataclasses.dataclass
class Kept:
    """A state: one of a block. room: where the block is, if it is fp32 in a place of our own; version: the state's, if
    it is as it came."""

    block_LBSD: Tensor
    index: int
    room: str | None = None
    version: int = 0


class Earlier:
    """States of earlier layers of a pass: small ones in fp32, each stretch side by side; large ones as they came, so
    that nobody may write to them before they are forgotten."""

    def __init__(self, rooms: Rooms, floats: Floats) -> None:
        self.rooms, self.floats = rooms, floats
        self.kept: dict[int, Kept] = {}

    def __contains__(self, layer: int) -> bool:
        return layer in self.kept

    def keep(self, stretch: Stretch) -> Tensor:
        """x_LBSD of the stretch, fp32."""
        first = stretch.states[0]
        if stretch.capacity == 1 or first.device.type != "cpu":
            self.keep_as_they_came(stretch)
            return self.floats.of("states", stretch.states)
        used = {kept.room for kept in self.kept.values()}
        room = next(name for name in map(str, itertools.count()) if name not in used)
        x_LBSD = self.rooms.room(room, (len(stretch.states), *first.shape), first)
        for index, (layer, x_BSD) in enumerate(zip(stretch.layers, stretch.states, strict=True)):
            x_LBSD[index] = x_BSD
            self.kept[layer] = Kept(x_LBSD, index, room=room)
        return x_LBSD

    def keep_as_they_came(self, stretch: Stretch) -> None:
        for layer, x_BSD, version in zip(stretch.layers, stretch.states, stretch.versions, strict=True):
            self.kept[layer] = Kept(x_BSD[None], 0, version=version)

    def before(self, n: int, layers: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
        """Which of `layers` have their states n layers before side by side, and these, fp32: all that are kept. Each is
        valid until the next."""
        end = 0
        while end < len(layers):
            start, end = end, end + 1
            if layers[start] - n not in self.kept:
                continue
            kept = self.kept[layers[start] - n]
            while end < len(layers) and self._is_beside(layers[end] - n, kept, end - start):
                end += 1
            x_LBSD = kept.block_LBSD[kept.index : kept.index + end - start]
            if kept.room is None:
                x_LBSD = self.floats.of("before", [unchanged(x_LBSD[0], kept.version)])
            yield slice(start, end), x_LBSD

    def _is_beside(self, layer: int, kept: Kept, num: int) -> bool:
        other = self.kept.get(layer)
        return other is not None and other.block_LBSD is kept.block_LBSD and other.index == kept.index + num

    def forget(self, layer: int | None = None) -> None:
        """The states of this layer and of those before; all."""
        self.kept = {} if layer is None else {at: kept for at, kept in self.kept.items() if at > layer}


def unchanged(x: Tensor, version: int) -> Tensor:
    assert version_of(x) == version, "a state was written to after it was shown"
    return x
