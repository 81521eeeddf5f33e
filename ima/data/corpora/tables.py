"""Tables of Hugging Face `datasets`: which files or hub name they come from, and all refusals in one line.

Hidden here: the builders' names, their many exceptions, how the features of a table nest.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.files import check_utf8, not_utf8
from ima.core.network import hint
from ima.data.corpora.reading import Record

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".tar": "webdataset"}
END_OF_TAR = bytes(1024)
NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


def local_files(path: Path, splits: dict[str, str] | None) -> dict[str, list[Path]]:
    """Split -> its files, in order."""
    if not path.exists():
        raise UserError(f"path: {path} is not there; give a file, a folder or a name on the hub")
    if path.is_file():
        if splits is not None:
            raise UserError(f"splits: {path} is one file; give the folder and a file pattern for each split")
        files = {next((ours for theirs, ours in NAMES.items() if path.stem.startswith(theirs)), "train"): [path]}
    elif splits is None:
        files = {}
        for theirs, ours in NAMES.items():
            found = [p for p in sorted(path.glob(f"{theirs}*")) if p.suffix in FORMATS and p not in files.get(ours, [])]
            if found:
                files[ours] = files.get(ours, []) + found
        if not files:
            raise UserError(f"path: no file train*, val*, test* ({', '.join(FORMATS)}) in {path}; write splits={{...}}")
    else:
        for split, pattern in splits.items():
            if os.path.isabs(pattern) or ".." in Path(pattern).parts:
                raise UserError(f"splits.{split}: {pattern!r} is outside the data folder {path}")
        files = {split: sorted(path.glob(pattern)) for split, pattern in splits.items()}
    for split, paths in files.items():
        if not paths:
            raise UserError(f"splits.{split}: no file in {path} is like {(splits or {}).get(split)!r}")
        for file in paths:
            if file.suffix not in FORMATS:
                raise UserError(f"path: {file} is of no known kind; allowed: {', '.join(FORMATS)}")
            if not file.stat().st_size:
                raise UserError(f"{file}: empty file")
            if file.suffix == ".tar" and tarfile.is_tarfile(file):
                check_end(file)
            if FORMATS[file.suffix] == "json":
                check_utf8(file)
    return files


def check_end(tar: Path) -> None:
    """Raises UserError for an archive without its end, two blocks of zeros. Between two members a cut leaves no other
    trace, and what came after it would be missing without a word."""
    with tar.open("rb") as file:
        file.seek(max(0, tar.stat().st_size - len(END_OF_TAR)))
        if file.read() != END_OF_TAR:
            raise UserError(f"{tar}: its end is missing, it was cut off; fetch or write the archive again")


def load_local(files: dict[str, list[Path]]) -> dict[str, Any]:
    found = {}
    for split, paths in files.items():
        names = [str(path) for path in paths]
        try:
            found[split] = load(FORMATS[paths[0].suffix], names[0], data_files={"train": names}, split="train")
        except UserError:
            for path in paths:
                if path.suffix == ".tar":
                    check_members(path)
            raise
    return found


def check_members(tar: Path) -> None:
    """Raises UserError that names the first text in an archive which is not UTF-8; the reader of tars says no place."""
    with contextlib.suppress(tarfile.TarError, OSError), tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith((".json", ".jsonl", ".txt")) else None
            try:
                if file is not None:
                    file.read().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise not_utf8(f"{tar}: {member.name}", error.object[error.start], error.start) from error


def load_hub(path: str, subset: str | None, revision: str | None, splits: dict[str, str] | None) -> dict[str, Any]:
    if splits is not None:
        return {ours: load(path, path, name=subset, revision=revision, split=its) for ours, its in splits.items()}
    return {NAMES.get(its, its): rows for its, rows in load(path, path, name=subset, revision=revision).items()}


def load(builder: str, say: str, **options: Any) -> Any:
    """`datasets.load_dataset`; all its refusals in one line."""
    import datasets
    import pyarrow

    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it then raises
    try:
        return datasets.load_dataset(builder, **options)
    except ConnectionError as error:
        raise UserError(
            f"{say}: not in the local cache, and the hub cannot be reached; fetch it where it can{hint()}"
        ) from error
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UserError(
            f"{say}: cannot be read as a table ({reason[0] if reason else type(error).__name__})"
        ) from error
    except Exception as error:  # its tar reader raises whatever it meets
        raise UserError(f"{say}: cannot be read as a table ({type(error).__name__}: {error})") from error
    finally:
        datasets.logging.set_verbosity(level)


def parquet_rows(path: Path) -> Iterator[Record]:
    """The rows of one Parquet file, as they are stored."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield Record(row, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise not_utf8(f"{path}:{number}", error.object[error.start], error.start) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error


def undecoded(rows: Any, column: str) -> Any:
    """Media as they are stored."""
    import datasets

    feature = rows.features[column]
    if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
        return rows.cast_column(column, type(feature)(decode=False))
    return rows


def check_column(rows: Any, split: str, column: str) -> None:
    feature: Any = rows.features
    for part in column.split("."):
        if not isinstance(feature, dict) or part not in feature:
            have = list(feature) if isinstance(feature, dict) else []
            raise UserError(f"no column {column!r} in split {split!r}; {nearest(column, have)}")
        feature = feature[part]


def pick(row: dict[str, Any], column: str) -> Any:
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def one_or_more(row: Record, column: str) -> tuple[str, ...]:
    return (row.text(column),) if isinstance(row.values.get(column), str) else row.texts(column)


def local_folder(path: Path) -> Path:
    return (path.parent if path.is_file() else path).resolve()


def hub_cache() -> Path:
    import datasets

    return Path(datasets.config.HF_CACHE_HOME).expanduser().resolve()
