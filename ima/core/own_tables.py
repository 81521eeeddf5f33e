"""Tables of a person's own: which file of a folder it is, its columns and first rows."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}  # fmt: skip
NUM_FIRST = 20  # rows that are looked at


def find_tables(folder: Path, given: str | None) -> dict[str, Path]:
    """The table as given, else the only one; a table for each split where all are named by splits, as are train.csv
    and val.csv, or train/metadata.csv and val/metadata.csv."""
    if given is not None:
        path = folder / given
        if not path.is_file():
            there = [name.name for name in tables_in(folder)]
            raise UserError(f"table: {path} is not there; {nearest(given, there) if there else 'no table is there'}")
        if path.suffix.lower() not in TABLES:
            raise UserError(f"table: {path} is of no known kind; allowed: {', '.join(TABLES)}")
        return {"": path}
    found = tables_in(folder)
    if not found:
        below = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
        found = [table for place in below for table in tables_in(place)]
    if not found:
        raise UserError(
            f"path: no table in {folder}; write one ({', '.join(TABLES)}) with a column of file names and one of "
            "captions, such as file_name,caption, or columns file_name,question,answer"
        )
    splits = [split_of(path.stem) or split_of(path.parent.name) for path in found]
    if len(found) == 1:
        return {"": found[0]}
    if None in splits or len(set(splits)) < len(splits):
        names = [path.relative_to(folder).as_posix() for path in found]
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise UserError(
            f"path: several tables in {folder}: {shown}; choose one by data.table={names[0]}, or name one for each "
            "split (train.csv, val.csv, test.csv)"
        )
    return {str(split): path for split, path in zip(splits, found, strict=True)}


def tables_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLES and not path.name.startswith(".") and path.is_file()
    )


def split_of(name: str) -> str | None:
    """train of train, train_captions or captions-train; None where no split is named, or several are."""
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def first_rows(table: Path, num: int = NUM_FIRST) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and the first rows of a table. Raises UserError for what is none."""
    if not table.stat().st_size:
        raise UserError(f"{table}: empty file")
    if table.suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(table)
            batch = next(file.iter_batches(batch_size=num), None)
            return list(file.schema_arrow.names), batch.to_pylist() if batch is not None else []
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{table}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
        if table.suffix.lower() == ".jsonl":
            lines = list(itertools.islice((line for line in file if line.strip()), num))
            try:
                rows = [json.loads(line) for line in lines]
            except (ValueError, RecursionError):
                rows = []  # whoever reads the whole says where it is wrong
            rows = [row for row in rows if isinstance(row, dict)]
            return list(dict.fromkeys(str(name) for row in rows for name in row)), rows
        start = file.read(1 << 20)
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter_of(table, start))
    try:
        header = [name.strip() for name in next(reader, [])]
        return header, [dict(zip(header, row, strict=False)) for row in itertools.islice(reader, num) if row]
    except csv.Error as error:
        raise UserError(f"{table}:{reader.line_num}: not {table.suffix[1:].upper()} ({error})") from error


def delimiter_of(table: Path, start: str) -> str:
    """A tab in .tsv; in .csv the comma, or the semicolon or tab of spreadsheets where the header has no comma."""
    header = start.partition("\n")[0]
    if table.suffix.lower() == ".tsv":
        return "\t"
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")
