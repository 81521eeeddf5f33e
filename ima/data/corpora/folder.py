"""A folder of a person's own: pictures, clips or sounds and a table of captions, or of questions and answers.

Columns are found by their usual names (`ima.core.own_folder`). Where no column says what belongs to which split, the
media are dealt out by a seed, those of one group together, so that none of them is on both sides.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ima.core.errors import UserError, nearest, prefix_errors
from ima.core.own_folder import KINDS, look, walk
from ima.core.own_tables import SPLITS, delimiter_of
from ima.core.types import Sample
from ima.data.corpora.base import BadMedium, Corpus, Table, plain
from ima.data.corpora.own_splits import OwnRow, leaks, shared_out
from ima.data.corpora.questions import soft_weights
from ima.data.corpora.reading import Record, read_lines, read_table, read_text
from ima.data.corpora.tables import parquet_rows

NAMED = 5  # files that are not there which a message names


class OwnFolder(Corpus):
    """path: the folder, or its table. table: its name where there are several. media: where the files of the table
    lie, `path` if null. medium, text, question, answer, split, group: columns, found by their usual names if null;
    text: a column of captions or several. group: rows of one group stay in one split (a film, a patient, a speaker).
    modality: if the file endings do not tell. val_ratio, test_ratio: shares of the media, or groups, for these splits
    where no column `split` says it; drawn by `seed`. on_bad_medium, limit: as `Corpus`.
    """

    FIELDS = ("media",)
    RANGES = {"limit": (1, None)}

    def __init__(
        self,
        path: str,
        table: str | None = None,
        media: str | None = None,
        medium: str | None = None,
        text: str | list[str] | None = None,
        question: str | None = None,
        answer: str | None = None,
        split: str | None = None,
        group: str | None = None,
        modality: Literal["image", "video", "audio"] | None = None,
        val_ratio: float = 0.15,
        test_ratio: float = 0.15,
        seed: int = 0,
        name: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
    ) -> None:
        columns = plain(text) if text is not None else None
        self.own = look(path, table, media, modality, medium, columns, question, answer, split, group)
        self.modality, self.seed = self.own.modality, seed
        if val_ratio + test_ratio >= 1:
            raise UserError(f"val_ratio: {val_ratio} and test_ratio {test_ratio} leave nothing for training")
        if val_ratio <= 0:
            raise UserError("val_ratio: 0 leaves nothing to measure on; write .1")
        self.val_ratio, self.test_ratio = val_ratio, test_ratio
        super().__init__(str(self.own.folder), {}, name or self.own.folder.resolve().name, media, on_bad_medium, limit)
        self._dealt: dict[str, list[OwnRow]] | None = None
        self._files: dict[str, list[str]] | None = None  # name or stem -> files below the folder of media
        self.splits = tuple(self.dealt())
        self.tables = {one: {"media": "{file}"} for one in self.splits}

    # -- Corpus ---------------------------------------------------------------------------------------------------

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        rows = self.dealt()[split]
        yield from self.answered(split, rows) if self.own.asks else self.captioned(split, rows)

    def captioned(self, split: str, rows: Sequence[OwnRow]) -> Iterator[Sample]:
        """A sample for each medium, with the captions of all its rows."""
        of_file: dict[str, list[OwnRow]] = {}
        for row in rows:
            of_file.setdefault(row.file, []).append(row)
        for file, those in of_file.items():
            captions: dict[str, Record] = {}
            for row in those:
                for text in self.texts(row.record):
                    if text in captions and captions[text] is not row.record:
                        raise again(row.record, captions[text], file)
                    captions[text] = row.record
            yield self.one(split, file, those[0], tuple(captions))

    def answered(self, split: str, rows: Sequence[OwnRow]) -> Iterator[Sample]:
        """A sample for each row."""
        seen: dict[tuple[str, str], Record] = {}
        question, answer = str(self.own.columns.question), str(self.own.columns.answer)
        for number, row in enumerate(rows):
            asked = text_of(row.record, question)
            if (row.file, asked) in seen:
                raise again(row.record, seen[row.file, asked], row.file)
            seen[row.file, asked] = row.record
            answers = texts_of(row.record, answer)
            weights = soft_weights(answers) if len(answers) > 1 else ()
            yield self.one(split, str(number), row, answers, asked, weights)

    def one(
        self,
        split: str,
        key: str,
        row: OwnRow,
        references: Sequence[str],
        question: str = "",
        weights: Sequence[float] = (),
    ) -> Sample:
        """The sample of a row; its interval resamples groups."""
        record = Record({**row.record.values, "file": row.file}, row.record.where)
        sample = self.sample(split, key, record, references, question, weights)
        return dataclasses.replace(sample, cluster=row.group)

    def texts(self, record: Record) -> tuple[str, ...]:
        """The captions of a row; of several columns those that say something."""
        columns = [
            one
            for one in self.own.columns.text
            if len(self.own.columns.text) == 1 or str(record.values.get(one) or "").strip()
        ]
        if not columns:
            raise UserError(f"{record.where}: no caption in {', '.join(self.own.columns.text)}")
        return tuple(dict.fromkeys(text for column in columns for text in texts_of(record, column)))

    def _annotation_files(self, split: str) -> list[Path]:
        return list(self.own.tables.values())

    # -- splits ---------------------------------------------------------------------------------------------------

    def dealt(self) -> dict[str, list[OwnRow]]:
        """Split -> its rows. Raises UserError for files that are not there and splits that would be empty."""
        if self._dealt is None:
            rows = [row for split, table in self.own.tables.items() for row in self.rows(split, table)]
            if self.on_bad_medium == "error":
                self.refuse_missing(rows)
            self._dealt = self.obeyed(rows) if any(row.split for row in rows) else self.drawn(rows)
        return self._dealt

    def rows(self, split: str, table: Path) -> Iterator[OwnRow]:
        for record in records(table, self.own.medium):
            value = record.values.get(self.own.medium)
            if isinstance(value, bytes | dict):
                raise UserError(
                    f"{table}: column {self.own.medium!r} holds the media themselves; use data=hf_caption or "
                    f"data=hf_qa with data.path={table} data.medium={self.own.medium}"
                )
            file = self.find(record.id(self.own.medium), table, record.where)
            group = record.id(self.own.group) if self.own.group else file
            yield OwnRow(record, file, group, split or self.named_split(record))

    def named_split(self, record: Record) -> str | None:
        if self.own.split is None:
            return None
        value = record.text(self.own.split)
        if value.lower() not in SPLITS:
            raise UserError(
                f"{record.where}: column {self.own.split!r} says {value!r}; {nearest(value, SPLITS)}; another column "
                "is data.split=<column>"
            )
        return SPLITS[value.lower()]

    def obeyed(self, rows: Sequence[OwnRow]) -> dict[str, list[OwnRow]]:
        """As the table says it; where it knows no val, some of train are."""
        found: dict[str, list[OwnRow]] = {}
        for row in rows:
            found.setdefault(str(row.split), []).append(row)
        if "val" not in found and "train" in found:
            found |= self.shared_out(found["train"], {"val": self.val_ratio})
        self.warn_of_leaks(found)
        return {name: found[name] for name in ("train", "val", "test") if name in found}

    def drawn(self, rows: Sequence[OwnRow]) -> dict[str, list[OwnRow]]:
        wanted = {"val": self.val_ratio} | ({"test": self.test_ratio} if self.test_ratio > 0 else {})
        found = self.shared_out(rows, wanted)
        return {name: found[name] for name in ("train", *wanted)}

    def shared_out(self, rows: Sequence[OwnRow], wanted: Mapping[str, float]) -> dict[str, list[OwnRow]]:
        what = f"groups of column {self.own.group!r}" if self.own.group else KINDS[self.modality]
        with prefix_errors(self.table):
            return shared_out(rows, wanted, self.seed, what)

    def warn_of_leaks(self, found: Mapping[str, Sequence[OwnRow]]) -> None:
        if torn := leaks(found):
            first, splits = next(iter(torn.items()))
            warnings.warn(
                f"{self.table}: {len(torn)} {self.own.group or self.own.medium} are in several splits, the first is "
                f"{first} ({', '.join(splits)}): scores are better than on new ones",
                stacklevel=2,
            )

    # -- files ----------------------------------------------------------------------------------------------------

    @property
    def table(self) -> str:
        return ", ".join(map(str, self.own.tables.values()))

    def find(self, name: str, table: Path, where: str) -> str:
        """The file of a row, below the folder of media: where it is from there or from the table, else the only one
        of this name, or of this name with an ending."""
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self.media):
            return path.relative_to(self.media).as_posix()
        file = path.as_posix()
        beside = table.parent.resolve()
        near = beside.relative_to(self.media).as_posix() if beside.is_relative_to(self.media) else "."
        for one in (file, os.path.normpath(f"{near}/{file}")):
            if one not in self._sizes:
                self._sizes[one] = self._size(one, where)
            if self._sizes[one] is not None:
                return one
        if self._files is None:
            self._files = {}
            for one in walk(self.media):
                for key in {Path(one).name, Path(one).stem}:
                    self._files.setdefault(key, []).append(one)
        found = [one for one in self._files.get(path.name, []) if Path(one) not in self._tables()]
        if len(found) > 1:
            raise UserError(
                f"{where}: {name!r} is the name of {len(found)} files ({', '.join(found[:2])}, ...); write their paths "
                f"below {self.media}"
            )
        return found[0] if found else file

    def _tables(self) -> set[Path]:
        places = [table.resolve() for table in self.own.tables.values()]
        return {place.relative_to(self.media) for place in places if place.is_relative_to(self.media)}

    def refuse_missing(self, rows: Sequence[OwnRow]) -> None:
        lacking = {row.file: row.record.where for row in rows if self._sizes.get(row.file, 0) is None}
        if not lacking:
            return
        shown = ", ".join(f"{file} ({where.rpartition(':')[2]})" for file, where in list(lacking.items())[:NAMED])
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        num = len({row.file for row in rows})
        raise UserError(
            f"{self.table}: {len(lacking)} of {num} files are not below {self.media}: {shown}{more} (line in "
            "brackets); data.media=<folder> says where they lie, data.on_bad_medium=skip leaves them out"
        )


def records(table: Path, column: str) -> Iterator[Record]:
    """All rows of a table, each with its place for messages."""
    kind = table.suffix.lower()
    if kind == ".jsonl":
        yield from read_lines(table)
    elif kind == ".parquet":
        yield from parquet_rows(table)
    else:
        yield from read_table(table, (column,), delimiter_of(table, read_text(table)))


def text_of(record: Record, column: str) -> str:
    """Of a text, a number or true and false."""
    value = record.values.get(column)
    return record.text(column) if isinstance(value, str) or value is None else str(value).strip()


def texts_of(record: Record, column: str) -> tuple[str, ...]:
    """One text, or the texts of a list."""
    value = record.values.get(column)
    return record.texts(column) if isinstance(value, list) else (text_of(record, column),)


def again(record: Record, before: Record, file: str) -> UserError:
    return UserError(f"{record.where}: says of {file} what {before.where} says; remove one of the two rows")
