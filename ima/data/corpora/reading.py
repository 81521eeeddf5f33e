"""Annotation files, read with suspicion: whatever is not as the format says is one line that names file and key.

`Record` is one object of a file that knows where it stands: `record.text("question")` gives a str or says which key of
which file is missing or of another type.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.files import read_utf8

NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number", bool: "true/false"}


class Record:
    """One object of an annotation file. `where`: file and place in it, for messages."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: {kind_of(values)}, must be an object")
        self.values, self.where = values, where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, *kinds: type) -> Any:
        if key not in self.values:
            have = ", ".join(map(str, list(self.values)[:12]))
            raise UserError(f"{self.where}: key {key!r} is missing; it has: {have or 'no keys'}")
        value = self.values[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(NAMES[kind] for kind in kinds)
            raise UserError(f"{self.where}: key {key!r} is {kind_of(value)}, must be {wanted}")
        return value

    def text(self, key: str) -> str:
        """A text that says something."""
        value = str(self.get(key, str)).strip()
        if not value:
            raise UserError(f"{self.where}: key {key!r} is an empty text")
        return self.whole(key, value)

    def id(self, key: str) -> str:
        """A number or a text, as text."""
        value = self.get(key, int, str)
        return self.text(key) if isinstance(value, str) else str(value)

    def number(self, key: str) -> float:
        """A finite number, also where a table holds it as text."""
        value = self.get(key, int, float, str)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{self.where}: key {key!r} is {value!r}, must be a finite number")
        return number

    def list(self, key: str) -> list[Any]:
        return list(self.get(key, list))

    def texts(self, key: str, empty: bool = False) -> tuple[str, ...]:
        """A list of texts, at least one unless `empty` is allowed."""
        values = self.list(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(f"{self.where}: key {key!r}[{index}] is {kind_of(value)}, must be a text")
        if not values and not empty:
            raise UserError(f"{self.where}: key {key!r} is an empty list")
        return tuple(self.whole(key, value.strip()) for value in values)

    def whole(self, key: str, text: str) -> str:
        """Refuses half a surrogate pair, which no tokenizer and no file takes."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{self.where}: key {key!r} holds half a character (a lone surrogate); mend the text")
        return text

    def records(self, key: str) -> Iterator[Record]:
        """The objects of a list."""
        for index, value in enumerate(self.list(key)):
            yield Record(value, f"{self.where}: {key}[{index}]")


def kind_of(value: Any) -> str:
    return "null" if value is None else NAMES.get(type(value), type(value).__name__)


def find_file(folder: Path, name: str, key: str) -> Path:
    """A file below `folder`; never outside. `key`: the config's, for messages."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise UserError(f"{key}: {name!r} is outside the data folder {folder}; give a path below it")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{key}: {path} leads outside the data folder {folder} (a link); put the file below it")
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder, must be a file")
    if not path.is_file():
        there = sorted(entry.name for entry in path.parent.glob("*") if entry.suffix == path.suffix)
        hint = f"; {nearest(path.name, there)}" if there else ""
        raise UserError(f"{key}: {path} is not there{hint}")
    return path


def read_text(path: Path) -> str:
    try:
        text = read_utf8(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{path}: empty file")
    return text


def read_json(path: Path, keyed: bool = False) -> Any:
    """Plain JSON: no NaN, no Infinity. keyed: keys are ids, none may come twice (JSON readers keep the last)."""

    def refuse(constant: str) -> float:
        raise UserError(f"{path}: holds {constant}, which is no JSON number; mend the file")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise UserError(f"{path}: key {twice!r} occurs twice in one object; ids must differ")
        return found

    try:
        return json.loads(read_text(path), parse_constant=refuse, object_pairs_hook=once if keyed else None)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise UserError(f"{path}: not an annotation file (nested too deeply)") from error
    except ValueError as error:  # a whole number of thousands of digits
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not an annotation file ({str(error).partition(';')[0]})") from error


def read_object(path: Path, keyed: bool = False) -> Record:
    """keyed: as `read_json`."""
    return Record(read_json(path, keyed), str(path))


def read_list(path: Path, key: str | None = None) -> Iterator[Record]:
    """The objects of a file that is a list, or of the list under `key`."""
    if key is not None:
        yield from read_object(path).records(key)
        return
    values = read_json(path)
    if not isinstance(values, list):
        raise UserError(f"{path}: {kind_of(values)}, must be a list")
    for index, value in enumerate(values):
        yield Record(value, f"{path}: [{index}]")


def read_lines(path: Path) -> Iterator[Record]:
    """The objects of a file that has one in each line (JSON lines, also where the file is called .json)."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # a text may hold other line ends (U+2028)
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg})") from error
            except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
                raise UserError(f"{path}:{number}: not JSON ({str(error).partition(';')[0]})") from error
            yield Record(value, f"{path}:{number}")


def read_table(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[Record]:
    """Rows of a CSV file with a header; all `columns` must be there. Warns where the last one may be cut off."""
    text = read_text(path)
    if text[-1] not in '\r\n"':  # a closed quotation is whole
        warnings.warn(f"{path}: its last line has no end; if the file was cut off, its last row is wrong", stacklevel=2)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader)]
        lacking = [column for column in columns if column not in header]
        if lacking:
            raise UserError(f"{path}: the header has no column {lacking[0]!r}; it has: {', '.join(header)}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(f"{path}:{reader.line_num}: {len(row)} fields, the header has {len(header)}")
            yield Record(dict(zip(header, row, strict=True)), f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from error
