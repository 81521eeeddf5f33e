"""The two ways to calibrate: one shot (unpruned inputs; any number of masks from one pass) and sequential (every block
sees what the already pruned blocks before it give; one run per mask).

Both run stock blocks and see the inputs of their linear maps through hooks. Sequential calibration holds the input of
one block for all examples and the arguments that the model hands its blocks, nothing else; each block runs twice, once
up to its last linear map for the statistics and once, pruned, for the next block's input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ima.interventions.hooks import Args, Kwargs, shadow, states_of, with_states
from ima.interventions.prune.apply import pruned
from ima.interventions.prune.mask import Bits
from ima.interventions.prune.scores import linears_of
from ima.interventions.prune.select import pack
from ima.interventions.prune.sums import Sums, Watch
from ima.models.llm.frozen import FrozenLLM

Inputs = tuple[Tensor, Tensor]  # x_BSD, roles_BS
Decide = Callable[[str, Sums], Tensor]  # module path, statistics of its block -> kept (out, in)


@torch.no_grad()
def one_shot(llm: FrozenLLM, batches: Iterable[Inputs]) -> Sums:
    """Statistics of all blocks from one plain pass over the batches."""
    watch = Watch(linears_of(llm))
    with watch.hooked():
        for x_BSD, roles_BS in batches:
            watch.begin(roles_BS)
            watch.count(roles_BS)
            llm(x_BSD, roles_BS)
    return watch.sums


@dataclasses.dataclass
class CachedBatch:
    """One batch on its way through the blocks: what enters the next one, and how the model calls each."""

    x_BSD: Tensor
    roles_BS: Tensor
    calls: list[tuple[Args, Kwargs]]


class StopForward(Exception):
    """All linear maps of the block have been seen: the rest of its pass is not needed."""


@torch.no_grad()
def sequential(llm: FrozenLLM, batches: Iterable[Inputs], decide: Decide) -> dict[str, Bits]:
    """Module path -> packed bits of what is kept, block by block. The model is bit for bit what it was afterwards."""
    held = [hold(llm, x_BSD, roles_BS) for x_BSD, roles_BS in batches]
    linears = linears_of(llm)
    bits: dict[str, Bits] = {}
    with ExitStack() as stack:
        for block, layer in enumerate(llm.table.blocks):
            inside = {id(module) for module in layer.modules()}
            own = {path: linear for path, linear in linears.items() if id(linear) in inside}
            sums = block_sums(layer, block, own, held)
            found = {path: decide(path, sums) for path in own}
            bits |= {path: pack(kept) for path, kept in found.items()}
            if block + 1 == llm.num_blocks:
                break
            stack.enter_context(pruned(own, found))
            for batch in held:
                args, kwargs = with_states(*batch.calls[block], batch.x_BSD)
                batch.x_BSD = layer(*args, **kwargs)
                batch.calls[block] = ((), {})
    return bits


def hold(llm: FrozenLLM, x_BSD: Tensor, roles_BS: Tensor) -> CachedBatch:
    """Input of the first block and the arguments of all, from a pass in which no block computes anything."""
    calls: list[tuple[Args, Kwargs]] = []
    first: list[Tensor] = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        x = states_of(args, kwargs)
        if not first:
            first.append(x)
        calls.append(with_states(args, kwargs, x.new_empty(0)))
        return x

    with ExitStack() as stack:
        for layer in llm.table.blocks:
            shadow(stack, layer, record)
        llm(x_BSD, roles_BS)
    return CachedBatch(first[0], roles_BS, calls)


def block_sums(layer: Any, block: int, linears: Mapping[str, Any], held: list[CachedBatch]) -> Sums:
    watch = Watch(linears)
    waiting: set[str] = set()

    def seen(path: str) -> None:
        waiting.discard(path)
        if not waiting:
            raise StopForward

    watch.on_seen = seen
    with watch.hooked():
        for batch in held:
            waiting.update(linears)
            watch.begin(batch.roles_BS)
            watch.count(batch.roles_BS)
            args, kwargs = with_states(*batch.calls[block], batch.x_BSD)
            try:
                layer(*args, **kwargs)
            except StopForward:
                continue
    return watch.sums
