"""Figures of the groups of measures (`alignment=[maps,null,...]`): each only where its rows are, at the last epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas

from ima.core.metric_names import TEXT_ALONE
from ima.report import curves as series
from ima.report.curves import Curve, Row
from ima.report.figures.drawing import Figure
from ima.report.figures.panels import Panel, Stroke, multiples
from ima.report.figures.style import DASHES, NARROW, Theme

MAPS = {
    "retrieval_map": "finds its own text",
    "centred_map": "centred cosine, own text",
    "gap_map": "own text minus others",
    "sim_map": "all pairs, same pass",
}
SCORES = {  # label, colour, dash
    "unit_retrieval": ("retrieval", "c0", DASHES[0]),
    "unit_cosine": ("centred cosine", "c1", DASHES[1]),
    "unit_gap": ("gap", "c2", DASHES[2]),
    "cka_debiased": ("CKA", "c5", DASHES[0]),
    "mutual_knn": ("mutual kNN", "c6", DASHES[1]),
    "cycle_knn": ("cycle kNN", "c3", DASHES[3]),
    "procrustes": ("Procrustes", "c7", DASHES[2]),
}
LEAST_Z = 3.0


def group_figures(rows: Sequence[Row]) -> list[Figure]:
    """rows: of the validation split, as `curves.alignment_rows` gives them."""
    return [figure for make in (layer_maps, calibrated, sinks, probes, lens, attention) for figure in make(rows)]


def by_layer(rows: Sequence[Row], label: str, **fields: object) -> Curve:
    kept = [row for row in series.where(rows, **fields) if row["layer_a"] is not None]
    epochs = series.epochs(kept)
    return series.curve(series.where(kept, epoch=epochs[-1]) if epochs else [], label, lambda row: row["layer_a"])


def layer_maps(rows: Sequence[Row]) -> list[Figure]:
    found: dict[str, dict[tuple[int, int], float]] = {}
    last = max(series.epochs(series.where(rows, score=tuple(MAPS))), default=None)
    for row in series.where(rows, score=tuple(MAPS), epoch=last):
        if math.isfinite(value := series.finite(row["value"])) and row["layer_a"] is not None:
            found.setdefault(row["score"], {})[row["layer_a"], row["layer_b"]] = value
    shown = [score for score in MAPS if score in found]
    if not shown:
        return []
    best = by_layer(rows, "best", score="best_text_layer")
    word = series.medium_word(rows)

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(NARROW, 2.9 * -(-len(shown) // 2))
        grid = figure.subplots(-(-len(shown) // 2), 2, squeeze=False)
        for index, score in enumerate(shown):
            ax, cells = grid[index // 2][index % 2], found[score]
            layers = sorted({layer for pair in cells for layer in pair})
            values = [[cells.get((a, b), math.nan) for b in layers] for a in layers]
            image = ax.imshow(values, origin="lower", cmap="viridis", interpolation="none", aspect="equal")
            ax.grid(False)
            step = max(1, round(len(layers) / 6))
            ticks = range(0, len(layers), step)
            ax.set_xticks(ticks, [str(layer) for layer in layers[::step]])
            ax.set_yticks(ticks, [str(layer) for layer in layers[::step]])
            ax.set_title(MAPS[score], fontsize=9.5, fontweight="normal", pad=4)
            ax.set_xlabel("layer of the text", fontsize=9)
            ax.set_ylabel(f"layer of the {word}", fontsize=9)
            if score == "centred_map":
                known = [(layers.index(int(x)), layers.index(int(y))) for x, y, _ in best.points if y == y]
                ax.plot([y for _, y in known], [x for x, _ in known], ".", color=theme["c1"], markersize=3)
            figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02).outline.set_visible(False)
        for index in range(len(shown), 2 * -(-len(shown) // 2)):
            figure.delaxes(grid[index // 2][index % 2])

    table: list[Sequence[Any]] = [
        [score, a, b, value] for score in shown for (a, b), value in sorted(found[score].items())
    ]
    caption = (
        f"Each layer of the {word} against each layer of the text. On the diagonal: the same layer. Dots: the best text"
        f" layer of each {word} layer, where it stands out from permuted pairings (z above {LEAST_Z:g}). No best layer"
        " is taken of the uncentred maps: they are largest where states are least alike."
    )
    header = ("map", "layer_a", "layer_b", "value")
    return [Figure("layer_maps", f"Which layer of the {word} fits which of the text?", caption, draw, (header, table),
                   panels=True)]  # fmt: skip


def calibrated(rows: Sequence[Row]) -> list[Figure]:
    kept = series.where(rows, role_b=TEXT_ALONE, variant="calibrated")
    panels = [
        Panel(
            "z against permuted pairings",
            [Stroke(label, by_layer(kept, label, score=f"{score}_z"), colour, dash)
             for score, (label, colour, dash) in SCORES.items()],
            level=(LEAST_Z, "z = 3"),
        )
    ]  # fmt: skip
    return multiples(
        "calibrated",
        "Beyond chance, by layer",
        "How far each score lies above what it would be were whole units of media given each other's texts, in standard"
        " deviations of that null; distances count the other way round. All scores share the same permutations.",
        panels,
        columns=1,
        ylabel="z",
    )


def sinks(rows: Sequence[Row]) -> list[Figure]:
    raw = series.where(rows, role_a="P", role_b="T")
    panels = [
        Panel("share of tokens that are sinks", [
            Stroke(role, by_layer(rows, role, score="sink_share", role_a=role), role, dash)
            for role, dash in (("P", DASHES[0]), ("T", DASHES[1]))
        ], ylabel="share"),
        Panel("raw IMA", [
            Stroke("all tokens", by_layer(raw, "raw", score="sim", variant="raw", site="resid_post"), "c0", DASHES[0]),
            Stroke("without sinks", by_layer(raw, "no", score="sim", variant="nosinkdim"), "c1", DASHES[1]),
        ], ylabel="mean cosine"),
    ]  # fmt: skip
    if not panels[0].strokes[0].drawn:
        return []
    return multiples(
        "sinks", "Massive activations",
        "Tokens with a massive value in a sink dimension of this LLM, and how much of raw IMA is theirs.",
        panels, alike="none",
    )  # fmt: skip


def probes(rows: Sequence[Row]) -> list[Figure]:
    panels = []
    for label in ("noun", "category"):
        strokes = [
            Stroke(name, by_layer(rows, name, score=f"probe_{label}{end}", role_a=role, variant="nosinkdim"), *look)
            for name, end, role, look in (
                ("percepts", "", "P", ("P", DASHES[0])), ("prompt", "", "T.prompt", ("T", DASHES[1])),
                ("percepts, labels permuted", "_null", "P", ("muted", DASHES[2])),
            )
        ]  # fmt: skip
        encoder = [row["value"] for row in series.where(rows, score=f"probe_{label}", variant="encoder")]
        level = (float(encoder[-1]), "encoder") if encoder and encoder[-1] is not None else None
        panels.append(Panel(label, strokes, level=level))
    return multiples(
        "probes", "What a linear map reads off the states",
        "Accuracy out of fold, by cluster, of a ridge classifier on mean tokens. Decodable is not aligned: an untrained"
        " adapter passes on what its encoder knows.",
        panels, ylabel="accuracy",
    )  # fmt: skip


def lens(rows: Sequence[Row]) -> list[Figure]:
    """Contextual lens against chance, and beside the logit lens and word embeddings on nouns of one token."""
    mine = series.where(rows, role_a="P", role_b=TEXT_ALONE)
    word = series.medium_word(rows)
    panels = [
        Panel("words in context", [
            Stroke(label, by_layer(mine, label, score=score, variant="centred"), colour, dash)
            for label, score, colour, dash in (
                ("among five", "lens_share", "c0", DASHES[0]), ("chance", "lens_chance", "muted", DASHES[2]),
                ("the nearest", "lens_share_first", "c1", DASHES[1]),
            )
        ]),
        Panel("three ways to look words up", [
            Stroke(label, by_layer(mine, label, score="lens_one_token", variant=variant), colour, dash)
            for label, variant, colour, dash in (
                ("words in context", "centred", "c0", DASHES[0]), ("logit lens", "logit", "c2", DASHES[1]),
                ("input embeddings", "embedding", "c3", DASHES[3]),
            )
        ]),
    ]  # fmt: skip
    return multiples(
        "lens", f"Do perceptual tokens name what the {word} shows?",
        "Share of perceptual tokens with a name of what is there among their five nearest distinct words. Chance: the"
        f" same share in every {word} that shows something else. On the right: nouns with a name of one token, on the"
        " same examples. The words are the LLM's own states of words in real text, at half of its depth.",
        panels, ylabel="share of tokens",
    )  # fmt: skip


def attention(rows: Sequence[Row]) -> list[Figure]:
    keys = (("the first position", "sink", "c2", DASHES[2]), ("percepts", "P", "P", DASHES[0]),
            ("prompt", "T.prompt", "T", DASHES[1]), ("answer", "T.answer", "c3", DASHES[3]))  # fmt: skip
    panels = [
        Panel(title, [
            Stroke(label, by_layer(rows, label, score=score, role_a=query, role_b=key, variant="raw"), colour, dash)
            for label, key, colour, dash in keys
        ], ylabel=ylabel)
        for title, query, score, ylabel in (
            ("of what predicts the answer", "T.answer", "attention_mass", "share of attention"),
            ("for each token that it may read", "T.answer", "attention_per_token", "share of attention"),
        )
    ]  # fmt: skip
    return multiples(
        "attention", "What does the answer read?",
        "Share of their attention that the positions which predict the answer give to each kind of token, mean over"
        " heads; on the right divided by the number of such tokens. The first position takes what is wanted nowhere.",
        panels, alike="none",
    )  # fmt: skip
