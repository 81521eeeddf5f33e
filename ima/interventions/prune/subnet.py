"""The α-SubNet: what the Wanda masks of all tasks keep in common, at a sparsity that is asked for.

A weight is kept by task t at per-task sparsity s where its rank in its row is at least floor(s * in); by all tasks
where the smallest of its ranks is. So one histogram of smallest ranks gives the final sparsity for every s, and the
search for s costs nothing. The union of the masks is the same with the largest ranks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ima.interventions.prune.select import keep_by, num_pruned, ranks

Reduce = Literal["intersection", "union"]
TaskScores = Callable[[str], Sequence[Tensor]]  # module path -> scores (out, in) of every task


@dataclasses.dataclass(frozen=True)
class Found:
    """task_ratio: of each task's mask; final_ratio: of the whole, as counted."""

    task_ratio: float
    final_ratio: float


def reduced_ranks(scores: Sequence[Tensor], reduce: Reduce) -> Tensor:
    """int32 (out, in): the smallest (union: largest) of the tasks' ranks within the row."""
    combine = torch.minimum if reduce == "intersection" else torch.maximum
    out = ranks(scores[0])
    for score in scores[1:]:
        out = combine(out, ranks(score))
    return out


def curve(scores: TaskScores, shapes: Mapping[str, tuple[int, int]], reduce: Reduce) -> dict[int, np.ndarray]:
    """For each row length: how many weights have a reduced rank below n, n = 0 .. length."""
    counts: dict[int, np.ndarray] = {}
    for path, (_, length) in shapes.items():
        found = torch.bincount(reduced_ranks(scores(path), reduce).reshape(-1), minlength=length).cpu().numpy()
        counts[length] = counts.get(length, 0) + found
    return {length: np.concatenate([[0], np.cumsum(found)]) for length, found in counts.items()}


def search(below: Mapping[int, np.ndarray], final_ratio: float) -> Found:
    """The per-task sparsity whose outcome is nearest to `final_ratio` (the lower one of two equally near)."""
    total = sum(int(found[-1]) for found in below.values())
    candidates = sorted({n / length for length in below for n in range(length + 1)})
    finals = [sum(int(found[num_pruned(n, s)]) for n, found in below.items()) / total for s in candidates]
    best = min(range(len(candidates)), key=lambda index: (abs(finals[index] - final_ratio), candidates[index]))
    return Found(candidates[best], finals[best])


def combined(scores: Sequence[Tensor], task_ratio: float, reduce: Reduce) -> Tensor:
    """bool (out, in) of one matrix: the tasks' masks by row at `task_ratio`, intersected or united."""
    combine = torch.logical_and if reduce == "intersection" else torch.logical_or
    return functools.reduce(combine, [keep_by("row", score, task_ratio) for score in scores])
