"""The two ways to calibrate: one shot (unpruned inputs; any number of masks from one pass) and sequential (every block
sees what the already pruned blocks before it give; one run per mask).

Both run stock blocks and see the inputs of their linear maps through hooks. Sequential calibration holds the input of
one block for all examples and the arguments that the model hands its blocks, nothing else; each block runs twice, once
up to its last linear map for the statistics and once, pruned, for the next block's input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.types import Role
from ima.interventions.hooks import Args, Kwargs, shadow, states_of, with_states
from ima.interventions.prune.apply import pruned, replaced
from ima.interventions.prune.mask import Bits
from ima.interventions.prune.scores import linears_of
from ima.interventions.prune.select import pack
from ima.interventions.prune.sums import ROLE_SETS, Sums, Watch
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
def sequential(
    llm: FrozenLLM,
    batches: Iterable[Inputs],
    decide: Decide,
    watching: Callable[[Mapping[str, nn.Linear]], Watch] = Watch,
    values: dict[str, Tensor] | None = None,
    percept_share: float | None = None,
) -> dict[str, Bits]:
    """Module path -> packed bits of what is kept, block by block. The model is bit for bit what it was afterwards.

    watching: makes what collects a block's statistics. values: where `decide` puts the new weights of a matrix, by its
    path, if it gives any; later blocks see these. percept_share: see `changed_percepts`; None: all percepts count.
    """
    held = [hold(llm, x_BSD, roles_BS) for x_BSD, roles_BS in batches]
    linears = linears_of(llm)
    bits: dict[str, Bits] = {}
    with ExitStack() as stack:
        for block, layer in enumerate(llm.table.blocks):
            inside = {id(module) for module in layer.modules()}
            own = {path: linear for path, linear in linears.items() if id(linear) in inside}
            sums = block_sums(layer, block, own, held, watching, percept_share)
            found = {path: decide(path, sums) for path in own}
            bits |= {path: pack(kept) for path, kept in found.items()}
            if block + 1 == llm.num_blocks:
                break
            stack.enter_context(pruned(own, found) if values is None else replaced(own, values.__getitem__))
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


def block_sums(
    layer: Any,
    block: int,
    linears: Mapping[str, Any],
    held: list[CachedBatch],
    watching: Callable[[Mapping[str, nn.Linear]], Watch] = Watch,
    percept_share: float | None = None,
) -> Sums:
    watch = watching(linears)
    waiting: set[str] = set()
    roles = [batch.roles_BS for batch in held]
    if percept_share is not None:
        roles = changed_percepts(layer, block, held, percept_share)

    def seen(path: str) -> None:
        waiting.discard(path)
        if not waiting:
            raise StopForward

    watch.on_seen = seen
    with watch.hooked():
        for batch, roles_BS in zip(held, roles, strict=True):
            waiting.update(linears)
            watch.begin(roles_BS)
            watch.count(roles_BS)
            args, kwargs = with_states(*batch.calls[block], batch.x_BSD)
            try:
                layer(*args, **kwargs)
            except StopForward:
                continue
    return watch.sums


def changed_percepts(layer: Any, block: int, held: list[CachedBatch], share: float) -> list[Tensor]:
    """Roles of every batch in which only the percepts that the block changes most still are percepts, the others
    special (ATV, arXiv 2603.16001).

    Change is the cosine distance between what enters and what leaves the block. Of an example round(min(1, share x the
    mean change of all percepts) x its number of text tokens) percepts stay, at most all it has.
    """
    changes = []
    for batch in held:
        args, kwargs = with_states(*batch.calls[block], batch.x_BSD)
        out_BSD = layer(*args, **kwargs)
        change_BS = 1 - torch.cosine_similarity(batch.x_BSD.float(), out_BSD.float(), dim=-1)
        changes.append(change_BS.masked_fill(batch.roles_BS != int(Role.PERCEPT), -math.inf))
    of_percepts = torch.cat([each[each > -math.inf].double() for each in changes])
    mean = float(of_percepts.mean()) if len(of_percepts) else 0.0
    text = torch.tensor([int(role) for role in ROLE_SETS["text"]])
    out = []
    for batch, change_BS in zip(held, changes, strict=True):
        roles_BS = batch.roles_BS.clone()
        for roles_S, change_S in zip(roles_BS, change_BS, strict=True):
            num = round(min(1.0, share * mean) * int(torch.isin(roles_S, text.to(roles_S.device)).sum()))
            order = change_S.argsort(descending=True, stable=True)[: int((change_S > -math.inf).sum())]
            roles_S[order[num:]] = int(Role.SPECIAL)
        out.append(roles_BS)
    return out
