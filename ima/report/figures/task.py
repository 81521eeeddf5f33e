"""Figures of learning: the training curve and the task metrics by track and epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ima.core.metric_names import CONTROL_TRACKS
from ima.report import curves as series
from ima.report.curves import Curve
from ima.report.figures.drawing import Figure, legend, line, table_of, whole_ticks
from ima.report.figures.style import DASHES, HEIGHT, MARKERS, Theme

MAX_POINTS = 300
PART_SCORES = ("motion_accuracy", "order_accuracy", "category_accuracy", "pair_accuracy", "macro_accuracy", "slot_f1",
               "object_recall", "chair_i", "chair_s")  # fmt: skip
HEADLINE_SCORES = ("noun_accuracy", "accuracy", "noun_f1", "cider_d")


def smooth(found: Curve, share: float = 0.03) -> Curve:
    """PassContext mean over `share` of the points (centred), thinned to MAX_POINTS; gaps are skipped."""
    points = [point for point in found.points if math.isfinite(point[1])]
    reach = max(1, round(len(points) * share))
    step = max(1, len(points) // MAX_POINTS)
    means = []
    for at in range(0, len(points), step):
        near = points[max(0, at - reach) : at + reach + 1]
        means.append((points[at][0], sum(y for _, y, _ in near) / len(near), 0.0))
    return Curve(found.label, means)


def thin(found: Curve) -> Curve:
    step = max(1, len(found.points) // MAX_POINTS)
    return Curve(found.label, found.points[::step])


def training(rows: Sequence[series.Row]) -> Figure:
    """Of a mixture, with a validation curve for each entry."""
    title, name = "Training curve", "training"
    caption = "Cross-entropy on the answer tokens (nats per token): each step, its running mean, and validation."
    groups = series.by_entry(rows)
    steps = [row for row in rows if row["score"] == "train_loss"]
    curves: dict[str, Curve] = {}
    for entry, own in groups.items():
        found = series.training([*steps, *(row for row in own if row["score"] != "train_loss")])
        if "train" in found:
            curves["train"] = found["train"]
        if "val" in found:
            curves["val" if len(groups) == 1 else f"val {entry}"] = found["val"]
    curves = {key: found for key, found in curves.items() if any(map(math.isfinite, found.y))}
    if not curves:
        return Figure(name, title, caption, missing="no `train_loss` or `val_loss` rows with numbers")

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        if "train" in curves:
            ax.plot(
                *zip(*[(x, y) for x, y, _ in thin(curves["train"]).points], strict=True),
                color=theme["c0"],
                alpha=0.35,
                linewidth=0.9,
                label="training, step",
            )
            line(ax, smooth(curves["train"]), theme["c0"], "training, mean")
        for index, (key, found) in enumerate((key, found) for key, found in curves.items() if key != "train"):
            label = key.replace("val", "validation", 1)
            dash, marker = DASHES[(1 + index) % len(DASHES)], MARKERS[index % len(MARKERS)]
            line(ax, found, theme.category(1 + index), label, marker=marker, linestyle=dash)
        ax.set(xlabel="step", ylabel="loss")
        whole_ticks(ax)
        if len(curves) > 2:
            legend(ax, columns=2)
        else:
            ax.legend(loc="upper right")

    return Figure(
        name, title, caption, draw, table_of([([key], found) for key, found in curves.items()], ["curve"], "step")
    )


CAPTION = "Generated texts, scored; bars: 95 % interval. Grey: without the medium (blind), guessed (prior), spoilt."


def headline_of(scores: dict[str, dict[str, Curve]], wanted: str | None = None) -> str | None:
    """The score that stands for a task: the wanted one, else the first headline that was measured."""
    return next((score for score in (wanted, *HEADLINE_SCORES, *sorted(scores)) if score in scores), None)


def known_tracks(tracks: dict[str, Curve]) -> dict[str, Curve]:
    return {track: found for track, found in tracks.items() if any(map(math.isfinite, found.y))}


def measured_once(tracks: dict[str, Curve]) -> bool:
    return all(len(found.points) == 1 for found in tracks.values())


def draw_tracks(
    ax: Axes, tracks: dict[str, Curve], theme: Theme, single: bool, order: Sequence[str] | None = None
) -> None:
    """A line over the epochs per track, or a point where each was measured once. `order`: of the looks, where several
    plots share them."""
    for place, (track, found) in enumerate(tracks.items()):
        index = place if order is None else order.index(track)
        beside = track in CONTROL_TRACKS
        low, high = found.band
        error = [
            [y - a for y, a in zip(found.y, low, strict=True)],
            [b - y for y, b in zip(found.y, high, strict=True)],
        ]
        ax.errorbar(
            [float(place)] if single else found.x,
            found.y,
            yerr=error if found.has_band else None,
            label=track,
            capsize=2.5,
            color=theme["before"] if beside else theme.category(index),
            elinewidth=1,
            linestyle="none" if single else DASHES[1 if beside else 0],
            marker=MARKERS[index % len(MARKERS)],
            markersize=7 if single else 4.5,
        )
    values = [y for found in tracks.values() for y in found.y if math.isfinite(y)]
    ax.set_ylim(bottom=min(0.0, *values), top=None if max(values) > 1 else 1.02)
    if single:
        ax.set_xticks(range(len(tracks)), [track.replace("_", "\n") for track in tracks])
        ax.set_xlim(-0.6, len(tracks) - 0.4)
    else:
        whole_ticks(ax)


def track_handles(tracks: Sequence[str], theme: Theme) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=theme["before"] if track in CONTROL_TRACKS else theme.category(index),
            marker=MARKERS[index % len(MARKERS)],
            linestyle=DASHES[1 if track in CONTROL_TRACKS else 0],
            label=track,
        )
        for index, track in enumerate(tracks)
    ]


def tasks(rows: Sequence[series.Row]) -> Figure:
    title, name = "Task metric by epoch", "tasks"
    scores = series.task_scores(rows)
    score = headline_of(scores)
    if score is None:
        return Figure(name, title, CAPTION, missing="no task metric rows, as before the first evaluation")
    tracks = known_tracks(scores[score])
    if not tracks:
        return Figure(name, title, CAPTION, missing=f"every `{score}` row is without a number")
    single = measured_once(tracks)

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        draw_tracks(ax, tracks, theme, single)
        ax.set(ylabel=score.replace("_", " "), xlabel="track" if single else "epoch")
        if not single:
            legend(ax, handles=track_handles(list(tracks), theme))

    table = table_of(
        [([score_name, track], found) for score_name, by_track in scores.items() for track, found in by_track.items()],
        ["score", "track"],
        "epoch",
    )
    heading = f"{score.replace('_', ' ').capitalize()} by {'track' if single else 'epoch'}"
    return Figure(name, heading, CAPTION, draw, table)


def task_parts(rows: Sequence[series.Row]) -> list[Figure]:
    """What the headline hides: motion, order, kinds of questions... of the last measurement; nothing where there are
    no such scores. Of a mixture, entry by entry."""
    groups = series.by_entry(rows)
    found: dict[tuple[str, str], dict[str, Curve]] = {}
    for entry, own in groups.items():
        for name, tracks in series.task_scores(own).items():
            if name in PART_SCORES or name.startswith("accuracy_") or name.endswith("_f1"):
                measured = {track: curve for track, curve in tracks.items() if known(curve)}
                if set(measured) - set(CONTROL_TRACKS):
                    found[entry if len(groups) > 1 else "", name] = measured
    if not found:
        return []
    names = [" ".join(filter(None, (entry and f"{entry}:", name.replace("_", " ")))) for entry, name in found]
    order = sorted({track for by_track in found.values() for track in by_track}, key=series.track_rank)
    caption = "Scores of parts of the task, last measurement, with 95 % intervals; grey: rows beside the first track."

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_figheight(max(HEIGHT, 1.2 + 0.24 * len(found)))
        ax = figure.add_subplot()
        for index, track in enumerate(order):
            places = [place for place, by_track in enumerate(found.values()) if track in by_track]
            curves = [by_track[track] for by_track in found.values() if track in by_track]
            y = [place + (index - (len(order) - 1) / 2) * 0.6 / len(order) for place in places]
            x = [curve.y[-1] for curve in curves]
            ends = [(curve.band[0][-1], curve.band[1][-1]) for curve in curves]
            ends = [(a, b) if math.isfinite(a) else (v, v) for (a, b), v in zip(ends, x, strict=True)]
            error = [[max(0.0, v - a) for v, (a, _) in zip(x, ends, strict=True)],
                     [max(0.0, b - v) for v, (_, b) in zip(x, ends, strict=True)]]  # fmt: skip
            colour = theme["before"] if track in CONTROL_TRACKS else theme.category(index)
            ax.errorbar(x, y, xerr=error, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5,
                        linestyle="none", elinewidth=1, capsize=2, label=track.replace("_", " "))  # fmt: skip
        ax.set_yticks(range(len(found)), names, fontsize=9 if len(found) < 12 else 7.5)
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("value")
        legend(ax)

    keys = ["entry"] if len(groups) > 1 else []
    table = table_of(
        [([*([entry] if keys else []), name, track], Curve(track, curve.points[-1:]))
         for (entry, name), by_track in found.items() for track, curve in by_track.items()],
        [*keys, "score", "track"], "epoch",
    )  # fmt: skip
    return [Figure("task_parts", "Parts of the task", caption, draw, table)]


def known(curve: Curve) -> bool:
    return bool(curve.y) and math.isfinite(curve.y[-1])
