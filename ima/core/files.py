"""Files that are whole or not there: `write_atomic` and its kin (temporary file, fsync, rename).

The only way a whole file is written. On any error the old content stays and nothing is left over.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ima.core.errors import UserError


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


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
