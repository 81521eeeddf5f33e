"""A table that somebody opens in a spreadsheet shows texts and runs none; numbers stay numbers."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest

from ima.core.csv_text import csv_text

FORMULAS = ['=HYPERLINK("http://a","b")', "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "- a list", "+", "-"]
VALUES: list[Any] = ["-1.5", "+2", "-1e-3", -3, -0.25, True, "a=b", "", "train.py a=1", "-inf"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text(text: str) -> None:
    header, row = csv.reader(io.StringIO(csv_text([text], [[text]]), newline=""))
    assert header == row == [f"'{text}"]


@pytest.mark.parametrize("value", VALUES)
def test_anything_else_is_as_it_was(value: Any) -> None:
    _, row = csv.reader(io.StringIO(csv_text(["a", "b"], [[value, 1]]), newline=""))
    assert row == [str(value), "1"]


def test_what_is_missing_is_an_empty_cell() -> None:
    assert csv_text(["a", "b", "c"], [[None, math.nan, 0.0]]) == "a,b,c\n,,0.0\n"
