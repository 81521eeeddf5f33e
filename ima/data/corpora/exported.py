"""A folder that `python -m ima export-data` wrote, read back by the reader of its format."""

from __future__ import annotations

from ima.core.errors import UserError, nearest
from ima.data.corpora.base import BadMedium, Corpus, find_folder
from ima.data.corpora.captions import AudioCaps, Karpathy, MsrVtt
from ima.data.corpora.questions import ClothoAqa, VideoQa, VqaQuestions
from ima.data.corpora.reading import find_file, read_object

READERS: dict[str, type[Corpus]] = {
    "image": Karpathy,
    "image questions": VqaQuestions,
    "video": MsrVtt,
    "video questions": VideoQa,
    "audio": AudioCaps,
    "audio questions": ClothoAqa,
}


def exported(folder: str, on_bad_medium: BadMedium = "error", limit: int | None = None) -> Corpus:
    """folder: has export.json, which tells the format and the splits."""
    record = read_object(find_file(find_folder("folder", folder), "export.json", "folder"))
    kind = record.text("kind")
    if kind not in READERS:
        raise UserError(f"{record.where}: kind {kind!r} is unknown; {nearest(kind, READERS)}")
    return READERS[kind](
        folder,
        record.get("splits", dict),
        record.text("name"),
        on_bad_medium=on_bad_medium,
        limit=limit,
        clusters=record.text("clusters"),
    )
