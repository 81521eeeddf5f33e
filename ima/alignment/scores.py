"""From sums to scores with standard errors.

Every similarity is computed once on all jackknife groups and once without each group. The standard error of a layer
uses only the groups that have something there: under a skip, a site may lack the tokens of some examples, and leaving
out a group without any changes nothing. Where fewer than two groups have something, the error is NaN. IMA is the mean
over layers 1..L of the same-layer P-T similarity; taking P from layer 0 gives its twin.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ima.alignment.reference_pass import quantiles_of
from ima.alignment.streaming.batch_roles import dot
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.views import MATCHED_ONLY, NORM_VIEWS, NUM_GROUPS, group_of, split_view

QUANTILES = (0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A score per layer with its standard error and number of examples (or tokens, or pairs). `value_L` has NaN where
    nothing was seen; `leave_out_GL` holds the values without each group, `used_GL` says which groups have something at
    which layer."""

    value_L: Tensor
    leave_out_GL: Tensor
    used_GL: Tensor
    n_L: Tensor

    @classmethod
    def of(cls, values_VL: Tensor, used_LG: Tensor, n_L: Tensor) -> Curve:
        """`values_VL`: the value of all groups, then without each."""
        return cls(values_VL[0], values_VL[1:], used_LG.T, n_L)

    @property
    def n(self) -> int:
        return int(self.n_L.max())

    @property
    def se_L(self) -> Tensor:
        return jackknife_se(self.leave_out_GL, self.used_GL)

    def mean(self, start: int = 0) -> tuple[float, float]:
        """Value and standard error of the mean over layers from `start` on. A group counts if it has something at any
        of them."""
        left_out_G, used_G = self.leave_out_GL[:, start:].mean(1), self.used_GL[:, start:].any(1)
        return float(self.value_L[start:].mean()), float(jackknife_se(left_out_G, used_G))


def jackknife_se(leave_out_GX: Tensor, used_GX: Tensor | None = None) -> Tensor:
    """Delete-group jackknife: sqrt((G - 1) / G * sum (x_g - mean)^2) over the groups that have something, by default
    all. NaN for fewer than two."""
    used_GX = torch.ones_like(leave_out_GX, dtype=torch.bool) if used_GX is None else used_GX
    groups = used_GX.sum(0)
    mean_X = leave_out_GX.where(used_GX, 0.0).sum(0) / groups
    squares_X = (leave_out_GX - mean_X).square().where(used_GX, 0.0).sum(0)
    return ((groups - 1) / groups * squares_X).sqrt().where(groups > 1, torch.nan)


def with_leave_outs(sum_LGX: Tensor) -> Tensor:
    """[1 + G, L, ...]: the sum over all groups, then without each group."""
    total = sum_LGX.sum(1)
    return torch.cat([total[None], total[None] - sum_LGX.transpose(0, 1)])


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


def products(a: Side, b: Side) -> Tensor:
    """[1 + G, L]: (sum a)(sum b) over all groups, then without each group, without making those sums. One side
    may have a single layer for all."""
    whole_L = dot(a.total_L1D, b.total_L1D)[:, 0]
    mixed_LG = torch.matmul(b.sum_LGD, a.total_L1D.mT)[..., 0]
    mixed_LG = mixed_LG + (mixed_LG if a is b else torch.matmul(a.sum_LGD, b.total_L1D.mT)[..., 0])
    own_LG = dot(a.sum_LGD, b.sum_LGD)
    return torch.cat([whole_L[None], (whole_L[:, None] - mixed_LG + own_LG).T])


def positive(count: Tensor) -> Tensor:
    """A divisor: NaN where there is nothing, since rounding over no pairs would be infinite."""
    return count.where(count > 0, torch.nan)


