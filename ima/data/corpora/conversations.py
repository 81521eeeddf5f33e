"""Conversations about media in LLaVA's JSON format (558k for pretraining, 665k for instruction, and alike).

A list of {id, image, conversations: [{from, value}]}. `image` is a path, a list of paths or absent; `<image>` in a text
says where it stands. Media lie in folders or in uncompressed tar files, whose members are read in place.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ima.core.errors import UserError, nearest
from ima.core.media import Medium
from ima.core.types import MEDIUM, Sample, Turn
from ima.data.corpora.base import BadMedium, Corpus, Table
from ima.data.corpora.reading import Record, find_file, kind_of, read_list
from ima.data.decode import READERS

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Conversations(Corpus):
    """num_val: that many conversations at the end of the training file are its validation split, where the table names
    none. modality: of the media, and the key that they lie under. A split's `tar`: a tar file, or several, in place of
    a folder; `media` is then the path inside it. The rest as `Corpus`."""

    FIELDS = ("annotations", "media")
    OPTIONAL = ("tar",)
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
        num_val: int = 64,
        modality: Literal["image", "video", "audio"] = "image",
    ) -> None:
        if modality not in READERS:
            raise UserError(f"modality: {modality!r} is unknown; {nearest(modality, READERS)}")
        self.modality, self.num_val = modality, 0
        super().__init__(folder, splits, name, media, on_bad_medium, limit, clusters)
        if num_val and "train" in self.tables and "val" not in self.tables:
            self.num_val = num_val
            self.tables["val"] = self.tables["train"]
            self.splits = tuple(self.tables)
        self._members: dict[str, tuple[Path, int, int]] = {}  # name inside a tar -> file, offset, size
        self._indexed: set[Path] = set()

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        tars = table.get("tar", [])
        for name in [tars] if isinstance(tars, str) else tars:
            self._index(find_file(self.media, name, f"splits.{split}.tar"))
        records = list(read_list(self.file(split)))
        if self.num_val >= len(records):
            raise UserError(f"num_val: {self.num_val} of {len(records)} conversations would leave none to train on")
        first = {"train": 0, "val": len(records) - self.num_val}.get(split, 0) if self.num_val else 0
        last = len(records) - self.num_val if split == "train" else len(records)
        for index in range(first, last):
            yield self._conversation(split, index, records[index])

    def _conversation(self, split: str, index: int, record: Record) -> Sample:
        names = record.values.get(self.modality)
        names = [] if names is None else [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{record.where}: key {self.modality!r} is {kind_of(names)}, must be a path or a list of paths"
            )
        turns = self._turns(record, len(names))
        answers = tuple(text for who, text in turns if who == "assistant")
        question = next(text for who, text in turns if who == "user").replace(MEDIUM, "").strip()
        key = f"{index}-{record.values.get('id', '')}"
        media = []
        for number, name in enumerate(names):
            one = Record({**record.values, self.modality: name}, record.where)
            media.append(self.sample(split, f"{key}.{number}", one, ()))
        return Sample(
            id=f"{self.name}/{split}/{key}",
            split=split,
            track=split,
            modality=self.modality if names else "text",
            references=answers[-1:],
            question=question,
            cluster=media[0].cluster if media else "",
            media=tuple(media),
            turns=turns,
        )

    def _turns(self, record: Record, num_media: int) -> tuple[Turn, ...]:
        mark = f"<{self.modality}>"
        turns = []
        for turn in record.records("conversations"):
            who = turn.text("from")
            if who not in SPEAKERS:
                raise UserError(f"{turn.where}: key 'from' is {who!r}; {nearest(who, SPEAKERS)}")
            text = str(turn.get("value", str)).replace(MEDIUM, "").replace(mark, MEDIUM).strip()
            turns.append((SPEAKERS[who], text))
        spoken = [who for who, _ in turns if who != "system"]
        if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) or "system" in [w for w, _ in turns[1:]]:
            raise UserError(f"{record.where}: turns must be of human and gpt in turn, gpt last; they are {spoken}")
        if not any(text for who, text in turns if who == "assistant"):
            raise UserError(f"{record.where}: gpt says nothing, there is nothing to learn from")
        num_marks = sum(text.count(MEDIUM) for _, text in turns)
        if num_media and not num_marks:
            first = next(index for index, (who, _) in enumerate(turns) if who == "user")
            turns[first] = ("user", f"{MEDIUM}\n" * num_media + turns[first][1])
        elif num_marks != num_media:
            raise UserError(f"{record.where}: {num_marks} times {mark} in the text, {num_media} {self.modality} given")
        return tuple(turns)

    # -- tar files -------------------------------------------------------------------------------------------------

    def _index(self, path: Path) -> None:
        if path in self._indexed:
            return
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        name = member.name.removeprefix("./")
                        self._members.setdefault(name, (path, member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise UserError(
                f"{path}: not a readable uncompressed tar file ({error}); unpack it or repack it"
            ) from error
        self._indexed.add(path)

    def _size(self, file: str, where: str) -> int | None:
        if self._indexed:
            return self._members[file][2] if file in self._members else None
        return super()._size(file, where)

    def _read(self, sample: Sample) -> Medium:
        file = sample.facts["file"]
        if file not in self._members:
            return super()._read(sample)
        path, offset, size = self._members[file]
        with open(path, "rb") as archive:
            archive.seek(offset)
            content = archive.read(size)
        return READERS[self.modality](content, f"{path}: {file}")
