"""The figure of a task's parts: last measurement, only scores that a track of its own has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ima.core.types import Row
from ima.report.figures.task import task_parts


def rows(score: str, track: str, value: float, epoch: int = 1) -> dict[str, Any]:
    return dataclasses.asdict(Row("r", score, value, track=track, split=track, epoch=epoch))


def test_parts_are_drawn_from_the_last_measurement_and_only_where_a_track_has_them(tmp_path: Path) -> None:
    given = [
        rows("motion_accuracy", "T0", 0.2, epoch=1), rows("motion_accuracy", "T0", 0.7, epoch=2),
        rows("order_accuracy", "blind", 0.0), rows("noun_accuracy", "T0", 0.5), rows("accuracy_which", "T1", 0.4),
        rows("accuracy_which", "prior", 0.1),
    ]  # fmt: skip
    (figure,) = task_parts(given)
    drawn = [(row[0], row[1], row[3]) for row in figure.table[1]]
    assert drawn == [("motion_accuracy", "T0", 0.7), ("accuracy_which", "T1", 0.4), ("accuracy_which", "prior", 0.1)]
    figure.save(tmp_path)
    assert (tmp_path / "task_parts.svg").stat().st_size > 0


def test_a_task_without_parts_has_no_such_figure() -> None:
    assert task_parts([rows("noun_accuracy", "T0", 0.5)]) == []
