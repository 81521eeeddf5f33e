"""Files that are whole or not there: `write_atomic` and its kin (temporary file, fsync, rename).

The only way a whole file is written. On any error the old content stays and nothing is left over.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ima.core.errors import UserError

TEMPORARY = ".ima-tmp"  # ends the names of our temporary folders


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing; the old content stays until the new one is on disk."""
    raw = data.encode() if isinstance(data, str) else data
    replace_atomic(path, lambda temporary: temporary.write_bytes(raw))


def make_folder(folder: Path, hint: str) -> None:
    """The folder and those above it. Raises UserError where it cannot be there (a file, a link to nowhere or to itself,
    /proc, a name too long); hint: what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise UserError(f"{short_path(folder)}: no folder can be made there ({reason}); {hint}") from error


def short_path(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def replace_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary path)` make the file, fsync it, rename it to `path`. On any error nothing is left over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_beside(path) as folder:
            temporary = folder / path.name
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left on the device; free some or set another folder") from error
        if error.errno == errno.EFBIG:
            raise UserError(f"{path}: larger than files may be here (ulimit -f); raise that limit") from error
        raise


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A folder in which `target` is made. Its name tells everybody that it is ours, so that what a killed process left
    there (also files of libraries, which name theirs as they like) can be removed and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix=f".{short(target.name)}.", suffix=TEMPORARY, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_temporaries(folder: Path, name: str | None = None) -> None:
    """What killed processes left in `folder` of `temporary_beside`, for the target `name` or for any. Follows no links.
    The caller sees to it that no living process is writing there."""
    of = re.escape(short(name)) if name is not None else ".+"
    ours = re.compile(rf"\.{of}\.[a-z0-9_]{{8}}{re.escape(TEMPORARY)}", re.DOTALL)
    for path in [] if folder.is_symlink() or not folder.is_dir() else list(folder.iterdir()):
        if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def short(name: str) -> str:
    """Room for what is put around it: file names have 255 bytes at most."""
    return name if len(name.encode()) <= 200 else hashlib.sha256(name.encode()).hexdigest()[:32]


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises UserError, in one line, for another encoding; OSError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(str(path), error.object[error.start], error.start) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError, in one line, for whatever is none."""
    try:
        value = json.loads(read_utf8(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not JSON that can be read; fetch or write it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; fetch or write it again")
    return value


def check_utf8(path: Path, block: int = 1 << 20) -> None:
    """As `read_utf8`, for a file that need not fit into memory."""
    decoder, begin = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(block)
            kept = len(decoder.getstate()[0])  # the beginning of a character that the block before cut
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                place = begin - kept + error.start
                raise not_utf8(str(path), error.object[error.start], place) from error
            if not chunk:
                return
            begin += len(chunk)


def not_utf8(name: str, byte: int, place: int) -> UserError:
    """name: of the file, perhaps inside an archive; place: offset of its first byte that is not UTF-8."""
    guess = "utf-16" if place < 2 and byte in (0xFE, 0xFF) else "latin1"
    return UserError(
        f"{name}: not UTF-8: byte 0x{byte:02x} at offset {place}; convert it, as with iconv -f {guess} -t utf-8"
    )


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


def json_lines(path: Path, is_whole: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of each line of a JSONL file. is_whole: the file was written at once; else a last line without
    its end is what a kill left, and is passed over. Raises UserError naming file and line for what is no JSON object,
    and for a number that is NaN or infinite: we write none (see `to_json`)."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not (is_whole or raw.endswith(b"\n")):
                return
            try:
                line = json.loads(raw.decode("utf-8"), parse_float=finite, parse_constant=finite)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg}); delete the line or the file") from error
            except (ValueError, RecursionError) as error:
                what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "holds a number that is none"
                raise UserError(f"{path}:{number}: {what}; delete the line or the file") from error
            if not isinstance(line, dict):
                raise UserError(f"{path}:{number}: not a JSON object; delete the line or the file")
            yield number, line


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