def similarity(
    stats: SiteStats, view_a: str, view_b: str, layer_a: int | None = None, sides: Sides | None = None
) -> dict[str, Curve]:
    """sim (all pairs), sim_matched (a = b) and gap_read = matched - mean over a != b, for layers 0..L. Of centred views
    there is only sim_matched.

    layer_a: None for the same layer, or the fixed layer that `view_a` is taken from (then only `sim` is defined,
    since the matched cosine is streamed for equal layers). sides: where several scores of one site are asked for.
    """
    sides = Sides(stats) if sides is None else sides
    a, b = stats.plan.views.index(view_a), stats.plan.views.index(view_b)
    count_LGR = stats.count_LGR.double().cpu()
    layers = slice(None) if layer_a is None else slice(layer_a, layer_a + 1)
    count_a_LG, count_b_LG = count_LGR[layers, :, a], count_LGR[..., b]
    either_LG = count_a_LG + count_b_LG > 0
    count_a, count_b = with_leave_outs(count_a_LG), with_leave_outs(count_b_LG)
    n_L = torch.minimum(count_a[0], count_b[0])
    curves = {}
    matched_only = split_view(view_a)[1] in MATCHED_ONLY
    if not matched_only:
        product = products(sides[view_a] if layer_a is None else sides[view_a].at(layer_a), sides[view_b])
        curves["sim"] = Curve.of(product / positive(count_a * count_b), either_LG, n_L)
    if layer_a is None:
        q = stats.plan.pairs.index((view_a, view_b))
        matched_count_LG = stats.matched_count_LGQ[:, :, q].double().cpu()
        matched_sum = with_leave_outs(stats.matched_LGQ[:, :, q].double().cpu())
        matched_n = with_leave_outs(matched_count_LG)
        matched = matched_sum / positive(matched_n)
        curves["sim_matched"] = Curve.of(matched, matched_count_LG > 0, n_L)
        if not matched_only:
            others = count_a * count_b - matched_n  # a pair needs two examples
            gap = matched - (product - matched_sum) / positive(others)
            curves["gap_read"] = Curve.of(gap, either_LG, n_L)
    return curves


def cone(stats: SiteStats, view: str, sides: Sides | None = None) -> Curve:
    """Mean cosine over the distinct pairs of examples within one dataset: (|sum u|^2 - n) / (n (n - 1)), where the n
    that is taken off counts the examples whose u is not zero. NaN for fewer than two examples."""
    r = stats.plan.views.index(view)
    count_LG = stats.count_LGR[..., r].double().cpu()
    count = with_leave_outs(count_LG)
    own = with_leave_outs(stats.nonzero_LGR[..., r].double().cpu())
    side = (Sides(stats) if sides is None else sides)[view]
    value = (products(side, side) - own) / positive(count * (count - 1))
    return Curve.of(value, count_LG > 0, count[0])


def consecutive(stats: SiteStats, step: int, view: str) -> Curve:
    """Mean over tokens of cos(x_l, x_{l + step}), the same token of the same example; layers 0..L - step. NaN where
    no token is seen at both."""
    r = NORM_VIEWS.index(view)
    count_LG = stats.step_count_LGR[step][:, :, r].double().cpu()
    sums = with_leave_outs(stats.step_sum_LGR[step][:, :, r].double().cpu())
    return Curve.of(sums / positive(with_leave_outs(count_LG)), count_LG > 0, count_LG.sum(1))


def norm_quantiles(stats: SiteStats, view: str) -> Tensor:
    """[3, L] quartiles of the token norms, within half a bin (0.5 %); NaN where the view is empty."""
    hist_LH = stats.norm_hist_LRH[:, NORM_VIEWS.index(view)]
    return quantiles_of(hist_LH, QUANTILES)


def mean_with_error(value_E: Tensor, clusters: Sequence[str]) -> tuple[float, float, int]:
    """Mean over the examples whose value is not NaN, its jackknife error over their clusters, and how many they are."""
    known_E = ~value_E.isnan()
    if not bool(known_E.any()):
        return math.nan, math.nan, 0
    groups = torch.tensor([group_of(name) for name in clusters])[known_E]
    onehot_EG = torch.nn.functional.one_hot(groups, NUM_GROUPS).double()
    sums_G, counts_G = value_E[known_E].double() @ onehot_EG, onehot_EG.sum(0)
    used_G = counts_G > 0
    left = (sums_G.sum() - sums_G[used_G]) / (counts_G.sum() - counts_G[used_G])
    return float(value_E[known_E].double().mean()), float(jackknife_se(left)), int(known_E.sum())


def average(curves: list[Curve]) -> Curve:
    """The mean of curves of the same examples. A group counts if it has something in any of them."""
    values_L, leave_outs_GL, n_L = (
        torch.stack([getattr(curve, name) for curve in curves]) for name in ("value_L", "leave_out_GL", "n_L")
    )
    used_GL = torch.stack([curve.used_GL for curve in curves]).any(0)
    return Curve(values_L.mean(0), leave_outs_GL.mean(0), used_GL, n_L.amin(0))
