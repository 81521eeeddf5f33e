"""Grids of test cases that cover pairs: where a property repeats itself, not every row is tried with every column."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def covering(
    rows: Collection[str], columns: Collection[str], whole: Iterable[str], step: int = 3
) -> list[tuple[str, str]]:
    """All columns for the rows in `whole`; for each other row every `step`-th column, from another start, so that every
    column meets several rows and every row several columns."""
    whole = set(whole)
    assert whole <= set(rows) and 1 <= step <= len(columns)
    return [
        (row, column)
        for number, row in enumerate(rows)
        for place, column in enumerate(columns)
        if row in whole or (number + place) % step == 0
    ]
