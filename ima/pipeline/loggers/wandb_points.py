"""Rows as points of charts: what a W&B run is told while the rows of its run folder grow. No wandb here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ima.core.metric_names import TEXT_ALONE, layer_name, metric_name
from ima.core.types import ROW_FIELDS, Row

Point = tuple[int | None, int | None, dict[str, float]]  # epoch, step, chart -> value
Place = tuple[int, int]  # (step, epoch), as far as a chart has got


class Tail:
    """What was appended to a file of rows since the last look. A file that got shorter was begun anew."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def rows(self) -> list[Row]:
        try:
            if self.path.stat().st_size < self.offset:
                self.offset = 0
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return list(filter(None, map(row_of, whole.splitlines())))


def row_of(line: bytes) -> Row | None:
    """None for a line that is no row: whoever reads the file next says so."""
    try:
        found = json.loads(line)
        value = math.nan if found["value"] is None else float(found["value"])
        return Row(**{field: found.get(field) for field in ROW_FIELDS} | {"value": value})
    except (ValueError, KeyError, TypeError):
        return None


class Points:
    """Points that were not sent yet, each once: a resumed run writes rows again that are known already.

    sent: chart -> the place up to which it is known."""

    def __init__(self, mixture: bool = False, sent: Mapping[str, Sequence[int]] | None = None) -> None:
        self.mixture = mixture
        self.sent: dict[str, Place] = {name: (place[0], place[1]) for name, place in (sent or {}).items()}

    def of(self, rows: Sequence[Row]) -> Iterator[Point]:
        points: dict[Place, dict[str, float]] = {}
        for row in rows:
            name, place = scalar_name(row, self.mixture), (number(row.step), number(row.epoch))
            if name is not None and place > self.sent.get(name, (-2, -2)):
                points.setdefault(place, {})[name] = row.value
                self.sent[name] = place
        for (step, epoch), scalars in points.items():
            yield (None if epoch < 0 else epoch), (None if step < 0 else step), scalars


def number(value: int | None) -> int:
    return -1 if value is None else value


def scalar_name(row: Row, mixture: bool = False) -> str | None:
    """Name of the chart that a row belongs to, its metric's or its layer's; None for rows that only the table holds."""
    is_scalar = row.split == "train" or row.track is not None or row.score == "val_loss"
    of_paper = row.variant == "raw" and row.score.startswith(("ima", "sim"))
    if not (is_scalar or of_paper or row.role_b == TEXT_ALONE):
        return None
    return layer_name(row, mixture) or metric_name(row, mixture)
