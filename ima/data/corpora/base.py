"""A corpus: annotation files and media below a folder, read split by split as a table in the config says.

Here is what all families share: the table, where media lie and that they stay below the folder, identities, clusters,
duplicates. A family only turns its annotation files into samples (`read`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from ima.core.errors import UserError, nearest
from ima.core.media import Clip, Medium
from ima.core.types import Sample
from ima.data.corpora.controls import CONTROLS, Spoilt, spoil
from ima.data.corpora.reading import Record, find_file, read_object
from ima.data.decode import READERS
from ima.data.source import Source

VERSION = "corpora-3"  # 2: pictures upright; 3: clips too, pictures of 16 bits scaled, transparency white
BadMedium = Literal["error", "skip"]
Table = dict[str, Any]


class Corpus(Source):
    """folder: what the annotation files are relative to. media: what media are relative to, `folder` if null.
    splits: for each split its files (the family's FIELDS) and `media`, the path of a medium with fields of its
    annotation in braces; of several such paths the first one that exists counts. limit: at most so many training
    samples, the first ones. clusters: a JSON file {path of a medium: cluster} where media depend on each other; else
    each medium is a cluster. on_bad_medium: what a missing or damaged medium does to a run.

    Features are kept per path and size of a medium, for this folder and these annotation files: whoever replaces a
    medium by another of the same size also touches an annotation file.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("annotations", "media")
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    RANGES = {"limit": (1, None)}

    def __init__(
        self,
        folder: str,
        splits: dict[str, dict[str, Any]],
        name: str,
        media: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
        clusters: str | None = None,
    ) -> None:
        if on_bad_medium not in ("error", "skip"):
            raise UserError(f"on_bad_medium: {on_bad_medium!r} is unknown; {nearest(on_bad_medium, ('error', 'skip'))}")
        if limit is not None and limit < 1:
            raise UserError(f"limit: {limit} is too small; at least 1")
        self.folder, self.media = find_folder("folder", folder), find_folder("media", media or folder)
        self.name, self.on_bad_medium, self.limit = name, on_bad_medium, limit
        self.tables = {str(split): self._check(str(split), plain(table)) for split, table in splits.items()}
        self.splits = tuple(self.tables)
        self.controls = CONTROLS.get(self.modality, ())
        self._clusters = read_object(find_file(self.folder, clusters, "clusters")).values if clusters else {}
        self._samples: dict[str, list[Sample]] = {}
        self._sizes: dict[str, int | None] = {}  # of media; None where there is none
        self._inside: dict[str, bool] = {}

    # -- what a family says ---------------------------------------------------------------------------------------

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        """The samples of one split in the order of its file, made by `sample`."""
        raise NotImplementedError

    # -- Source ---------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        stamps = []
        for path in sorted({path for split in self.splits for path in self._annotation_files(split)}):
            status = path.stat()
            stamps.append((path.name, status.st_size, status.st_mtime_ns))
        return hashlib.sha256(repr((VERSION, self.name, str(self.media), stamps)).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        if split not in self.tables:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        if split not in self._samples:
            found: dict[str, Sample] = {}
            for sample in self.read(split, self.tables[split]):
                if sample.id in found:
                    raise UserError(f"{self._say(split)}: {sample.id.split('/')[-1]!r} occurs twice; ids must differ")
                found[sample.id] = sample
                if split == "train" and len(found) == self.limit:
                    break
            if not found:
                raise UserError(f"{self._say(split)}: no samples for split {split!r}")
            self._samples[split] = list(found.values())
        return self._samples[split]

    def control(self, sample: Sample, name: str) -> Sample:
        return spoil(sample, name) if name in self.controls else super().control(sample, name)

    def medium(self, sample: Sample) -> Medium:
        medium = self._read(sample)
        if isinstance(medium, Clip) and "control" in sample.facts:
            return Spoilt(medium, sample.facts["control"], sample.facts["control_of"])
        return medium

    def _read(self, sample: Sample) -> Medium:
        path = self.media / sample.facts["file"]
        return READERS[self.modality](path, str(path))

    # -- for families ---------------------------------------------------------------------------------------------

    def file(self, split: str, field: str = "annotations") -> Path:
        return find_file(self.folder, str(self.tables[split][field]), f"splits.{split}.{field}")

    def sample(
        self,
        split: str,
        key: str,
        record: Record,
        references: Sequence[str],
        question: str = "",
        weights: Sequence[float] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Sample:
        """key: what makes the sample unique in its split. record: has the fields of the media path."""
        file = self._medium_file(split, record)
        return Sample(
            id=f"{self.name}/{split}/{key}",
            split=split,
            track=split,
            modality=self.modality,
            references=tuple(references),
            question=question,
            cluster=str(self._clusters.get(file, file)),
            facts={"file": file} | dict(facts or {}),
            weights=tuple(weights),
            medium_id=f"{file}@{'' if self._sizes[file] is None else self._sizes[file]}",
        )

    # -- paths ----------------------------------------------------------------------------------------------------

    def _medium_file(self, split: str, record: Record) -> str:
        """Path below `media`: the first of the split's candidates that exists, else the first."""
        templates = self.tables[split]["media"]
        files = []
        for template in [templates] if isinstance(templates, str) else templates:
            try:
                files.append(template.format(**record.values))
            except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
                have = ", ".join(map(str, list(record.values)[:12]))
                raise UserError(
                    f"splits.{split}.media: {template!r} does not fit {record.where} ({error}); it has: {have}"
                ) from error
        for file in files:
            if file not in self._sizes:
                self._sizes[file] = self._size(file, record.where)
        return next((file for file in files if self._sizes[file] is not None), files[0])

    def _size(self, file: str, where: str) -> int | None:
        """Bytes; None where nothing is there. One look at the disk, more only for links."""
        if os.path.isabs(file) or ".." in Path(file).parts:
            raise UserError(f"{where}: medium {file!r} is outside the data folder {self.media}; refused")
        path = self.media / file
        folder = str(path.parent)
        try:
            if folder not in self._inside:
                self._inside[folder] = path.parent.resolve().is_relative_to(self.media)
            status = path.lstat()
            inside = self._inside[folder]
            if stat.S_ISLNK(status.st_mode):
                inside, status = path.resolve().is_relative_to(self.media), path.stat()
        except (OSError, ValueError, RuntimeError):  # not there, a name that no file can have, a link to itself
            status, inside = None, self._inside.get(folder, True)
        if not inside:
            raise UserError(f"{where}: medium {path} leads outside the data folder {self.media} (a link); set media")
        return status.st_size if status is not None else None

    def _annotation_files(self, split: str) -> list[Path]:
        fields = [field for field in (*self.FIELDS, *self.OPTIONAL) if field != "media" and field in self.tables[split]]
        paths = [self.folder / str(self.tables[split][field]) for field in fields if field not in PLAIN]
        return [path for path in paths if path.is_file()]

    def _say(self, split: str) -> str:
        return ", ".join(map(str, self._annotation_files(split))) or str(self.folder)

    def _check(self, split: str, table: Any) -> Table:
        if not isinstance(table, dict):
            raise UserError(f"splits.{split}: {table!r} is no table; allowed: {', '.join(self.FIELDS)}")
        for field in table:
            if field not in (*self.FIELDS, *self.OPTIONAL):
                raise UserError(f"splits.{split}.{field}: unknown; {nearest(field, (*self.FIELDS, *self.OPTIONAL))}")
        for field in self.FIELDS:
            if not table.get(field):
                raise UserError(f"splits.{split}.{field}: missing; needed: {', '.join(self.FIELDS)}")
        return {field: value for field, value in table.items() if value is not None}


PLAIN = ("labels", "label")  # fields of a table that name no file


def find_folder(key: str, folder: str) -> Path:
    path = Path(folder).expanduser()
    if path.is_file():
        raise UserError(f"{key}: {folder} is a file, must be the folder that holds the corpus")
    if not path.is_dir():
        raise UserError(f"{key}: {folder} is not there; give the folder that holds the corpus")
    return path.resolve()


def plain(value: Any) -> Any:
    """Containers of a config as dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
