"""Figures of one run of a mixture: what the page of a single task shows in one plot, a panel for each entry.

Curves of two entries are never joined or averaged: another task is another text, and its cosine is another number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure as Canvas

from ima.report import curves as series
from ima.report.curves import Row
from ima.report.figures.alignment import chance_of
from ima.report.figures.drawing import Figure, legend, table_of, thinned
from ima.report.figures.full import latest
from ima.report.figures.maps import Groups, finite, heat_map, titles
from ima.report.figures.panels import REST_HEIGHT, ROW_HEIGHT, Panel, Stroke, multiples
from ima.report.figures.style import DASHES, MARKERS, NARROW, NUM_EPOCH_COLOURS, Theme
from ima.report.figures.task import CAPTION, draw_tracks, headline_of, known_tracks, measured_once, track_handles

SCORES = (("IMA", "ima", "raw"), ("no sinks", "ima", "nosink"), ("layer-0 media", "ima_p0", "raw"))
VARIANTS = (("raw, all pairs", "sim", "raw"), ("own text", "sim_matched", "raw"), ("no sinks", "sim", "nosink"),
            ("layer-0 media", "sim_p0", "raw"))  # fmt: skip


def mixture_figures(groups: Groups, headlines: Mapping[str, str]) -> list[Figure]:
    """`groups`: rows of each entry; `headlines`: the score that stands for its task, where that is known."""
    aligned = {entry: series.alignment_rows(rows) for entry, rows in groups.items()}
    return [
        layers(aligned, "ima_by_layer", "Implicit alignment by layer",
               "Mean cosine between the media's and the texts' mean tokens, over all pairs, at the output of each"
               " block, entry by entry; bands: 95 % interval, first and last measurement. Compare within one LLM only.",
               "sim", "mean cosine, P against T"),
        retrieval(aligned),
        heat_map(aligned),
        by_epoch(aligned),
        layers(aligned, "ima_gap", "What the alignment knows of the medium",
               "Similarity with the own text minus similarity with other texts. Zero: the two modalities may be close,"
               " but no medium is closer to its own text.", "gap_read", "own minus other texts"),
        variants(aligned),
        norms(aligned),
        consecutive(aligned),
        *vocabulary(aligned),
        tasks(groups, headlines),
    ]  # fmt: skip


def one(found: list[Figure], name: str, title: str, missing: str) -> Figure:
    return found[0] if found else Figure(name, title, "", missing=missing)


def colour_of(epoch: int, trained: Sequence[int]) -> str:
    if epoch == 0:
        return "before"
    share = trained.index(epoch) / (len(trained) - 1) if len(trained) > 1 else 1.0
    return f"e{round(share * (NUM_EPOCH_COLOURS - 1))}"


def retrieval(aligned: Groups) -> Figure:
    chances = {entry: (chance, "chance") for entry, rows in aligned.items() if (chance := chance_of(rows)) is not None}
    return layers(
        aligned, "retrieval_by_layer", "Does a medium find its own text?",
        "Share of media whose nearest text is their own, layer by layer, entry by entry; the texts were read by the LLM"
        " alone. Both sides are centred and without sinks. 0: the untrained adapter.",
        "retrieval", "share that finds its own text", "centred", chances,
    )  # fmt: skip


def layers(
    aligned: Groups, name: str, title: str, caption: str, score: str, ylabel: str, variant: str = "raw",
    levels: Mapping[str, tuple[float, str]] | None = None,
) -> Figure:  # fmt: skip
    levels = levels or {}
    curves = {entry: finite(series.by_layer(rows, score, variant)) for entry, rows in aligned.items()}
    epochs = sorted({epoch for found in curves.values() for epoch in found})
    shown = thinned(epochs)
    trained = [epoch for epoch in shown if epoch != 0]
    panels = [
        Panel(label, [
            Stroke(series.epoch_name(epoch), curves[entry][epoch],
                   colour_of(epoch, trained), DASHES[epoch == 0], band=epoch in (shown[0], shown[-1]))
            for epoch in shown if epoch in curves[entry]
        ], level=(0.0, "zero") if score == "gap_read" else levels.get(entry))
        for entry, label in titles(aligned).items()
    ]  # fmt: skip
    key = series.epoch_key(epochs)
    figure = one(multiples(name, title, caption, panels, ylabel=ylabel, key=key), name, title,
                 f"no `{score}` rows with numbers on the validation split")  # fmt: skip
    if len(epochs) > len(shown):
        figure.caption += f" {len(shown)} of {len(epochs)} {series.unit_of(epochs)}s are drawn; the CSV has all."
    figure.table = table_of(
        [([entry, series.modality_of(aligned[entry]), epoch], found)
         for entry, by_epoch in curves.items() for epoch, found in by_epoch.items()],
        ["entry", "modality", series.unit_of(epochs)], "layer",
    )  # fmt: skip
    return figure


def by_epoch(aligned: Groups) -> Figure:
    unit = series.unit_of([epoch for rows in aligned.values() for epoch in series.epochs(rows)])
    title, name = f"IMA score by {unit}", "ima_by_epoch"
    labels = titles(aligned)
    curves = {
        (score_label, entry): series.by_epoch(rows, score, variant)
        for score_label, score, variant in SCORES
        for entry, rows in aligned.items()
    }
    panels = [
        Panel(score_label, [
            Stroke(label, curves[score_label, entry], f"c{index % 8}", DASHES[index % len(DASHES)],
                   marker=MARKERS[index % len(MARKERS)])
            for index, (entry, label) in enumerate(labels.items())
        ])
        for score_label, _, _ in SCORES
    ]  # fmt: skip
    caption = "The similarity pooled over all layers, a line for each entry, with its 95 % interval."
    figure = one(multiples(name, title, caption, panels, columns=3, ylabel="IMA (mean cosine)", alike="row",
                           xlabel=unit), name, title, "no pooled `ima` rows")  # fmt: skip
    figure.table = table_of(
        [([entry, series.modality_of(aligned[entry]), label], found) for (label, entry), found in curves.items()],
        ["entry", "modality", "score"], unit,
    )  # fmt: skip
    return figure


def panelled(
    aligned: Groups, name: str, title: str, caption: str, ylabel: str, strokes: Callable[[Sequence[Row]], list[Stroke]],
    missing: str, log: bool = False,
) -> Figure:  # fmt: skip
    panels = [Panel(label, strokes(aligned[entry]), log=log) for entry, label in titles(aligned).items()]
    return one(multiples(name, title, caption, panels, ylabel=ylabel), name, title, missing)


def variants(aligned: Groups) -> Figure:
    def strokes(rows: Sequence[Row]) -> list[Stroke]:
        found = [(label, series.by_layer(rows, score, variant)) for label, score, variant in VARIANTS]
        return [Stroke(label, curves[max(curves)], f"c{index}", DASHES[index])
                for index, (label, curves) in enumerate(found) if curves]  # fmt: skip

    return panelled(
        aligned, "ima_variants", "What the similarity is made of",
        "Last measurement. Raw: all pairs of medium and text. Own text: a medium against its own text only. No sinks:"
        " without the first position and BOS. Layer-0 media: perceptual tokens as they enter the LLM.",
        "mean cosine, P against T", strokes, "no alignment rows on the validation split",
    )  # fmt: skip


def norms(aligned: Groups) -> Figure:
    def strokes(rows: Sequence[Row]) -> list[Stroke]:
        found = []
        for role in series.roles_of(rows, "norm_q50"):
            measured = series.epochs(series.where(rows, score="norm_q50", role_a=role))
            if measured:
                q = series.norms(rows, role, measured[-1])
                mine, dash = ("P", DASHES[0]) if role == "P" else ("T", DASHES[1])
                found.append(Stroke(role, q["q50"], mine, dash, (q["q25"], q["q75"])))
        return found

    return panelled(
        aligned, "norms", "Token norms by layer",
        "Median L2 norm of perceptual (P) and textual (T) tokens at the last measurement, band: quartiles.",
        "L2 norm (log scale)", strokes, "no `norm_q50` rows with numbers", log=True,
    )  # fmt: skip


def consecutive(aligned: Groups) -> Figure:
    def strokes(rows: Sequence[Row]) -> list[Stroke]:
        kept = series.where(rows, score="consecutive")
        measured = series.epochs(kept)
        steps = sorted(
            {row["layer_b"] - row["layer_a"] for row in kept if None not in (row["layer_a"], row["layer_b"])}
        )
        return [
            Stroke(f"{role}, {step} on", series.consecutive(rows, role, step, measured[-1]), role[0],
                   DASHES[index % len(DASHES)])
            for role in series.roles_of(rows, "consecutive") for index, step in enumerate(steps)
        ]  # fmt: skip

    return panelled(
        aligned, "consecutive", "Consecutive similarity",
        "Last measurement: cosine of a token with itself one and eight blocks on. Near 1: the blocks in between change"
        " little, a candidate for skipping.", "cosine", strokes, "no `consecutive` rows with numbers",
    )  # fmt: skip


def vocabulary(aligned: Groups) -> list[Figure]:
    """What a reservoir's logit lens says of every entry; nothing where there was none."""

    def panel(title: str, score: str, role_b: str) -> Panel:
        found = [(label, latest(aligned[entry], label, score=score, role_a="P", role_b=role_b))
                 for entry, label in titles(aligned).items()]  # fmt: skip
        return Panel(title, [
            Stroke(label, curve, f"c{index % 8}", DASHES[index % len(DASHES)], marker=MARKERS[index % len(MARKERS)])
            for index, (label, curve) in enumerate(found)
        ])  # fmt: skip

    return multiples(
        "vocabulary", "Perceptual tokens decoded to the vocabulary",
        "Distributions over the vocabulary that the LLM's head reads from a layer (logit lens), last measurement: how"
        " far P is from T (nats), how sure P is (nats), and how much it keeps from the layer measured before; bands:"
        " 95 % interval.",
        [panel("KL(P || T)", "kl", "T"), panel("JS divergence of P and T", "js", "T"),
         panel("entropy of P", "entropy", "P"), panel("cosine with the layer before", "vocabulary_cosine", "P")],
        alike="none",
    )  # fmt: skip


