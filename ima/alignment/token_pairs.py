"""Similarity of single tokens: what the cosines between each P and each T token of two examples amount to.

For a P side of n and a T side of m tokens there are n m cosines; `median` (of an even number: the mean of the middle
two), `max`, `min`, `mean` and `maxmean` (each P token's best T token, on average) reduce them to one number. They do
not factorise over examples, so they are of the reservoir. Zero vectors have cosine 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.scores import jackknife_se
from ima.alignment.views import group_of

SCORES = {"median": "medsim", "max": "maxsim", "min": "minsim", "mean": "meansim", "maxmean": "maxmeansim"}


def pair_scores(p_tokens: Sequence[Tensor], t_tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """value_EE of each of SCORES: row a the P tokens of example a, column b the T tokens of b; NaN where either has
    none. One row at a time, so that memory grows with the examples, not with their pairs."""
    num, longest = len(t_tokens), max((len(t) for t in t_tokens), default=0)
    result = {name: torch.full((len(p_tokens), num), torch.nan) for name in SCORES}
    if not longest:
        return result
    units_EMD = torch.zeros(num, longest, t_tokens[0].shape[-1])
    there_EM = torch.zeros(num, longest, dtype=torch.bool)
    for index, t in enumerate(t_tokens):
        units_EMD[index, : len(t)] = normalize(t, dim=-1)
        there_EM[index, : len(t)] = True
    has_E = there_EM.any(1)
    for a, p in enumerate(p_tokens):
        if len(p):
            cosine_ENM = torch.einsum("nd,emd->enm", normalize(p, dim=-1), units_EMD)
            for name, value_E in reduced(cosine_ENM, there_EM).items():
                result[name][a] = torch.where(has_E, value_E, torch.nan)
    return result


def reduced(cosine_ENM: Tensor, there_EM: Tensor) -> dict[str, Tensor]:
    num_p = cosine_ENM.shape[1]
    there_E1M = there_EM[:, None]
    count_E = there_EM.sum(1) * num_p
    low_ENM = cosine_ENM.masked_fill(~there_E1M, -torch.inf)
    high_EX = cosine_ENM.masked_fill(~there_E1M, torch.inf).flatten(1).sort(dim=1).values
    middle = [high_EX.gather(1, ((count_E - odd) // 2).clamp_min(0)[:, None])[:, 0] for odd in (1, 0)]
    return {
        "median": (middle[0] + middle[1]) / 2,
        "max": low_ENM.amax((1, 2)),
        "min": high_EX[:, 0],
        "mean": (cosine_ENM * there_E1M).sum((1, 2)) / count_E.clamp_min(1),
        "maxmean": low_ENM.amax(2).mean(1),
    }


def group_sums(value_EE: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of groups [G', G'] of what is not NaN, and how many."""
    groups = [group_of(name) for name in ids]
    used = sorted(set(groups))
    onehot_GE = torch.zeros(len(used), len(groups), dtype=torch.float64)
    for index, group in enumerate(groups):
        onehot_GE[used.index(group), index] = 1
    known = ~value_EE.isnan()
    sums = onehot_GE @ value_EE.double().nan_to_num(0.0) @ onehot_GE.T
    return sums, onehot_GE @ known.double() @ onehot_GE.T


def mean_of_pairs(value_EE: Tensor, ids: Sequence[str]) -> tuple[float, float, int]:
    """Mean over the entries that are not NaN, its jackknife error (a group is left out as row and as column), and how
    many entries there are."""
    sums, counts = group_sums(value_EE, ids)

    def left(x: Tensor) -> Tensor:
        return x.sum() - x.sum(1) - x.sum(0) + x.diagonal()

    n = int(counts.sum())
    if not n:
        return float("nan"), float("nan"), 0
    return float(sums.sum() / n), float(jackknife_se(left(sums) / left(counts))), n


def within_and_across(value_EE: Tensor, ids: Sequence[str]) -> dict[str, tuple[float, float, int]]:
    """`matched`: a = b; `across`: a != b."""
    same = torch.eye(len(ids), dtype=torch.bool)
    return {
        "matched": mean_of_pairs(value_EE.where(same, torch.nan), ids),
        "across": mean_of_pairs(value_EE.where(~same, torch.nan), ids),
    }
