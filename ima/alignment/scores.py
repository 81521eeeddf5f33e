"""From sums to scores with standard errors, and from scores to rows.

Every similarity is computed once on all jackknife groups and once with each group left out (methods 2); where fewer
than two groups have examples the standard error is NaN. IMA is the mean over layers 1..L of the same-layer P-T
similarity; `ima_p0` takes P from layer 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ima.alignment.stats import BIN_WIDTH, LOG_LOW, NORM_VIEWS, PAIRS, VIEWS, AlignmentStats, SiteStats
from ima.types import Row, Site

QUANTILES = (0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A score per layer with its standard error and number of examples. `value_L` has NaN where nothing was seen;
    `leave_out_GL` holds the leave-one-group-out values (rows of empty groups removed)."""

    value_L: Tensor
    leave_out_GL: Tensor
    n: int

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


def similarity(stats: SiteStats, view_a: str, view_b: str, layer_a: int | None = None) -> dict[str, Curve]:
    """sim (all pairs), sim_matched (a = b) and sim_gap = matched - mean over a != b, for layers 0..L.

    layer_a: None for the same layer, or the fixed layer that `view_a` is taken from (then only `sim` is defined,
    since the matched cosine is streamed for equal layers).
    """
    a, b = VIEWS.index(view_a), VIEWS.index(view_b)
    count_GR = stats.count_GR.double().cpu()
    used_G = (count_GR[:, a] + count_GR[:, b]) > 0
    count_a, count_b = (with_leave_outs(count_GR[None, :, view], used_G) for view in (a, b))
    sums = stats.unit_sum_LGRD.double().cpu()
    sum_a = with_leave_outs(sums[:, :, a] if layer_a is None else sums[layer_a : layer_a + 1, :, a], used_G)
    sum_b = with_leave_outs(sums[:, :, b], used_G)
    product = (sum_a * sum_b).sum(-1)
    curves = {"sim": product / (count_a * count_b)}
    if layer_a is None:
        q = PAIRS.index((view_a, view_b))
        matched_sum = with_leave_outs(stats.matched_LGQ[:, :, q].double().cpu(), used_G)
        matched_n = with_leave_outs(stats.matched_count_GQ[None, :, q].double().cpu(), used_G)
        curves["sim_matched"] = matched_sum / matched_n
        others = count_a * count_b - matched_n  # a pair needs two examples; rounding over no pairs would be infinite
        curves["sim_gap"] = curves["sim_matched"] - (product - matched_sum) / others.where(others > 0, torch.nan)
    n = int(count_GR[:, [a, b]].sum(0).min())
    return {name: Curve(values[0], values[1:], n) for name, values in curves.items()}


def consecutive(stats: SiteStats, step: int, view: str) -> Curve:
    """Mean over tokens of cos(x_l, x_{l + step}), the same token of the same example; layers 0..L - step."""
    r = NORM_VIEWS.index(view)
    count_G = stats.token_count_GR[:, r].double().cpu()
    used_G = count_G > 0
    sums = with_leave_outs(stats.step_sum_LGR[step][:, :, r].double().cpu(), used_G)
    values = sums / with_leave_outs(count_G[None], used_G)
    return Curve(values[0], values[1:], int(count_G.sum()))


def norm_quantiles(stats: SiteStats, view: str) -> Tensor:
    """[3, L] quartiles of the token norms, within half a bin (0.5 %); NaN where the view is empty."""
    hist_LH = stats.norm_hist_LRH[:, NORM_VIEWS.index(view)].double().cpu()
    total_L1 = hist_LH.sum(-1, keepdim=True)
    cumulative = hist_LH.cumsum(-1)
    result = []
    for q in QUANTILES:
        index = (cumulative >= q * total_L1).double().argmax(-1)
        value = torch.exp(LOG_LOW + (index - 0.5) * BIN_WIDTH)
        result.append(torch.where(total_L1[:, 0] > 0, value, torch.nan))
    return torch.stack(result)


def alignment_rows(stats: AlignmentStats, base: dict[str, Any]) -> Iterator[Row]:
    """Rows of every score; `base` holds the fields that are the same for all (run, epoch, dataset_a, ...)."""
    for site, site_stats in stats.sites.items():
        yield from site_rows(site_stats, site, base)


def site_rows(stats: SiteStats, site: Site, base: dict[str, Any]) -> Iterator[Row]:
    def row(score: str, value: float, **fields: Any) -> Row:
        note = None if value == value else "no tokens of this role, or no pair of examples"
        return Row(score=score, value=value, site=site.value, note=note, **(base | fields))

    first = 0 if site is Site.RESID_POST else 1
    for view_a, view_b in PAIRS:
        names = {"role_a": view_a.split(".")[0], "role_b": view_b.removesuffix(".nosink")}
        names["variant"] = "nosink" if view_a.endswith("nosink") else "raw"
        headline = names["role_b"] == "T"
        for score, curve in similarity(stats, view_a, view_b).items():
            for layer, (value, se) in enumerate(zip(curve.value_L.tolist(), curve.se_L.tolist(), strict=True)):
                if layer >= first:
                    yield row(score, value, se=se, n=curve.n, layer_a=layer, layer_b=layer, **names)
            if headline and stats.num_layers > 1:
                value, se = curve.mean(1)
                yield row(score.replace("sim", "ima"), value, se=se, n=curve.n, **names)
        if headline and site is Site.RESID_POST and stats.num_layers > 1:
            curve = similarity(stats, view_a, view_b, layer_a=0)["sim"]
            for layer, (value, se) in enumerate(zip(curve.value_L.tolist(), curve.se_L.tolist(), strict=True)):
                yield row("sim_p0", value, se=se, n=curve.n, layer_a=0, layer_b=layer, **names)
            value, se = curve.mean(1)
            yield row("ima_p0", value, se=se, n=curve.n, **names)
    for view in ("P", "T"):
        names = {"role_a": view, "variant": "raw"}
        n = int(stats.norm_hist_LRH[0 if first == 0 else -1, NORM_VIEWS.index(view)].sum())
        for q, values in zip(QUANTILES, norm_quantiles(stats, view), strict=True):
            for layer, value in enumerate(values.tolist()):
                if layer >= first:
                    yield row(f"norm_q{round(100 * q)}", value, n=n, layer_a=layer, **names)
        for step in stats.step_sum_LGR:
            curve = consecutive(stats, step, view)
            for layer, (value, se) in enumerate(zip(curve.value_L.tolist(), curve.se_L.tolist(), strict=True)):
                if layer >= first:
                    fields = {"layer_a": layer, "layer_b": layer + step, "role_b": view}
                    yield row("consecutive", value, se=se, n=curve.n, **names, **fields)
