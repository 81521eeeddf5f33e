"""Questions with given answers in official files: SEED-Bench's pictures, POPE's probes, ScienceQA (ScienceQA-IMG: what
has a picture)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ima.core.errors import UserError, nearest
from ima.core.types import Sample
from ima.data.corpora.base import Corpus, Table
from ima.data.corpora.reading import Record, find_file, read_lines, read_object

LETTERS = "ABCD"


class SeedBench(Corpus):
    """SEED-Bench.json: `questions` with choice_a to choice_d and a letter; those about pictures. `question_type` names
    the types."""

    modality = "image"

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        whole = read_object(self.file(split))
        names = {str(value): name for name, value in whole.values.get("question_type", {}).items()}
        for record in whole.records("questions"):
            if record.values.get("data_type", "image") != "image":
                continue
            choices = tuple(record.text(f"choice_{name.lower()}") for name in LETTERS)
            right = record.text("answer")
            if right not in LETTERS:
                raise UserError(f"{record.where}: key 'answer' is {right!r}, must be one of A, B, C, D")
            kind = str(record.values.get("question_type_id", ""))
            facts = {"choices": choices} | ({"type": names.get(kind, kind)} if kind else {})
            key, question = record.id("question_id"), record.text("question")
            yield self.sample(split, key, record, (choices[LETTERS.index(right)],), question, facts=facts)


class Pope(Corpus):
    """POPE's yes/no probes (Is there a ... in the image?): for each kind of absent things a file of one object a line,
    {question_id, image, text, label}."""

    modality = "image"
    FIELDS = ("media",)
    OPTIONAL = ("random", "popular", "adversarial")

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        kinds = [kind for kind in self.OPTIONAL if kind in table]
        if not kinds:
            raise UserError(f"splits.{split}: names no file; give one or more of {', '.join(self.OPTIONAL)}")
        for kind in kinds:
            for record in read_lines(self.file(split, kind)):
                record.text("image")
                label = record.text("label").lower()
                if label not in ("yes", "no"):
                    raise UserError(f"{record.where}: key 'label' is {label!r}, must be yes or no")
                key = f"{kind}-{record.id('question_id')}"
                yield self.sample(split, key, record, (label,), record.text("text"), facts={"type": kind})


class ScienceQa(Corpus):
    """problems.json, {id: question, choices, answer, hint, image, split}. `label`: which of its splits. with_text:
    questions without a picture too."""

    modality = "image"
    FIELDS = ("annotations", "label", "media")

    def __init__(
        self, folder: str, splits: dict[str, dict[str, str]], name: str, media: str | None = None,
        limit: int | None = None, with_text: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(folder, splits, name, media, "error", limit)
        self.with_text = with_text

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        path: Path = find_file(self.folder, str(table["annotations"]), f"splits.{split}.annotations")
        labels = set()
        for key, values in read_object(path, keyed=True).values.items():
            record = Record({**values, "id": key} if isinstance(values, dict) else values, f"{path}: {key}")
            label = record.text("split")
            labels.add(label)
            picture = record.values.get("image")
            if label != table["label"] or not (picture or self.with_text):
                continue
            choices, right = record.texts("choices"), record.get("answer", int)
            if not 0 <= right < len(choices):
                raise UserError(f"{record.where}: key 'answer' is {right}, there are {len(choices)} choices")
            hint = str(record.values.get("hint") or "").strip()
            question = "\n".join(filter(None, [hint and f"Context: {hint}", record.text("question")]))
            facts = {"choices": choices} | ({"type": record.values["subject"]} if "subject" in record else {})
            references = (choices[right],)
            if picture:
                yield self.sample(split, key, record, references, question, facts=facts)
            else:
                name = f"{self.name}/{split}/{key}"
                yield Sample(name, split, split, "text", references, question, facts=facts, media=())
        if table["label"] not in labels:
            raise UserError(f"{path}: no question of split {table['label']!r}; {nearest(str(table['label']), labels)}")
