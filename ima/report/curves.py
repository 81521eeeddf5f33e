"""Rows -> the curves that figures draw. The one place that knows which score names mean what.

A resumed run may have measured the same point twice: the later row wins. Values that are None (not finite when
written) stay in, so that a figure shows a gap there instead of joining what is not joined.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ima.core.metric_names import BLOCK_OUTPUTS, CONTROL_TRACKS, LIMITS, limit_score

Row = dict[str, Any]
TEXT_ROLES = ("T", "T.answer", "T.prompt", "T.text")
MEDIA = {"image": "picture", "video": "clip", "audio": "sound"}
TRACKS = ("T0", "T1", "T2", "test", "val")
EVALUATED = -1  # stands for the epoch where a run has none: one evaluation of a checkpoint
Z95 = 1.959964


class Step(int):
    """Stands for the epoch in the rows of a run that measured its alignment every so many steps."""


@dataclasses.dataclass
class Curve:
    """Points (x, y, se) with x rising; y NaN where there is no number, se 0 where there is no error. `limits`: measured
    95 % intervals by x, which need not be symmetric; they stand before 1.96 se."""

    label: str
    points: list[tuple[float, float, float]]
    limits: dict[float, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def x(self) -> list[float]:
        return [x for x, _, _ in self.points]

    @property
    def y(self) -> list[float]:
        return [y for _, y, _ in self.points]

    @property
    def band(self) -> tuple[list[float], list[float]]:
        """95 % limits: as measured, else value -+ 1.96 se."""
        pairs = [self.limits.get(x, (y - Z95 * se, y + Z95 * se)) for x, y, se in self.points]
        return [low for low, _ in pairs], [high for _, high in pairs]

    @property
    def has_band(self) -> bool:
        return bool(self.limits) or any(se > 0 for _, _, se in self.points)


def finite(value: Any, default: float = math.nan) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return default


def curve(rows: Iterable[Row], label: str, x: Callable[[Row], Any]) -> Curve:
    """The rows as one curve over `x(row)`; rows without an x are left out."""
    last: dict[float, Row] = {}
    for row in rows:
        at = x(row)
        if at is not None:
            last[float(at)] = row
    points = [(at, finite(row["value"]), finite(row["se"], 0.0)) for at, row in sorted(last.items())]
    return Curve(label, points)


def where(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """Rows whose fields equal the given values; a tuple means any of them."""
    wanted = [(key, value if isinstance(value, tuple) else (value,)) for key, value in fields.items()]
    return [row for row in rows if all(row[key] in values for key, values in wanted)]


def unit_of(epochs: Sequence[int]) -> str:
    """What these numbers count: epochs, or steps where a run measured its alignment by step."""
    return "step" if any(isinstance(epoch, Step) for epoch in epochs) else "epoch"


def epoch_key(epochs: Sequence[int]) -> str:
    """What a legend of these epochs, or of steps, is headed."""
    return "" if list(epochs) == [EVALUATED] else f"{unit_of(epochs)} (0 = untrained adapter)"


def by_step(rows: Sequence[Row]) -> list[Row]:
    """The rows of a run whose alignment was measured every so many steps: the step stands in for the epoch."""
    return [
        {**row, "epoch": Step(row["step"])}
        if row["step"] is not None and row["track"] is None and row["split"] != "train"
        else row
        for row in rows
    ]


def epoch_name(epoch: int) -> str:
    return "as evaluated" if epoch == EVALUATED else str(epoch)


def measured_split(rows: Iterable[Row]) -> tuple[str | None, ...]:
    """The validation split under its names; another one where alignment was measured on that alone."""
    usual = ("val", "validation", None)
    found = {row["split"] for row in rows if row["score"] == "sim"}
    return tuple(found) if found and not found & set(usual) else usual


def alignment_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows at the block outputs of the split that alignment was measured on (the validation split, unless the config
    named another one), of one pair of datasets (the most frequent: curves must not mix two)."""
    kept = where(rows, split=measured_split(rows), site=BLOCK_OUTPUTS)
    kept = [row for row in kept if row["track"] in (None, "val")]
    if not kept:
        return []
    if all(row["epoch"] is None for row in kept):
        kept = [{**row, "epoch": EVALUATED} for row in kept]
    pairs = Counter(
        (row["dataset_a"], row["dataset_b"], row["modality_a"], row["modality_b"])
        for row in kept
        if row["score"] == "sim"
    )
    if len(pairs) < 2:
        return kept
    chosen = pairs.most_common(1)[0][0]
    fields = ("dataset_a", "dataset_b", "modality_a", "modality_b")
    return [
        row for row in kept if all(row[field] in (None, value) for field, value in zip(fields, chosen, strict=True))
    ]


