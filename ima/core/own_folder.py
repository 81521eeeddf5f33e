"""What a folder of a person's own holds: which table, which medium, which of its columns say what.

A look only: file endings, headers and first rows. `ima.data.corpora.folder` reads the whole of it; the command line
asks it too, to choose what fits. Every mistake is one line that names the file and the key that mends it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.own_tables import TABLES, find_tables, first_rows

MEDIA = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff"),
}
KINDS = {"image": "pictures", "video": "clips", "audio": "sounds"}  # how messages call them
# How columns are called as a rule; the first that is there counts. Case and blanks around do not matter.
NAMES = {
    "medium": (
        "file_name", "filename", "file", "file_path", "filepath", "path", "image", "image_path", "image_file", "img",
        "picture", "photo", "video", "video_path", "video_file", "clip", "audio", "audio_path", "audio_file", "sound",
        "wav", "medium", "media", "image_id", "video_id", "audio_id", "id", "name",
    ),
    "text": ("caption", "captions", "text", "texts", "description", "descriptions", "sentence", "sentences"),
    "question": ("question", "questions", "query"),
    "answer": ("answer", "answers", "response", "label"),
    "split": ("split", "subset", "partition"),
    "group": ("group", "group_id", "cluster"),
}  # fmt: skip
NUMBERED = re.compile(r"(caption|text|description|sentence)s?[ _-]?\d+")  # caption_1 ... caption_5
MANY_ANSWERS = 3  # of one question: annotators', which the official accuracy is about


@dataclasses.dataclass(frozen=True)
class TextColumns:
    """text: columns of captions, none where there are questions."""

    text: tuple[str, ...] = ()
    question: str | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class FolderLook:
    """tables: split -> table, or "" -> the one table of all splits. several: whether a question has the answers of
    several annotators. num_words: of the longest text that is to be said, in the first rows."""

    folder: Path
    tables: Mapping[str, Path]
    modality: str
    medium: str
    columns: TextColumns
    split: str | None = None
    group: str | None = None
    several: bool = False
    num_words: int = 0

    @property
    def asks(self) -> bool:
        return self.columns.question is not None


def look(
    path: str,
    table: str | None = None,
    media: str | None = None,
    modality: str | None = None,
    medium: str | None = None,
    text: str | Sequence[str] | None = None,
    question: str | None = None,
    answer: str | None = None,
    split: str | None = None,
    group: str | None = None,
) -> FolderLook:
    """What lies at `path` (a folder, or its table). The others are given where they are not to be found by
    themselves. Raises UserError."""
    place = Path(path).expanduser()
    if place.is_file() and place.suffix.lower() in TABLES and table is None:
        place, table = place.parent, place.name
    if place.is_file():
        raise UserError(f"path: {path} is a file, must be a folder with pictures, clips or sounds and one table")
    if not place.is_dir():
        raise UserError(f"path: {path} is not there; give the folder with the pictures, clips or sounds and a table")
    tables = find_tables(place, table)
    first = next(iter(tables.values()))
    header, rows = first_rows(first)
    if not rows:
        raise UserError(f"{first}: no rows below the header; write one row for each medium and its text")
    columns = Columns(first, header)
    found = text_columns(columns, text, question, answer)
    where = Path(media).expanduser() if media else place
    column = medium_column(columns, rows, (where, first.parent), medium, {*found.text, found.question, found.answer})
    said = [row.get(name) for row in rows for name in (*found.text, found.answer) if name]
    return FolderLook(
        place,
        tables,
        modality or modality_of([str(row.get(column)) for row in rows], where, first),
        column,
        found,
        columns.find("split", split) if len(tables) == 1 else None,
        columns.find("group", group),
        found.answer is not None and any(isinstance(one, list) and len(one) >= MANY_ANSWERS for one in said),
        max((len(str(one).split()) for value in said for one in as_list(value)), default=0),
    )


class Columns:
    """The columns of a table, found by their usual names or as they are given."""

    def __init__(self, table: Path, header: Sequence[str]) -> None:
        self.table, self.header = table, list(header)
        self.known = {name.strip().lower(): name for name in reversed(self.header)}

    @property
    def listed(self) -> str:
        return ", ".join(self.header)

    def given(self, key: str, name: str) -> str:
        if name not in self.header:
            raise UserError(f"{key}: {self.table} has no column {name!r}; {nearest(name, self.header)}")
        return name

    def find(self, key: str, given: str | None) -> str | None:
        if given is not None:
            return self.given(key, given)
        return next((self.known[name] for name in NAMES[key] if name in self.known), None)

    def texts(self) -> list[str]:
        one = self.find("text", None)
        numbered = [name for name in self.header if NUMBERED.fullmatch(name.strip().lower())]
        return [one] if one is not None else numbered


def text_columns(
    columns: Columns, text: str | Sequence[str] | None, question: str | None, answer: str | None
) -> TextColumns:
    """Captions, or a question and an answer: as given, else whichever of them there is."""
    asks, given = question is not None or answer is not None, [text] if isinstance(text, str) else list(text or ())
    if asks and given:
        raise UserError("text: captions and questions at once; give text, or question and answer")
    if given:
        return TextColumns(tuple(columns.given("text", one) for one in given))
    texts, table = columns.texts(), columns.table
    question, answer = columns.find("question", question), columns.find("answer", answer)
    if not asks and texts and question and answer:
        raise UserError(
            f"{table}: captions ({', '.join(texts)}) and questions ({question}, {answer}); choose data.text={texts[0]} "
            f"or data.question={question} data.answer={answer}"
        )
    if asks or (question and answer):
        for key, name in (("question", question), ("answer", answer)):
            if name is None:
                raise UserError(f"{table}: no column of {key}s; it has: {columns.listed}; write data.{key}=<column>")
        return TextColumns((), question, answer)
    if not texts:
        raise UserError(
            f"{table}: no column that looks like captions, or questions and answers; it has: {columns.listed}; "
            "write data.text=<column>, or data.question=<column> data.answer=<column>"
        )
    return TextColumns(tuple(texts))


def medium_column(
    columns: Columns, rows: Sequence[Mapping[str, Any]], places: Sequence[Path], given: str | None, said: set[Any]
) -> str:
    """The column that names the files: as given, else the first by name whose files are there, else any whose files
    are there, else the first by name."""
    if given is not None:
        return columns.given("medium", given)
    by_name = [columns.known[name] for name in NAMES["medium"] if name in columns.known]
    by_name = [name for name in by_name if name not in said]
    others = [name for name in columns.header if name not in said and name not in by_name]
    for name in [*by_name, *others]:
        if any(is_there(row.get(name), places) for row in rows):
            return name
    for name in [*by_name, *others]:
        if any(kind_of(str(row.get(name))) for row in rows):
            return name
    if not by_name:
        raise UserError(
            f"{columns.table}: no column that names the files of the media; it has: {columns.listed}; "
            "write data.medium=<column>"
        )
    return by_name[0]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def is_there(name: Any, places: Sequence[Path]) -> bool:
    try:
        return isinstance(name, str) and bool(name.strip()) and any((place / name).is_file() for place in places)
    except (OSError, ValueError):  # a name that no file can have
        return False


def kind_of(name: str) -> str | None:
    """The modality of a file by its ending."""
    ending = os.path.splitext(name)[1].lower()
    return next((kind for kind, endings in MEDIA.items() if ending in endings), None)


def modality_of(names: Iterable[str], folder: Path, table: Path) -> str:
    """By the endings of the files that the table names, else of those that lie in the folder."""
    counts = Counter(kind for name in names if (kind := kind_of(name)))
    if not counts:
        counts = Counter(kind for name in walk(folder) if (kind := kind_of(name)))
    if not counts:
        endings = "; ".join(f"{KINDS[kind]}: {' '.join(endings)}" for kind, endings in MEDIA.items())
        raise UserError(
            f"path: no pictures, clips or sounds in {folder}; known are {endings}; media may lie in data.media"
        )
    if len(counts) > 1:
        found = " and ".join(f"{num} {KINDS[kind]}" for kind, num in counts.most_common())
        raise UserError(f"{table}: names {found}; one kind a run, write data.modality={counts.most_common()[0][0]}")
    return next(iter(counts))


def walk(folder: Path) -> Iterable[str]:
    """Paths of all files below a folder, relative to it, in order; hidden ones and links to folders are passed over."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder)
