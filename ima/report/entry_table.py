"""What a mixture's result says of each of its entries, as one table: score, IMA, hallucination.

Reads the metrics and facts of result.json; knows neither models nor runs in progress, so that the end of a run,
its page and comparisons of runs show the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ima.core.csv_text import csv_text
from ima.core.metric_names import IMA_MEAN, LIMITS, TRACKS_WITHOUT_MEDIA, VAL_LOSS, error_of, limits_of

HALLUCINATION = ("f1", "yes_ratio", "chair_s", "chair_i")  # what tells of it, where a task has it
COLUMNS = ("entry", "modality", "track", "metric", "value", *LIMITS, *TRACKS_WITHOUT_MEDIA, "ima", "ima_se", "loss",
           *HALLUCINATION)  # fmt: skip

Line = dict[str, Any]


def entry_lines(metrics: Mapping[str, float | None], entries: Mapping[str, Any]) -> list[Line]:
    """COLUMNS of each entry: its headline on its first track with the 95 % interval, the same blind and by prior, IMA
    with its standard error, validation loss, hallucination. None where something was not measured."""
    lines = []
    for name, facts in entries.items():
        headline = facts["headline"]
        tracks = [key.split("/")[1] for key in metrics if key.startswith(f"{name}/") and key.endswith(f"/{headline}")]
        track = next((track for track in tracks if track not in TRACKS_WITHOUT_MEDIA), "")
        keys = {
            "value": f"{track}/{headline}", **dict(zip(LIMITS, limits_of(f"{track}/{headline}"), strict=True)),
            **{beside: f"{beside}/{headline}" for beside in TRACKS_WITHOUT_MEDIA}, "ima": IMA_MEAN,
            "ima_se": error_of(IMA_MEAN), "loss": VAL_LOSS, **{score: f"{track}/{score}" for score in HALLUCINATION},
        }  # fmt: skip
        known = {"entry": name, "modality": facts["modality"], "track": track, "metric": headline}
        found = {column: metrics.get(f"{name}/{key}") for column, key in keys.items()}
        lines.append(known | {column: value if value == value else None for column, value in found.items()})  # NaN
    return lines


def columns_of(lines: Sequence[Line]) -> list[str]:
    """What the lines were given beside COLUMNS comes first (a page of several runs: which run)."""
    return [*(column for column in (lines[0] if lines else {}) if column not in COLUMNS), *COLUMNS]


def text_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Header and cells as text, three digits; columns that no entry has are left out."""
    shown = [column for column in columns_of(lines) if any(line.get(column) is not None for line in lines)]
    return [shown, *([cell(line.get(column)) for column in shown] for line in lines)]


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def csv_of(lines: Sequence[Line]) -> str:
    """All columns, whether an entry has them or not."""
    columns = columns_of(lines)
    return csv_text(columns, [[cell(line.get(column)) for column in columns] for line in lines])
