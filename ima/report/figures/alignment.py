"""Alignment figures of one run: similarity by layer and epoch, its variants, norms, consecutive similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ima.report import curves as series
from ima.report.curves import Curve
from ima.report.figures.drawing import MAX_LINES, Figure, legend, line, table_of, thinned, whole_ticks
from ima.report.figures.style import DASHES, MARKERS, Theme


def epoch_lines(ax: Axes, curves: dict[int, Curve], theme: Theme) -> None:
    """One line per epoch, the untrained adapter (epoch 0) grey and dashed; bands on the first and the last only."""
    shown = thinned(sorted(curves))
    trained = [epoch for epoch in shown if epoch != 0]
    for epoch in shown:
        band = epoch in (shown[0], shown[-1])
        if epoch == 0:
            line(ax, curves[0], theme["before"], "0", band, linestyle=DASHES[1])
        else:
            colour = theme.epoch(trained.index(epoch), len(trained))
            line(ax, curves[epoch], colour, series.epoch_name(epoch), band)
    legend(ax, title=series.epoch_key(shown), columns=MAX_LINES)


def layer_figure(
    run_rows: Sequence[series.Row], name: str, title: str, caption: str, score: str, label: str, variant: str = "raw",
    level: tuple[float, str] | None = None,
) -> Figure:  # fmt: skip
    """level: height and name of a line that values are read against."""
    curves = {
        epoch: found
        for epoch, found in series.by_layer(run_rows, score, variant).items()
        if any(math.isfinite(y) for y in found.y)
    }
    if not curves:
        return Figure(name, title, caption, missing=f"no `{score}` rows with numbers on the validation split")

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        epoch_lines(ax, curves, theme)
        if level is not None:
            ax.axhline(level[0], color=theme["muted"], linestyle=":", linewidth=1.2)
            ax.annotate(
                level[1], (1, level[0]), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                textcoords="offset points", horizontalalignment="right", fontsize=8, color=theme["muted"],
            )  # fmt: skip
        if score == "gap_read":
            ax.axhline(0, color=theme["muted"], linewidth=0.8)
        ax.set(xlabel="layer (0 = what enters the first block)", ylabel=label)

    unit = series.unit_of(list(curves))
    table = table_of([([epoch], found) for epoch, found in curves.items()], [unit], "layer")
    if len(curves) > MAX_LINES:
        caption += f" {MAX_LINES} of {len(curves)} {unit}s are drawn; the CSV has all."
    return Figure(name, title, caption, draw, table)


def retrieval(rows: Sequence[series.Row]) -> Figure:
    """What raw IMA cannot tell from noise: whether a medium finds the text that belongs to it."""
    word = series.medium_word(rows)
    chance = chance_of(rows)
    level = None if chance is None else (chance, f"chance {chance:.3f}")
    return layer_figure(
        rows, "retrieval_by_layer", f"Does a {word} find its own text?",
        f"Share of {series.media_word(rows)} whose nearest text is their own, layer by layer. The texts were read by"
        " the LLM alone, so they know nothing of the media; both sides are centred and without sinks. At layer 0 the"
        " adapter has done it all; what rises after it the LLM adds. 0: the untrained adapter.",
        "retrieval", "share that finds its own text", "centred", level,
    )  # fmt: skip


def chance_of(rows: Sequence[series.Row]) -> float | None:
    return next((row["value"] for row in rows if row["score"] == "retrieval_chance" and row["value"]), None)


def heat_map(rows: Sequence[series.Row]) -> Figure:
    curves = series.by_layer(rows, "sim")
    unit = series.unit_of(list(curves))
    title, name = f"IMA by layer and {unit}", "ima_heatmap"
    caption = "The same similarity as a map: where in the stack, and when in training, it rises or falls."
    values = [y for found in curves.values() for y in found.y if math.isfinite(y)]
    if not values:
        return Figure(name, title, caption, missing="no `sim` rows with numbers on the validation split")
    if len(curves) < 2:
        return Figure(name, title, caption, missing=f"only one {unit} was measured: a map needs two")
    shown = sorted(curves)
    layers = sorted({int(x) for found in curves.values() for x in found.x})

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        points = {(epoch, int(x)): y for epoch, found in curves.items() for x, y, _ in found.points}
        cells = [[points.get((epoch, layer), math.nan) for epoch in shown] for layer in layers]
        image = ax.imshow(
            cells,
            aspect="auto",
            origin="lower",
            cmap="viridis",
            interpolation="none",
            vmin=min(values),
            vmax=max(values),
        )
        ax.grid(False)
        step = max(1, round(len(layers) / 6))
        ax.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        ticks = thinned(range(len(shown)), 10)
        ax.set_xticks(ticks, [str(shown[tick]) for tick in ticks])
        ax.set(xlabel=series.epoch_key(shown), ylabel="layer")
        bar = figure.colorbar(image, ax=ax, label="mean cosine, P against T", pad=0.02)
        bar.outline.set_visible(False)

    return Figure(name, title, caption, draw, table_of([([epoch], curves[epoch]) for epoch in shown], [unit], "layer"))


def variants(rows: Sequence[series.Row]) -> Figure:
    title, name = "What the similarity is made of", "ima_variants"
    word, words = series.medium_word(rows), series.media_word(rows)
    caption = (
        f"Last measurement. Raw: all pairs of {word} and text. Own text: a {word} against its own text only. No"
        f" sinks: without the first position and BOS. Layer-0 {words}: perceptual tokens as they enter the LLM."
    )
    wanted = (
        ("raw, all pairs", "sim", "raw"),
        ("own text", "sim_matched", "raw"),
        ("no sinks", "sim", "nosink"),
        (f"layer-0 {words}", "sim_p0", "raw"),
    )
    curves: list[tuple[str, Curve]] = []
    for label, score, variant in wanted:
        found = series.by_layer(rows, score, variant)
        if found:
            curves.append((label, found[max(found)]))
    if not curves:
        return Figure(name, title, caption, missing="no alignment rows on the validation split")

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        for index, (label, found) in enumerate(curves):
            line(ax, found, theme.category(index), label, linestyle=DASHES[index])
        ax.set(xlabel="layer", ylabel="mean cosine, P against T")
        legend(ax, columns=2)

    return Figure(
        name, title, caption, draw, table_of([([label], found) for label, found in curves], ["variant"], "layer")
    )


def ima_by_epoch(rows: Sequence[series.Row]) -> Figure:
    measured = series.epochs(rows)
    unit = series.unit_of(measured)
    title, name = f"IMA score by {unit}", "ima_by_epoch"
    caption = f"The similarity pooled over all layers: one number per {unit}, with its 95 % interval."
    wanted = (
        ("IMA", "ima", "raw"),
        ("no sinks", "ima", "nosink"),
        (f"layer-0 {series.media_word(rows)}", "ima_p0", "raw"),
    )
    curves = [
        (label, found) for label, score, variant in wanted if (found := series.by_epoch(rows, score, variant)).points
    ]
    if not curves:
        return Figure(name, title, caption, missing="no pooled `ima` rows of an epoch")

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        for index, (label, found) in enumerate(curves):
            line(ax, found, theme.category(index), label, linestyle=DASHES[index], marker=MARKERS[index])
        ax.set(xlabel=series.epoch_key(measured), ylabel="IMA (mean cosine)")
        whole_ticks(ax)
        legend(ax)

    return Figure(name, title, caption, draw, table_of([([label], found) for label, found in curves], ["score"], unit))


def norms(rows: Sequence[series.Row]) -> Figure:
    title, name = "Token norms by layer", "norms"
    caption = (
        "Median L2 norm of perceptual (P) and textual (T) tokens at the last measurement, band: quartiles; dotted:"
        " the untrained adapter."
    )
    roles = series.roles_of(rows, "norm_q50")
    curves = {}
    for role in roles:
        measured = series.epochs(series.where(rows, score="norm_q50", role_a=role))
        for epoch in sorted({measured[0], measured[-1]} if measured else ()):
            found = series.norms(rows, role, epoch)
            if any(math.isfinite(y) and y > 0 for y in found["q50"].y):
                curves[role, epoch] = found
    if not curves:
        return Figure(name, title, caption, missing="no `norm_q50` rows with numbers")
    last = max(epoch for _, epoch in curves)

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        for (role, epoch), found in curves.items():
            colour = theme["P" if role == "P" else "T"]
            if epoch == last:
                low, high = found["q25"], found["q75"]
                if low.x == high.x == found["q50"].x:
                    ax.fill_between(low.x, low.y, high.y, color=colour, alpha=0.18, linewidth=0)
                line(ax, found["q50"], colour, role, linestyle=DASHES[0 if role == "P" else 1])
            else:
                line(ax, found["q50"], colour, f"{role}, epoch {epoch}", linestyle=DASHES[2], linewidth=1.2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel="layer", ylabel="L2 norm (log scale)")
        legend(ax)

    header, table = table_of(
        [
            ([role, epoch, quartile], curve)
            for (role, epoch), found in curves.items()
            for quartile, curve in found.items()
        ],
        ["role", "epoch", "quartile"],
        "layer",
    )
    return Figure(name, title, caption, draw, (header, table))


def consecutive(rows: Sequence[series.Row]) -> Figure:
    title, name = "Consecutive similarity", "consecutive"
    caption = (
        "Last measurement: cosine of a token with itself one and eight blocks on. Near 1: the blocks in between change"
        " little, a candidate for skipping."
    )
    kept = series.where(rows, score="consecutive")
    measured = series.epochs(kept)
    steps = sorted(
        {row["layer_b"] - row["layer_a"] for row in kept if row["layer_a"] is not None and row["layer_b"] is not None}
    )
    curves = [
        (role, step, found)
        for role in series.roles_of(rows, "consecutive")
        for step in steps
        if any(map(math.isfinite, (found := series.consecutive(rows, role, step, measured[-1])).y))
    ]
    if not curves:
        return Figure(name, title, caption, missing="no `consecutive` rows with numbers")

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        for role, step, found in curves:
            style = DASHES[steps.index(step) % len(DASHES)]
            line(ax, found, theme["P" if role == "P" else "T"], f"{role}, {step} on", linestyle=style)
        ax.set(xlabel="layer from which it starts", ylabel="cosine")
        legend(ax)

    return Figure(
        name,
        title,
        caption,
        draw,
        table_of([([role, step], found) for role, step, found in curves], ["role", "blocks_on"], "layer"),
    )
