"""Where numbers go: rows.jsonl, the metrics of result.json, and the loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ima.core.errors import UserError
from ima.core.metric_names import error_of, metric_name
from ima.core.types import Row
from ima.runs.results import RowWriter

Base = dict[str, Any]


class Recorder:
    """Where numbers go: rows.jsonl on rank 0, and the same numbers to the loggers (W&B) as scalars."""

    def __init__(self, run: str, writer: RowWriter | None, facts: Base, entry: str = "") -> None:
        self.run, self.writer, self.facts, self.entry = run, writer, facts, entry
        self.metrics: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.mirrors: list[Callable[[list[Row]], None]] = []

    def write(self, rows: Sequence[Row]) -> None:
        if self.writer is not None:
            self.writer.write(rows)
            for mirror in self.mirrors:
                mirror(list(rows))

    def keep(self, rows: Sequence[Row]) -> None:
        """The metrics among rows, for the result; in a recorder of an entry without its name."""
        for name, row in self.rows_by_name(rows).items():
            name = name.removeprefix(f"{self.entry}/")
            self.metrics |= {name: row.value} | ({} if row.se is None else {error_of(name): row.se})

    def note(self, rows: Sequence[Row]) -> dict[str, float]:
        """The metrics among rows that were just measured, by name; they are `latest` until the next ones."""
        self.latest = self.named(rows)
        return self.latest

    def named(self, rows: Sequence[Row]) -> dict[str, float]:
        return {name: row.value for name, row in self.rows_by_name(rows).items()}

    def rows_by_name(self, rows: Sequence[Row]) -> dict[str, Row]:
        named = ((metric_name(row, mixture=bool(self.entry)), row) for row in rows)
        return {name: row for name, row in named if name is not None}

    def forget(self, step: int) -> None:
        """Drop what was measured at a step, which is measured again."""
        if self.writer is not None:
            self.writer.drop(lambda row: row["split"] != "train" and row["step"] == step)

    def of_entry(self, entry: str, facts: Base) -> Recorder:
        """For one entry of a mixture: its rows carry its name as task and before the track; metrics of its own."""
        recorder = Recorder(self.run, self.writer, facts | {"task": entry}, entry)
        recorder.mirrors = self.mirrors
        return recorder

    def base(self, **fields: Any) -> Base:
        if self.entry and fields.get("track"):
            fields["track"] = f"{self.entry}/{fields['track']}"
        return {"run": self.run} | self.facts | fields


def drop_unfinished(writer: RowWriter, step: int, measured: int, num_rows: int | None = None) -> int:
    """Rows that a resumed run will write again: of training steps after `step`, and of measurements after the step
    `measured` (-1: of all). num_rows: how many the run had written by then; raises UserError where others are left."""

    def unwanted(row: dict[str, Any]) -> bool:
        last = step if row["split"] == "train" else measured
        return row["step"] is None or row["step"] > last

    num = writer.drop(unwanted)
    if num_rows is not None and writer.num_rows != num_rows:
        raise UserError(
            f"{writer.path}: {writer.num_rows} rows up to step {step}, the run had written {num_rows}; was the file "
            "changed? Put it back, or overwrite=true trains the run anew"
        )
    return num
