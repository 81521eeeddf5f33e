"""Tables as CSV that a spreadsheet shows and never runs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so


def csv_text(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with a header. None and NaN are empty cells; a text that a spreadsheet would run as a formula gets an
    apostrophe in front, as spreadsheets have it. Numbers stay numbers."""
    return "".join(line([harmless(cell) for cell in row]) for row in (header, *rows))


def line(cells: Sequence[Any]) -> str:
    """The csv module puts a cell into quotes for the characters that end its lines, so these must be both."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def harmless(cell: Any) -> Any:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, str) and cell.startswith(FORMULA) and not is_number(cell):
        return f"'{cell}"
    return cell


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
