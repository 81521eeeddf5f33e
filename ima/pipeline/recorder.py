"""Where numbers go: rows.jsonl, the metrics of result.json, and the loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ima.core.types import Row
from ima.runs.results import RowWriter
from ima.tasks.base import Metric

Base = dict[str, Any]


class Recorder:
    """Where numbers go: rows.jsonl on rank 0, and the same numbers to the loggers (W&B) as scalars."""

    def __init__(self, run: str, writer: RowWriter | None, facts: Base, entry: str = "") -> None:
        self.run, self.writer, self.facts, self.entry = run, writer, facts, entry
        self.metrics: dict[str, float] = {}
        self.mirrors: list[Callable[[list[Row]], None]] = []

    def write(self, rows: Sequence[Row]) -> None:
        if self.writer is not None:
            self.writer.write(rows)
            for mirror in self.mirrors:
                mirror(list(rows))

    def of_entry(self, entry: str, facts: Base) -> Recorder:
        """For one entry of a mixture: its rows carry its name as task and before the track; metrics of its own."""
        recorder = Recorder(self.run, self.writer, facts | {"task": entry}, entry)
        recorder.mirrors = self.mirrors
        return recorder

    def base(self, **fields: Any) -> Base:
        if self.entry and fields.get("track"):
            fields["track"] = f"{self.entry}/{fields['track']}"
        return {"run": self.run} | self.facts | fields


def pooled_name(row: Row) -> str | None:
    """Name in the result of an alignment score that is pooled over layers; at the block outputs, not inside blocks."""
    if row.layer_a is not None or row.role_b != "T" or row.site not in (None, "resid_post"):
        return None
    if row.score.startswith("ima"):
        return f"{row.score}/mean" + ("" if row.variant == "raw" else f"/{row.variant}")
    return row.score if row.variant == "raw" else f"{row.score}/{row.variant}"


def flat(metrics: Sequence[Metric], track: str) -> dict[str, float]:
    named: dict[str, float] = {}
    for metric in metrics:
        named[f"{track}/{metric.name}"] = metric.value
        if metric.low == metric.low:
            named |= {f"{track}/{metric.name}/low": metric.low, f"{track}/{metric.name}/high": metric.high}
    return named


def drop_unfinished(writer: RowWriter, step: int, measured: int) -> int:
    """Rows that a resumed run will write again: training steps after `step`, epochs after `measured`."""

    def unwanted(row: dict[str, Any]) -> bool:
        if row["split"] == "train":
            return (row["step"] or 0) > step
        return row["epoch"] is None or row["epoch"] > measured

    return writer.drop(unwanted)
