"""Layer-wise sparsity after TAMP (arXiv 2504.09897): blocks whose output tokens are more diverse keep more weights.

A block's diversity is the mean of three average cosine distances between the tokens it gives out for one example: among
percepts, among text, and between the two. Its share of pruned weights is inversely proportional to it, scaled so that
the whole has the share that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.prune.sums import ROLE_SETS
from ima.models.llm.frozen import FrozenLLM


def distance_within(sum_D: Tensor, num: int) -> float:
    """Mean cosine distance of all pairs of `num` unit vectors, from their sum."""
    return float(1 - (sum_D @ sum_D - num) / (num * (num - 1)))


@torch.no_grad()
def diversities(llm: FrozenLLM, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Of every block, in order: the mean over the examples that have two percepts and two text tokens. Raises UserError
    where there is none."""
    totals, num = [0.0] * llm.num_blocks, 0
    roles_BS: Tensor | None = None
    groups = [torch.tensor([int(role) for role in ROLE_SETS[name]]) for name in ("percept", "text")]

    def see(block: int) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            assert roles_BS is not None
            states = torch.nn.functional.normalize((out[0] if isinstance(out, tuple) else out).double(), dim=-1)
            for x_SD, roles_S in zip(states, roles_BS, strict=True):
                percepts, texts = (x_SD[torch.isin(roles_S, group.to(roles_S.device))] for group in groups)
                if len(percepts) >= 2 and len(texts) >= 2:
                    p_D, t_D = percepts.sum(0), texts.sum(0)
                    between = float(1 - p_D @ t_D / (len(percepts) * len(texts)))
                    within = distance_within(p_D, len(percepts)) + distance_within(t_D, len(texts))
                    totals[block] += (within + between) / 3

        return hook

    with ExitStack() as stack:
        for block, layer in enumerate(llm.table.blocks):
            stack.callback(layer.register_forward_hook(see(block)).remove)
        for x_BSD, roles_BS in batches:
            percepts_B = (roles_BS == int(Role.PERCEPT)).sum(1)
            texts_B = torch.isin(roles_BS, groups[1].to(roles_BS.device)).sum(1)
            num += int(((percepts_B >= 2) & (texts_B >= 2)).sum())
            llm(x_BSD, roles_BS)
    if not num:
        raise UserError("layers: no calibration example has two percepts and two text tokens; use layers=equal")
    return [total / num for total in totals]


def ratios_of(diversity: Sequence[float], sizes: Sequence[int], ratio: float) -> list[float]:
    """Share of pruned weights of every block: proportional to 1 / diversity, at most 1, together `ratio` of all `sizes`
    weights."""
    weights = [1 / max(each, 1e-9) for each in diversity]
    out = [0.0] * len(weights)
    free, wanted = set(range(len(weights))), ratio * sum(sizes)
    while free:
        scale = wanted / sum(weights[b] * sizes[b] for b in free)
        full = {b for b in free if weights[b] * scale >= 1}
        for b in full or free:
            out[b] = 1.0 if full else weights[b] * scale
        if not full:
            break
        wanted -= sum(sizes[b] for b in full)
        free -= full
    return out