def split_track(track: str) -> tuple[str, str]:
    """(entry of the mixture, track of its own); the entry is "" in a run of one task."""
    entry, _, name = track.rpartition("/")
    return entry, name


def by_entry(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each entry of a mixture, tracks without its name, in the order of their first row; without those of the
    training steps, which are of all entries. {"": rows} for a run of one task."""
    told = [row for row in rows if row["split"] != "train" and row["task"] is not None]
    names = dict.fromkeys(entry for row in told if row["track"] and (entry := split_track(row["track"])[0]))
    if measured := list(dict.fromkeys(row["task"] for row in told if row["score"] in ("sim", "val_loss"))):
        names = dict.fromkeys(measured) if len(measured) > 1 or set(measured) == set(names) else names
    if not names:
        return {"": list(rows)}
    found: dict[str, list[Row]] = {name: [] for name in names}
    for row in told:
        if row["task"] in found:
            track = row["track"] and split_track(row["track"])[1]
            found[row["task"]].append(row if track == row["track"] else {**row, "track": track})
    return found


def modality_of(rows: Sequence[Row]) -> str:
    """Of the media of one entry; "" where no row tells."""
    return next((str(row["modality_a"]) for row in rows if row["modality_a"] not in (None, "text")), "")


def medium_word(rows: Sequence[Row]) -> str:
    """What the run's media are called: picture, clip, sound, or medium."""
    return MEDIA.get(modality_of(rows), "medium")


def media_word(rows: Sequence[Row]) -> str:
    word = medium_word(rows)
    return "media" if word == "medium" else f"{word}s"


def text_role(rows: Iterable[Row], score: str) -> str | None:
    """The widest textual role that `score` was measured for."""
    present = {row["role_b"] for row in rows if row["score"] == score}
    return next((role for role in TEXT_ROLES if role in present), None)


def epochs(rows: Iterable[Row]) -> list[int]:
    return sorted({row["epoch"] for row in rows if row["epoch"] is not None})


def by_layer(rows: Sequence[Row], score: str, variant: str = "raw", role: str | None = None) -> dict[int, Curve]:
    """Cross-modal score over the textual layer, one curve per epoch (or step)."""
    role = role or text_role(rows, score)
    variants = (variant, None) if variant == "raw" else (variant,)
    kept = [row for row in where(rows, score=score, role_b=role, variant=variants) if row["layer_b"] is not None]
    return {
        epoch: curve(where(kept, epoch=epoch), f"{unit_of([epoch])} {epoch}", lambda row: row["layer_b"])
        for epoch in epochs(kept)
    }


def by_epoch(rows: Sequence[Row], score: str, variant: str = "raw") -> Curve:
    """A score pooled over the layers, over the epochs (or steps)."""
    role = text_role(rows, score)
    variants = (variant, None) if variant == "raw" else (variant,)
    kept = [row for row in where(rows, score=score, variant=variants, role_b=(role,)) if row["layer_a"] in (None, 0)]
    return curve(kept, score, lambda row: None if row["epoch"] == EVALUATED else row["epoch"])


def norms(rows: Sequence[Row], role: str, epoch: int) -> dict[str, Curve]:
    """Quartiles of the token norms by layer: keys q25, q50, q75."""
    return {
        quartile: curve(
            where(rows, score=f"norm_{quartile}", role_a=role, epoch=epoch), role, lambda row: row["layer_a"]
        )
        for quartile in ("q25", "q50", "q75")
    }


def consecutive(rows: Sequence[Row], role: str, step: int, epoch: int) -> Curve:
    """Similarity of a token with itself `step` layers on, over the layer it starts from."""
    kept = [
        row
        for row in where(rows, score="consecutive", role_a=role, epoch=epoch)
        if row["layer_a"] is not None and row["layer_b"] == row["layer_a"] + step
    ]
    return curve(kept, f"{role}, {step} on", lambda row: row["layer_a"])


def roles_of(rows: Iterable[Row], score: str) -> list[str]:
    """P first, then the widest textual role that the score has."""
    present = {row["role_a"] for row in rows if row["score"] == score}
    textual = next((role for role in TEXT_ROLES if role in present), None)
    return [role for role in ("P", textual) if role is not None and role in present]


def training(rows: Sequence[Row]) -> dict[str, Curve]:
    """Loss over steps: keys train and val (those that exist). Validation epochs land on the step where they ended."""
    trained = where(rows, score="train_loss")
    ends: dict[int, int] = {}
    for row in trained:
        if row["epoch"] is not None and row["step"] is not None:
            ends[row["epoch"]] = max(ends.get(row["epoch"], 0), row["step"])
    offset = 1 if ends and min(ends) == 0 else 0

    def step_of(row: Row) -> int | None:
        """The row's own step, else the end of its epoch; epoch 0 of validation is before the first step."""
        if row["step"] is not None:
            return int(row["step"])
        epoch = row["epoch"]
        if epoch is None or epoch == 0 or not ends:
            return epoch
        return ends.get(epoch - offset)

    curves = {
        "train": curve(trained, "training", lambda row: row["step"]),
        "val": curve(where(rows, score="val_loss"), "validation", step_of),
    }
    return {name: found for name, found in curves.items() if found.points}


def task_scores(rows: Sequence[Row]) -> dict[str, dict[str, Curve]]:
    """Task metrics: score -> track -> curve over epochs. A task metric is a row that has a track and no layer; its
    interval are the rows `<score>_low` and `<score>_high`."""
    kept = [
        row
        for row in rows
        if row["track"] is not None
        and row["layer_a"] is None
        and row["layer_b"] is None
        and row["role_a"] is None
        and row["variant"] is None
        and not row["score"].endswith("loss")
    ]
    table: dict[str, dict[str, list[Row]]] = {}
    for row in kept:
        table.setdefault(row["score"], {}).setdefault(row["track"], []).append(row)
    curves = {
        score: {
            track: curve(tracks[track], track, lambda row: row["epoch"] or 0)
            for track in sorted(tracks, key=track_rank)
        }
        for score, tracks in table.items()
    }
    for score in [name for name in curves if all(limit_score(name, limit) in curves for limit in LIMITS)]:
        lows, highs = (curves.pop(limit_score(score, limit)) for limit in LIMITS)
        for track, found in curves[score].items():
            if track in lows and track in highs:
                low, high = dict(zip(lows[track].x, lows[track].y, strict=True)), highs[track]
                found.limits = {x: (low[x], y) for x, y in zip(high.x, high.y, strict=True) if x in low}
    return curves


def track_rank(track: str) -> tuple[str, int, str]:
    """Tracks first, then those that are not known here, then what stands beside them; of a mixture, by entry."""
    entry, name = split_track(track)
    if name in CONTROL_TRACKS:
        return (entry, len(TRACKS) + 1 + CONTROL_TRACKS.index(name), name)
    return (entry, TRACKS.index(name) if name in TRACKS else len(TRACKS), name)
