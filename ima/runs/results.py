"""The rows of a run, rows.jsonl, written so that a kill loses nothing (for result.json see `ima.runs.record`).

`write_atomic` is the only way a whole file is written (temporary file, fsync, rename). `RowWriter` appends whole
lines; a torn last line (the process was killed) is dropped when the file is opened again. A resumed run first takes
back the rows that it is about to measure again. No torch here: the report and `collect` read with this module.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.files import json_lines, sync, to_json, write_atomic
from ima.core.types import ROW_FIELDS, ROW_SCHEMA, Row


class RowWriter:
    """Appends rows to a JSONL file; every call to `write` is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        mend_tail(path)
        self.num_rows = path.read_bytes().count(b"\n") if path.exists() else 0

    def write(self, rows: Iterable[Row]) -> None:
        text = "".join(json.dumps(to_json(row)) + "\n" for row in rows)
        if text:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
                sync(file)
            self.num_rows += text.count("\n")

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite the file without the rows that `unwanted` picks; returns how many went."""
        rows = list(read_rows(self.path))
        kept = [row for row in rows if not unwanted(row)]
        if len(kept) < len(rows):
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.num_rows = len(kept)
        return len(rows) - len(kept)


def mend_tail(path: Path) -> None:
    """Cut an unfinished last line (left by a kill or a full disk)."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            file.truncate(end)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file as dictionaries, values None where the number was not finite.

    Raises UserError naming file and line for a line that is not a row of a schema that we know.
    """
    if not path.exists():
        return
    for number, row in json_lines(path, is_whole=False):
        schema = row.get("schema", 0)
        if not isinstance(schema, int) or schema > ROW_SCHEMA or "score" not in row:
            raise UserError(f"{path}:{number}: not a row of schema <= {ROW_SCHEMA}; was it written by a newer ima?")
        yield {field: row.get(field) for field in ROW_FIELDS}
