"""What a run leaves behind: rows.jsonl, result.json and other small files, written so that a kill loses nothing.

`write_atomic` is the only way a whole file is written (temporary file, fsync, rename). `RowWriter` appends whole
lines; a torn last line (the process was killed) is dropped when the file is opened again. A resumed run first takes
back the rows that it is about to measure again. No torch here: the report and `collect` read with this module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ima.errors import UserError
from ima.types import ROW_FIELDS, ROW_SCHEMA, Row


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing; the old content stays until the new one is on disk."""
    raw = data.encode() if isinstance(data, str) else data
    replace_atomic(path, lambda temporary: temporary.write_bytes(raw))


def replace_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary path)` make the file, fsync it, rename it to `path`. On any error nothing is left over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == 28:
            raise UserError(f"{path}: no space left on the device; free some or set another folder") from error
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(to_json(value), indent=2, sort_keys=False) + "\n")


def to_json(value: Any) -> Any:
    """Plain JSON values; NaN and infinities become null, since JSON has neither."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return to_json(value.item())
    raise TypeError(f"not a JSON value: {type(value).__name__}")


class RowWriter:
    """Appends rows to a JSONL file; every call to `write` is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        mend_tail(path)

    def write(self, rows: Iterable[Row]) -> None:
        text = "".join(json.dumps(to_json(row)) + "\n" for row in rows)
        if text:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
                sync(file)

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite the file without the rows that `unwanted` picks; returns how many went."""
        rows = list(read_rows(self.path))
        kept = [row for row in rows if not unwanted(row)]
        if len(kept) < len(rows):
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        return len(rows) - len(kept)


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


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
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg}); delete the line or the file") from error
            if not isinstance(row, dict) or row.get("schema", 0) > ROW_SCHEMA or "score" not in row:
                raise UserError(f"{path}:{number}: not a row of schema <= {ROW_SCHEMA}; was it written by a newer ima?")
            yield {field: row.get(field) for field in ROW_FIELDS}


def read_result(folder: Path) -> dict[str, Any]:
    """`result.json` of a run folder. Raises UserError where it is missing or broken."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; is {folder} a run folder (outputs/<run>)?") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error.msg})") from error
    return dict(result)
