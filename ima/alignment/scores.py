"""From sums to scores with standard errors.

Every similarity is computed once on all jackknife groups and once with each group left out; where fewer
than two groups have examples the standard error is NaN. IMA is the mean over layers 1..L of the same-layer P-T
similarity; taking P from layer 0 gives its twin.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ima.alignment.reference_pass import quantiles_of
from ima.alignment.streaming.places import dot
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.views import MATCHED_ONLY, NORM_VIEWS, NUM_GROUPS, group_of, split_view

QUANTILES = (0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A score per layer with its standard error and number of examples (or tokens, or pairs). `value_L` has NaN where
    nothing was seen; `leave_out_GL` holds the leave-one-group-out values (rows of empty groups removed)."""

    value_L: Tensor
    leave_out_GL: Tensor
    n_L: Tensor

    @property
    def n(self) -> int:
        return int(self.n_L.max())

    @property
    def se_L(self) -> Tensor:
        return jackknife_se(self.leave_out_GL)

    def mean(self, start: int = 0) -> tuple[float, float]:
        """Value and standard error of the mean over layers from `start` on."""
        return float(self.value_L[start:].mean()), float(jackknife_se(self.leave_out_GL[:, start:].mean(1)))


def jackknife_se(leave_out_GX: Tensor) -> Tensor:
    """Delete-group jackknife: sqrt((G - 1) / G * sum (x_g - mean)^2) over the groups that have examples."""
    groups = leave_out_GX.shape[0]
    if groups < 2:
        return torch.full(leave_out_GX.shape[1:], torch.nan)
    return ((groups - 1) / groups * (leave_out_GX - leave_out_GX.mean(0)).square().sum(0)).sqrt()


def with_leave_outs(sum_LGX: Tensor, used_G: Tensor) -> Tensor:
    """[1 + G', L, ...]: the sum over all groups, then without each used group."""
    total = sum_LGX.sum(1)
    return torch.cat([total[None], total[None] - sum_LGX[:, used_G].transpose(0, 1)])


@dataclasses.dataclass(frozen=True)
class Side:
    """One view's sums of unit means in fp64, and their total over the groups."""

    sum_LGD: Tensor
    total_L1D: Tensor

    @classmethod
    def of(cls, sum_LGD: Tensor) -> Side:
        sum_LGD = sum_LGD.double()
        return cls(sum_LGD, sum_LGD.sum(1, keepdim=True))

    def at(self, layer: int) -> Side:
        return Side(self.sum_LGD[layer : layer + 1], self.total_L1D[layer : layer + 1])


class Sides(dict[str, Side]):
    """The sides of one site by view, each made once. `stats` must not change meanwhile."""

    def __init__(self, stats: SiteStats) -> None:
        super().__init__()
        self.stats = stats

    def __missing__(self, view: str) -> Side:
        self[view] = Side.of(self.stats.unit_sum_LGRD[:, :, self.stats.plan.views.index(view)].cpu())
        return self[view]


def products(a: Side, b: Side, used_G: Tensor) -> Tensor:
    """[1 + G', L]: (sum a)(sum b) over all groups, then without each used group, without making those sums. One side
    may have a single layer for all."""
    whole_L = dot(a.total_L1D, b.total_L1D)[:, 0]
    mixed_LG = torch.matmul(b.sum_LGD, a.total_L1D.mT)[..., 0]
    mixed_LG = mixed_LG + (mixed_LG if a is b else torch.matmul(a.sum_LGD, b.total_L1D.mT)[..., 0])
    own_LG = dot(a.sum_LGD, b.sum_LGD)
    return torch.cat([whole_L[None], (whole_L[:, None] - mixed_LG + own_LG)[:, used_G].T])


def positive(count: Tensor) -> Tensor:
    """A divisor: NaN where there is nothing, since rounding over no pairs would be infinite."""
    return count.where(count > 0, torch.nan)


