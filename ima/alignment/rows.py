"""Scores of the streamed statistics as rows.

sim, sim_matched, gap_read  per layer and site; ima, ima_matched, ima_gap_read are their means over layers 1..L.
                            `_read`: T has read P through attention; above 0 for an untrained adapter too
sim_p0, ima_p0              P from layer 0
cone                        P with P and T with T of other examples of the same dataset; P with T across: `cones`
norm_q25, _q50, _q75        quartiles of token norms; consecutive: a token with itself some layers on
ima_inside, ima_outside     mean of the resid_* sites and of sa and fc2: along the residual stream, and what is added
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ima.alignment.scores import QUANTILES, Curve, Sides, average, cone, consecutive, norm_quantiles, similarity
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import MATCHED_ONLY, NORM_VIEWS, split_view
from ima.core.types import Row, Site

NOTHING = "no tokens of this role, or no pair of examples"
STREAM = {
    "ima_inside": (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST),
    "ima_outside": (Site.SA, Site.FC2),
}
Base = dict[str, Any]


def alignment_rows(stats: AlignmentStats, base: Base) -> Iterator[Row]:
    """Rows of every score; `base` holds the fields that are the same for all (run, epoch, dataset_a, ...)."""
    curves: dict[tuple[Site, str, str], Curve] = {}
    for site, site_stats in stats.sites.items():
        yield from site_rows(site_stats, site, base, curves)
    for score, sites in STREAM.items():
        there = [stats.sites[site] for site in sites if site in stats.sites]
        if len(there) < 2 or stats.num_layers < 2:
            continue
        for view_a, view_b in (pair for pair in there[0].plan.pairs if named(*pair)["role_b"] == "T"):
            if split_view(view_a)[1] not in (*MATCHED_ONLY, "update"):
                curve = average([curves[site, view_a, view_b] for site in sites if site in stats.sites])
                value, se = curve.mean(1)
                yield make(score, value, base, se=se, n=curve.n, **named(view_a, view_b))


def example_lines(stats: AlignmentStats) -> Iterator[dict[str, Any]]:
    """Per example its own matched alignment: `ima_matched`, `ima_matched/T.prompt`, `ima_matched/nosink`... None where
    it lacks a side. T and T.answer know the true answer (teacher forcing); T.prompt does not."""
    names = []
    for pair in stats.plan.pairs:
        found = named(*pair)
        ends = (
            found["role_b"] if found["role_b"] != "T" else "",
            found["variant"] if found["variant"] != "raw" else "",
        )
        names.append("/".join(["ima_matched", *(end for end in ends if end)]))
    for name, values in sorted((stats.examples or {}).items()):
        finite = [value if value == value else None for value in values]
        yield {"id": name} | dict(zip(names, finite, strict=True))


def make(score: str, value: float, base: Base, **fields: Any) -> Row:
    return Row(score=score, value=value, note=None if value == value else NOTHING, **(base | fields))


def named(view_a: str, view_b: str) -> dict[str, str]:
    (role_a, variant), (role_b, _) = split_view(view_a), split_view(view_b)
    return {"role_a": role_a, "role_b": role_b, "variant": variant}


def site_rows(stats: SiteStats, site: Site, base: Base, curves: dict[tuple[Site, str, str], Curve]) -> Iterator[Row]:
    """Layer 0 is what enters the first block, so only `resid_post` has it. `curves` is given each `sim`."""
    sides = Sides(stats)
    base = base | {"site": site.value}
    first = 0 if site is Site.RESID_POST else 1
    for view_a, view_b in stats.plan.pairs:
        names = named(view_a, view_b)
        headline = names["role_b"] == "T"
        start = 1 if names["variant"] == "update" else first
        found = similarity(stats, view_a, view_b, sides=sides)
        if "sim" in found:
            curves[site, view_a, view_b] = found["sim"]
        for score, curve in found.items():
            yield from layer_rows(score, curve, start, base | names)
            if headline and stats.num_layers > 1:
                value, se = curve.mean(1)
                pooled = "ima_gap_read" if score == "gap_read" else score.replace("sim", "ima")
                yield make(pooled, value, base, se=se, n=curve.n, **names)
        if headline and first == 0 and stats.num_layers > 1 and names["variant"] not in (*MATCHED_ONLY, "update"):
            curve = similarity(stats, view_a, view_b, layer_a=0, sides=sides)["sim"]
            yield from layer_rows("sim_p0", curve, 0, base | names, fixed=0)
            value, se = curve.mean(1)
            yield make("ima_p0", value, base, se=se, n=curve.n, **names)
    for view in stats.plan.views:
        role, variant = split_view(view)
        if role in ("P", "T") and variant not in MATCHED_ONLY:
            alike: Base = {"role_a": role, "role_b": role, "variant": variant}
            alike |= {"dataset_b": base.get("dataset_a"), "modality_b": base.get("modality_a")} if role == "P" else {}
            alike |= {"modality_a": "text"} if role == "T" else {}
            yield from layer_rows("cone", cone(stats, view, sides), 1 if variant == "update" else first, base | alike)
    for view in ("P", "T"):
        fields = base | {"role_a": view, "variant": "raw"}
        num_tokens = stats.norm_hist_LRH[:, NORM_VIEWS.index(view)].sum(-1).tolist()
        for q, values in zip(QUANTILES, norm_quantiles(stats, view), strict=True):
            for layer, value in enumerate(values.tolist()):
                if layer >= first:
                    yield make(f"norm_q{round(100 * q)}", value, fields, n=num_tokens[layer], layer_a=layer)
        for step in stats.step_sum_LGR:
            curve = consecutive(stats, step, view)
            yield from layer_rows("consecutive", curve, first, fields | {"role_b": view}, step=step)


def layer_rows(
    score: str, curve: Curve, first: int, base: Base, fixed: int | None = None, step: int = 0
) -> Iterator[Row]:
    """A row for each layer from `first` on: layer_a is `fixed` or the layer, layer_b is `step` layers on."""
    columns = zip(curve.value_L.tolist(), curve.se_L.tolist(), curve.n_L.tolist(), strict=True)
    for layer, (value, se, n) in enumerate(columns):
        if layer >= first:
            layers = {"layer_a": layer if fixed is None else fixed, "layer_b": layer + step}
            yield make(score, value, base, se=se, n=int(n), **layers)
