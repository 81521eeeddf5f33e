"""Similarity of single tokens: what the cosines between each P and each T token of two examples amount to.

For a P side of n and a T side of m tokens there are n m cosines; `median` (of an even number: the mean of the middle
two), `max`, `min`, `mean` and `maxmean` (each P token's best T token, on average) reduce them to one number. They do
not factorise over examples, so they are of the reservoir. Zero vectors have cosine 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.scores import jackknife_se
from ima.alignment.views import group_of

CHUNK = 1 << 22  # cosines at a time
SCORES = {"median": "medsim", "max": "maxsim", "min": "minsim", "mean": "meansim", "maxmean": "maxmeansim"}


def pair_scores(p_tokens: Sequence[Tensor], t_tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """value_AE of each of SCORES: row a the P tokens of example a, column e the T tokens of e; NaN where either has
    none. Some rows at a time, so that memory grows with the examples, not with their pairs."""
    p_AND, has_AN = padded(p_tokens)
    t_EMD, has_EM = padded(t_tokens)
    result = {name: torch.full((len(p_tokens), len(t_tokens)), torch.nan) for name in SCORES}
    both_AE = has_AN.any(1)[:, None] & has_EM.any(1)
    if not bool(both_AE.any()):
        return result
    rows = max(1, CHUNK // (has_AN.shape[1] * has_EM.numel()))
    for start in range(0, len(p_tokens), rows):
        part = slice(start, start + rows)
        flat_XY = p_AND[part].flatten(0, 1) @ t_EMD.flatten(0, 1).T
        cosine_ANEM = flat_XY.view(-1, has_AN.shape[1], *has_EM.shape)
        for name, value_AE in reduced(cosine_ANEM.transpose(1, 2), has_AN[part], has_EM).items():
            result[name][part] = torch.where(both_AE[part], value_AE, torch.nan)
    return result


def padded(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Unit vectors u_END, zero where an example has fewer tokens than another, and which are there."""
    longest = max((len(x) for x in tokens), default=0)
    units_END = torch.zeros(len(tokens), longest, tokens[0].shape[-1] if tokens else 1)
    there_EN = torch.arange(longest) < torch.tensor([len(x) for x in tokens])[:, None]
    if tokens:
        units_END[there_EN] = normalize(torch.cat(list(tokens)), dim=-1)
    return units_END, there_EN


def reduced(cosine_AENM: Tensor, has_AN: Tensor, has_EM: Tensor) -> dict[str, Tensor]:
    there_AENM = has_AN[:, None, :, None] & has_EM[None, :, None, :]
    num_AE = has_AN.sum(1)[:, None] * has_EM.sum(1)
    low_AENM = cosine_AENM.masked_fill(~there_AENM, -torch.inf)
    high_AEX = cosine_AENM.masked_fill(~there_AENM, torch.inf).flatten(2)
    high_AEX = torch.from_numpy(np.sort(high_AEX.numpy()))  # several times as fast as torch's, which keeps ties stable
    middle = [high_AEX.gather(2, ((num_AE - odd) // 2).clamp_min(0)[..., None])[..., 0] for odd in (1, 0)]
    best_AEN = low_AENM.amax(3)
    return {
        "median": (middle[0] + middle[1]) / 2,
        "max": best_AEN.amax(2),
        "min": high_AEX[..., 0],
        "mean": (cosine_AENM * there_AENM).sum((2, 3)) / num_AE.clamp_min(1),
        "maxmean": best_AEN.where(has_AN[:, None], 0.0).sum(2) / has_AN.sum(1).clamp_min(1)[:, None],
    }


@functools.lru_cache(maxsize=4)
def onehot_of(ids: tuple[str, ...]) -> Tensor:
    """onehot_GE of the jackknife groups that have examples."""
    groups = torch.tensor([group_of(name) for name in ids])
    return (groups == groups.unique()[:, None]).double()


def group_sums(value_EE: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of groups [G', G'] of what is not NaN, and how many."""
    onehot_GE = onehot_of(tuple(ids))
    known = ~value_EE.isnan()
    sums = onehot_GE @ value_EE.double().nan_to_num(0.0) @ onehot_GE.T
    return sums, onehot_GE @ known.double() @ onehot_GE.T


def mean_of_pairs(value_EE: Tensor, ids: Sequence[str]) -> tuple[float, float, int]:
    """Mean over the entries that are not NaN, its jackknife error (a group that has any is left out as row and as
    column), and how many entries there are."""
    sums, counts = group_sums(value_EE, ids)

    def left(x: Tensor) -> Tensor:
        return x.sum() - x.sum(1) - x.sum(0) + x.diagonal()

    n = int(counts.sum())
    if not n:
        return float("nan"), float("nan"), 0
    used_G = counts.sum(0) + counts.sum(1) > 0
    return float(sums.sum() / n), float(jackknife_se(left(sums) / left(counts), used_G)), n


def within_and_across(value_EE: Tensor, ids: Sequence[str]) -> dict[str, tuple[float, float, int]]:
    """`matched`: a = b; `across`: a != b."""
    same = torch.eye(len(ids), dtype=torch.bool)
    return {
        "matched": mean_of_pairs(value_EE.where(same, torch.nan), ids),
        "across": mean_of_pairs(value_EE.where(~same, torch.nan), ids),
    }
