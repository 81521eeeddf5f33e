"""Figures of what needs stored states (the reservoir of `alignment=full`): token pairs, geometry, t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas

from ima.report import curves as series
from ima.report.curves import Row, finite
from ima.report.figures.drawing import Figure, legend
from ima.report.figures.full import VARIANTS, similarity
from ima.report.figures.panels import Panel, Stroke, multiples
from ima.report.figures.style import DASHES, NARROW, Theme

PAIRS = {  # score: label, colour, dash
    "maxsim": ("max", "c1", DASHES[0]),
    "maxmeansim": ("mean of max", "c3", DASHES[3]),
    "medsim": ("median", "c0", DASHES[0]),
    "meansim": ("mean", "c5", DASHES[1]),
    "minsim": ("min", "c7", DASHES[2]),
}
CLOUDS = {"mean": "mean tokens", "tokens": "single tokens"}


def token_pairs(rows: Sequence[Row]) -> list[Figure]:
    panels = [
        Panel(f"{title}, {VARIANTS[variant][0]}", [
            Stroke(label, similarity(rows, f"{score}_{kind}", variant), colour, dash)
            for score, (label, colour, dash) in PAIRS.items()
        ])
        for variant in ("raw", "nomassive")
        for kind, title in (("matched", "own text"), ("across", "other texts"))
    ]  # fmt: skip
    return multiples(
        "full_token_pairs",
        "Single tokens against single tokens",
        "Cosines of all pairs of a perceptual and a textual token, summarised within an example (left) and between two"
        " (right). A few close pairs show as a max far above the median.",
        panels,
        ylabel="cosine",
    )


def geometry(rows: Sequence[Row]) -> list[Figure]:
    def stroke(score: str, label: str, colour: str, dash: object) -> Stroke:
        return Stroke(label, similarity(rows, score, "raw"), colour, dash)

    retrieval = [
        Stroke(label, similarity(rows, "retrieval_read", variant), colour, dash)
        for variant, (label, colour, dash) in VARIANTS.items()
        if variant != "nosink"
    ]
    counts = {row["n"] for row in series.where(rows, score="retrieval_read", site="resid_post") if row["n"]}
    chance = (1 / counts.pop(), "retrieval by chance") if len(counts) == 1 else None
    mir = stroke("mir_fid", "MIR part", "c4", DASHES[0])
    panels = [
        Panel("shape and neighbours (1: alike)", [
            stroke("cka_read", "CKA", "c5", DASHES[0]),
            stroke("cka_debiased_read", "CKA, debiased", "c7", DASHES[1]),
            stroke("mutual_knn_read", "mutual kNN", "c6", DASHES[3]),
        ], ylabel="similarity"),
        Panel("retrieval of the own text", retrieval, level=chance, ylabel="share right"),
        Panel("Procrustes distance", [stroke("procrustes_read", "Procrustes", "c1", DASHES[1])], ylabel="distance"),
        Panel("modality integration (MIR)", [mir], log=all(not y <= 0 for y in mir.curve.y), ylabel="distance (log)"),
    ]  # fmt: skip
    return multiples(
        "full_geometry",
        "Geometry of the two clouds",
        "Top: higher is closer; whether P's and T's mean tokens have the same shape and neighbours, how often P finds"
        " its own text. Bottom: lower is closer. Retrieval comes in variants, the rest is raw; bands: 95 % interval.",
        panels,
        alike="none",
    )


def tsne(rows: Sequence[Row]) -> list[Figure]:
    """Points meet by (layer, role, variant, n); a later row replaces an earlier one."""
    axes: dict[str, dict[tuple[str, int, str, int], Row]] = {"tsne_x": {}, "tsne_y": {}}
    kept = [row for row in series.where(rows, score=tuple(axes)) if row["layer_a"] is not None]
    last = max(series.epochs(kept), default=None)
    for row in series.where(kept, epoch=last):
        axes[row["score"]][row["variant"], row["layer_a"], row["role_a"], row["n"]] = row
    points: list[Sequence[Any]] = [
        [*key, row["note"], x, y]
        for key, row in axes["tsne_x"].items()
        if key in axes["tsne_y"] and (x := finite(row["value"])) == x
        if (y := finite(axes["tsne_y"][key]["value"])) == y
    ]
    if not points:
        return []
    points.sort(key=lambda point: tuple(point[:4]))
    clouds = [cloud for cloud in CLOUDS if any(point[0] == cloud for point in points)]
    layers = sorted({point[1] for point in points})

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(NARROW, 1.75 * len(clouds) + 0.8)
        grid = figure.subplots(len(clouds), len(layers), squeeze=False)
        for across, cloud in enumerate(clouds):
            for down, layer in enumerate(layers):
                ax = grid[across][down]
                for role, marker in (("P", "o"), ("T", "^")):
                    chosen = [point for point in points if list(point[:3]) == [cloud, layer, role]]
                    ax.plot(
                        [point[5] for point in chosen], [point[6] for point in chosen], linestyle="none", marker=marker,
                        markersize=2.6, markeredgewidth=0, color=theme[role], alpha=0.75, label=role,
                    )  # fmt: skip
                ax.set_title(f"layer {layer}", fontsize=9.5, fontweight="normal", pad=4)
                ax.set(xticks=[], yticks=[])
                ax.grid(False)
                for side in ax.spines.values():
                    side.set_visible(True)
                if cloud == clouds[-1]:
                    ax.set_xlabel("t-SNE 1", fontsize=9)
            grid[across][0].set_ylabel(f"{CLOUDS[cloud]}\nt-SNE 2", fontsize=9)
        legend(grid[0][0])

    caption = (
        "Perceptual (circles) and textual (triangles) tokens in two dimensions, each panel its own map: what is near"
        " stays near, distances between groups and axes mean nothing."
    )
    header = ["cloud", "layer", "role", "n", "sample", "x", "y"]
    return [Figure("full_tsne", "t-SNE of the states", caption, draw, (header, points), panels=True)]