def similarity(
    stats: SiteStats, view_a: str, view_b: str, layer_a: int | None = None, sides: Sides | None = None
) -> dict[str, Curve]:
    """sim (all pairs), sim_matched (a = b) and sim_gap = matched - mean over a != b, for layers 0..L. Of centred views
    there is only sim_matched.

    layer_a: None for the same layer, or the fixed layer that `view_a` is taken from (then only `sim` is defined,
    since the matched cosine is streamed for equal layers). sides: where several scores of one site are asked for.
    """
    sides = Sides(stats) if sides is None else sides
    a, b = stats.plan.views.index(view_a), stats.plan.views.index(view_b)
    count_LGR = stats.count_LGR.double().cpu()
    layers = slice(None) if layer_a is None else slice(layer_a, layer_a + 1)
    used_G = (count_LGR[..., a] + count_LGR[..., b]).sum(0) > 0
    count_a = with_leave_outs(count_LGR[layers, :, a], used_G)
    count_b = with_leave_outs(count_LGR[:, :, b], used_G)
    n_L = torch.minimum(count_a[0], count_b[0])
    curves = {}
    matched_only = split_view(view_a)[1] in MATCHED_ONLY
    if not matched_only:
        product = products(sides[view_a] if layer_a is None else sides[view_a].at(layer_a), sides[view_b], used_G)
        curves["sim"] = product / positive(count_a * count_b)
    if layer_a is None:
        q = stats.plan.pairs.index((view_a, view_b))
        matched_sum = with_leave_outs(stats.matched_LGQ[:, :, q].double().cpu(), used_G)
        matched_n = with_leave_outs(stats.matched_count_LGQ[:, :, q].double().cpu(), used_G)
        curves["sim_matched"] = matched_sum / positive(matched_n)
        if not matched_only:
            others = count_a * count_b - matched_n  # a pair needs two examples
            curves["sim_gap"] = curves["sim_matched"] - (product - matched_sum) / positive(others)
    return {name: Curve(values[0], values[1:], n_L) for name, values in curves.items()}


def cone(stats: SiteStats, view: str, sides: Sides | None = None) -> Curve:
    """Mean cosine over the distinct pairs of examples within one dataset: (|sum u|^2 - n) / (n (n - 1)), where the n
    that is taken off counts the examples whose u is not zero. NaN for fewer than two examples."""
    r = stats.plan.views.index(view)
    count_LG = stats.count_LGR[..., r].double().cpu()
    used_G = count_LG.sum(0) > 0
    count = with_leave_outs(count_LG, used_G)
    own = with_leave_outs(stats.nonzero_LGR[..., r].double().cpu(), used_G)
    side = (Sides(stats) if sides is None else sides)[view]
    square = products(side, side, used_G)
    value = (square - own) / positive(count * (count - 1))
    return Curve(value[0], value[1:], count[0])


def consecutive(stats: SiteStats, step: int, view: str) -> Curve:
    """Mean over tokens of cos(x_l, x_{l + step}), the same token of the same example; layers 0..L - step. NaN where
    no token is seen at both."""
    r = NORM_VIEWS.index(view)
    count_LG = stats.step_count_LGR[step][:, :, r].double().cpu()
    used_G = count_LG.sum(0) > 0
    sums = with_leave_outs(stats.step_sum_LGR[step][:, :, r].double().cpu(), used_G)
    values = sums / positive(with_leave_outs(count_LG, used_G))
    return Curve(values[0], values[1:], count_LG.sum(1))


def norm_quantiles(stats: SiteStats, view: str) -> Tensor:
    """[3, L] quartiles of the token norms, within half a bin (0.5 %); NaN where the view is empty."""
    hist_LH = stats.norm_hist_LRH[:, NORM_VIEWS.index(view)]
    return quantiles_of(hist_LH, QUANTILES)


def mean_with_error(value_E: Tensor, ids: Sequence[str]) -> tuple[float, float, int]:
    """Mean over the examples whose value is not NaN, its jackknife error, and how many they are."""
    known_E = ~value_E.isnan()
    if not bool(known_E.any()):
        return math.nan, math.nan, 0
    groups = torch.tensor([group_of(name) for name in ids])[known_E]
    onehot_EG = torch.nn.functional.one_hot(groups, NUM_GROUPS).double()
    sums_G, counts_G = value_E[known_E].double() @ onehot_EG, onehot_EG.sum(0)
    used_G = counts_G > 0
    left = (sums_G.sum() - sums_G[used_G]) / (counts_G.sum() - counts_G[used_G])
    return float(value_E[known_E].double().mean()), float(jackknife_se(left)), int(known_E.sum())


def average(curves: list[Curve]) -> Curve:
    """The mean of curves of the same examples (the jackknife groups are the same)."""
    values = torch.stack([curve.value_L for curve in curves]).mean(0)
    leave_outs = torch.stack([curve.leave_out_GL for curve in curves]).mean(0)
    return Curve(values, leave_outs, torch.stack([curve.n_L for curve in curves]).amin(0))
