"""Any corpus as a table of Hugging Face `datasets`: a name on the hub, or local Parquet, JSONL or webdataset tar files.

Columns are named by the config; a dotted name reaches inside ("json.caption"). Media are bytes in the table or paths
below `media`. Rows stay on disk; texts are listed without touching the media.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ima.core.errors import UserError, nearest
from ima.core.files import not_utf8
from ima.core.media import Clip, Medium
from ima.core.types import Sample
from ima.data.corpora.base import BadMedium, plain
from ima.data.corpora.controls import CONTROLS, Spoilt, spoil
from ima.data.corpora.questions import soft_weights
from ima.data.corpora.reading import Record, kind_of
from ima.data.corpora.tables import (
    FORMATS,
    check_column,
    hub_cache,
    load_hub,
    load_local,
    local_files,
    local_folder,
    one_or_more,
    pick,
    undecoded,
)
from ima.data.decode import READERS
from ima.data.source import MediumError, Source

VERSION = "hub-3"
Modality = Literal["image", "video", "audio"]


class Hub(Source):
    """path: a hub name, a local file or a folder of them. subset: the hub's name of a configuration. splits: our name
    of a split -> theirs, or a file pattern below a local folder; null for all that are there. medium: the column of
    the medium. medium_key: the column that tells which rows are about one medium. media: what paths of media are
    relative to; they may not leave it. limit: at most so many training samples, the first ones."""

    def __init__(
        self,
        path: str,
        modality: Modality,
        medium: str,
        name: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        splits: dict[str, str] | None = None,
        medium_key: str | None = None,
        media: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
    ) -> None:
        self.path, self.modality, self.column, self.medium_key = path, modality, medium, medium_key
        if modality not in READERS:
            raise UserError(f"modality: {modality!r} is unknown; {nearest(modality, READERS)}")
        self.name, self.controls = name or Path(path).stem, CONTROLS.get(modality, ())
        self.on_bad_medium, self.limit = on_bad_medium, limit
        local = Path(path).expanduser()
        is_local = local.exists() or path.startswith(("/", ".", "~")) or local.suffix in FORMATS
        wanted = plain(splits) if splits is not None else None
        self._stamps: list[tuple[Any, ...]] = [(path, subset, revision)]
        if is_local:
            files = local_files(local, wanted)
            for paths in files.values():
                self._stamps += [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
            self._rows = load_local(files)
        else:
            self._rows = load_hub(path, subset, revision, wanted)
            self._stamps += [(split, getattr(rows, "_fingerprint", "")) for split, rows in self._rows.items()]
        self.splits = tuple(self._rows)
        self.media = Path(media).expanduser().resolve() if media else local_folder(local) if is_local else hub_cache()
        for split, rows in self._rows.items():
            for key in filter(None, (medium, medium_key)):
                check_column(rows, split, key)
            self._rows[split] = undecoded(rows, medium.partition(".")[0])
        self._samples: dict[str, list[Sample]] = {}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((VERSION, self.column, str(self.media), self._stamps)).encode()).hexdigest()[:16]

    def columns(self) -> tuple[str, ...]:
        """The columns that texts come from."""
        raise NotImplementedError

    def texts(self, row: Record) -> tuple[str, Sequence[str], Sequence[float]]:
        """Question, references and their weights."""
        raise NotImplementedError

    def samples(self, split: str) -> list[Sample]:
        if split not in self._rows:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        if split not in self._samples:
            self._samples[split] = list(self._list(split))
            if not self._samples[split]:
                raise UserError(f"{self.path}: no samples for split {split!r}")
        return self._samples[split]

    def control(self, sample: Sample, name: str) -> Sample:
        return spoil(sample, name) if name in self.controls else super().control(sample, name)

    def medium(self, sample: Sample) -> Medium:
        medium = self._read(sample)
        if isinstance(medium, Clip) and "control" in sample.facts:
            return Spoilt(medium, sample.facts["control"], sample.facts["control_of"])
        return medium

    def _read(self, sample: Sample) -> Medium:
        row = self._rows[sample.split][sample.facts["row"]]
        value, where = pick(row, self.column), f"{self.path}: {sample.split}[{sample.facts['row']}]"
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return READERS[self.modality](content, where)
        file = value.get("path") if isinstance(value, dict) else value
        if not isinstance(file, str) or not file:
            raise MediumError(f"{where}: column {self.column!r} is {kind_of(value)}, must be bytes or a path")
        path = self.media / file
        if not path.resolve().is_relative_to(self.media):
            raise UserError(f"{where}: medium {file!r} is outside the folder {self.media}; set data.media")
        return READERS[self.modality](path, str(path))

    def _list(self, split: str) -> Iterator[Sample]:
        columns = (*self.columns(), *([self.medium_key] if self.medium_key else []))
        for column in columns:
            check_column(self._rows[split], split, column)
        rows = self._rows[split].select_columns(sorted({column.partition(".")[0] for column in columns}))
        for index, row in enumerate(self._read_texts(rows, split)):
            if split == "train" and index == self.limit:
                return
            where = f"{self.path}: {split}[{index}]"
            record = Record({column: pick(row, column) for column in columns}, where)
            question, references, weights = self.texts(record)
            key = record.id(self.medium_key) if self.medium_key else ""
            yield Sample(
                id=f"{self.name}/{split}/{index}",
                split=split,
                track=split,
                modality=self.modality,
                references=tuple(references),
                question=question,
                cluster=key or f"{split}/{index}",
                facts={"row": index},
                weights=tuple(weights),
                medium_id=f"{self.name}/{key}" if key else "",
            )

    def _read_texts(self, rows: Any, split: str) -> Iterator[dict[str, Any]]:
        index = 0
        try:
            for row in rows:
                yield row
                index += 1
        except UnicodeDecodeError as error:  # Parquet of a program that did not look at its texts
            raise not_utf8(f"{self.path}: {split}[{index}]", error.object[error.start], error.start) from error


class HubCaptions(Hub):
    """text: the column of a caption or of a list of captions. The rest as `Hub`."""

    def __init__(
        self,
        path: str,
        modality: Modality,
        medium: str,
        text: str,
        name: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        splits: dict[str, str] | None = None,
        medium_key: str | None = None,
        media: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
    ) -> None:
        super().__init__(
            path, modality, medium, name, subset, revision, splits, medium_key, media, on_bad_medium, limit
        )
        self.text = text

    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def texts(self, row: Record) -> tuple[str, Sequence[str], Sequence[float]]:
        return "", one_or_more(row, self.text), ()


class HubQuestions(Hub):
    """question, answer: columns; an answer may be a list of annotators' answers. The rest as `Hub`."""

    def __init__(
        self,
        path: str,
        modality: Modality,
        medium: str,
        question: str,
        answer: str,
        name: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        splits: dict[str, str] | None = None,
        medium_key: str | None = None,
        media: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
    ) -> None:
        super().__init__(
            path, modality, medium, name, subset, revision, splits, medium_key, media, on_bad_medium, limit
        )
        self.question, self.answer = question, answer

    def columns(self) -> tuple[str, ...]:
        return (self.question, self.answer)

    def texts(self, row: Record) -> tuple[str, Sequence[str], Sequence[float]]:
        answers = one_or_more(row, self.answer)
        return row.text(self.question), answers, soft_weights(answers) if len(answers) > 1 else ()