def tasks(groups: Groups, headlines: Mapping[str, str]) -> Figure:
    title, name = "Tasks of the mixture", "tasks"
    scores = {entry: series.task_scores(rows) for entry, rows in groups.items()}
    shown = {}
    for entry, found in scores.items():
        score = headline_of(found, headlines.get(entry))
        if score is not None and (tracks := known_tracks(found[score])):
            shown[entry] = (score, tracks)
    if not shown:
        return Figure(name, title, CAPTION, missing="no task metric rows, as before the first evaluation")
    single = all(measured_once(tracks) for _, tracks in shown.values())
    every = sorted({track for _, tracks in shown.values() for track in tracks}, key=series.track_rank)

    def draw(figure: Canvas, theme: Theme) -> None:
        columns = min(2, len(shown))
        num_rows = -(-len(shown) // columns)
        figure.set_size_inches(NARROW, (ROW_HEIGHT + 0.25 * single) * num_rows + (0.2 if single else REST_HEIGHT))
        for index, (entry, (score, tracks)) in enumerate(shown.items()):
            ax = figure.add_subplot(num_rows, columns, index + 1)
            draw_tracks(ax, tracks, theme, single, every)
            ax.tick_params(axis="x", labelsize=7.5)
            ax.set_title(entry, fontsize=9.5, fontweight="normal", pad=4)
            ax.set_ylabel(score.replace("_", " "), fontsize=9)
            if not single and index + columns >= len(shown):
                ax.set_xlabel("epoch")
        if not single:
            legend(figure.axes[0], handles=track_handles(every, theme))

    table = table_of(
        [([entry, score, track], curve) for entry, found in scores.items() for score, tracks in found.items()
         for track, curve in tracks.items()],
        ["entry", "score", "track"], "epoch",
    )  # fmt: skip
    return Figure(name, title, CAPTION, draw, table, panels=True)


def named(figure: Figure, entry: str) -> Figure:
    """The figure of one entry beside those of the others."""
    return dataclasses.replace(figure, name=f"{figure.name}_{entry}", title=f"{figure.title}: {entry}")
