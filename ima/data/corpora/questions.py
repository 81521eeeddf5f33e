"""Questions and answers: VQAv2, OK-VQA, GQA, A-OKVQA, TextVQA, MSVD-QA, MSRVTT-QA, Clotho-AQA.

`references` are all annotators' answers, as the official scorers want them; `weights` draw an answer in training by
its soft score min(number of annotators / 3, 1). Questions without public answers can be generated for, not trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.data.corpora.base import BadMedium, Corpus, Table
from ima.data.corpora.captions import unique
from ima.data.corpora.reading import Record, find_file, read_list, read_object, read_table, read_text

ENOUGH = 3  # annotators that make an answer fully right


def soft_weights(answers: Sequence[str]) -> tuple[float, ...]:
    """A weight for each annotator's answer: those of one text add up to its soft score; empty texts are never drawn."""
    counts = Counter(answers)
    return tuple(min(counts[text] / ENOUGH, 1.0) / counts[text] if text else 0.0 for text in answers)


class VqaQuestions(Corpus):
    """The VQA format (VQAv2, OK-VQA): a file of questions, a file of annotations with ten answers each. Without
    `annotations` the questions have no references."""

    modality = "image"
    FIELDS = ("questions", "media")
    OPTIONAL = ("annotations",)

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        found: dict[str, Record] = {}
        if "annotations" in table:
            found = unique(read_object(self.file(split)).records("annotations"), "question_id")
        path, asked = self.file(split, "questions"), set()
        for record in read_object(path).records("questions"):
            key, question = record.id("question_id"), record.text("question")
            if key in asked:
                raise UserError(f"{record.where}: question_id {key} occurs twice; ids must differ")
            asked.add(key)
            record.id("image_id")
            if "annotations" not in table:
                yield self.sample(split, key, record, (), question)
                continue
            if key not in found:
                raise UserError(f"{record.where}: question_id {key} has no annotation in {self.file(split)}")
            annotation = found[key]
            answers = official_answers(annotation)
            facts = {name: annotation.values[key] for name, key in TYPES if key in annotation}
            yield self.sample(split, key, record, answers, question, soft_weights(answers), facts)
        for key, annotation in found.items():
            if key not in asked:
                raise UserError(f"{annotation.where}: question_id {key} has no question in {path}")


TYPES = (("type", "question_type"), ("answer_type", "answer_type"))


def official_answers(annotation: Record) -> tuple[str, ...]:
    answers = tuple(str(answer.get("answer", str)).strip() for answer in annotation.records("answers"))
    if not any(answers):
        raise UserError(f"{annotation.where}: key 'answers' has no answer")
    return answers


class VlT5(Corpus):
    """The Karpathy split of VQAv2 as a list of {question_id, sent, img_id, label: {answer: soft score}}.

    official: an official annotation file, or several, that has the ten answers of these questions; without it the
    labels are the references, which the official accuracy cannot be computed from exactly.
    """

    modality = "image"
    OPTIONAL = ("official",)

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        names = table.get("official", [])
        official: dict[str, Record] = {}
        for name in [names] if isinstance(names, str) else names:
            path = find_file(self.folder, name, f"splits.{split}.official")
            official |= unique(read_object(path).records("annotations"), "question_id")
        for record in read_list(self.file(split)):
            key, question = record.id("question_id"), record.text("sent")
            labels = Record(record.get("label", dict), f"{record.where}: label")
            scores = {text: labels.number(text) for text in labels.values}
            answers = tuple(scores)
            weights = tuple(scores.values())
            if names:
                if key not in official:
                    raise UserError(f"{record.where}: question_id {key} has no annotation in {names}")
                answers = official_answers(official[key])
                weights = soft_weights(answers)
            elif not scores or max(weights) <= 0:
                raise UserError(f"{record.where}: key 'label' has no answer with a score above 0")
            facts = {name: record.values[key] for name, key in TYPES if key in record}
            yield self.sample(split, key, record, answers, question, weights, facts)


class Gqa(Corpus):
    """One object {question id: {imageId, question, answer, ...}} per split."""

    modality = "image"

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        whole = read_object(self.file(split), keyed=True)
        for key, values in whole.values.items():
            record = Record(values, f"{whole.where}: {key}")
            record.id("imageId")
            kinds = Record(record.get("types", dict), f"{record.where}: types") if "types" in record else None
            facts: dict[str, Any] = {"type": kinds.values.get("detailed")} if kinds is not None else {}
            facts |= {"full_answer": record.values["fullAnswer"]} if "fullAnswer" in record else {}
            answers = (record.text("answer"),) if "answer" in record.values else ()
            yield self.sample(split, key, record, answers, record.text("question"), (), facts)


class Aokvqa(Corpus):
    """A list of questions with four choices, ten direct answers and rationales; the test split has no answers."""

    modality = "image"

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        for record in read_list(self.file(split)):
            key, question = record.text("question_id"), record.text("question")
            record.id("image_id")
            choices = record.texts("choices")
            facts: dict[str, Any] = {"choices": choices}
            answers: tuple[str, ...] = ()
            if "direct_answers" in record.values:
                answers = record.texts("direct_answers")
                right = record.get("correct_choice_idx", int)
                if not 0 <= right < len(choices):
                    raise UserError(f"{record.where}: correct_choice_idx {right} is none of {len(choices)} choices")
                facts |= {"choice": right, "rationales": record.texts("rationales", empty=True)}
            yield self.sample(split, key, record, answers, question, soft_weights(answers), facts)


class TextVqa(Corpus):
    """`data`: questions with ten answers. ocr: the file of words that were read in the images (fact "ocr")."""

    modality = "image"
    OPTIONAL = ("ocr",)

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        words: dict[str, tuple[str, ...]] = {}
        if "ocr" in table:
            for record in read_object(self.file(split, "ocr")).records("data"):
                words[record.text("image_id")] = record.texts("ocr_tokens", empty=True)
        for record in read_object(self.file(split)).records("data"):
            key, question = record.id("question_id"), record.text("question")
            answers = record.texts("answers") if "answers" in record.values else ()
            facts: dict[str, Any] = {"ocr": words.get(record.text("image_id"), ())} if "ocr" in table else {}
            yield self.sample(split, key, record, answers, question, soft_weights(answers), facts)


class VideoQa(Corpus):
    """MSVD-QA and MSRVTT-QA: a list of {id, video_id, question, answer} per split.

    names: a file of lines "file name, video name" (MSVD's youtube_mapping.txt); the media path may then use {name}.
    """

    modality = "video"
    OPTIONAL = ("names",)

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        names = self._names(split) if "names" in table else None
        for record in read_list(self.file(split)):
            key, video = record.id("id"), record.id("video_id")
            if names is not None:
                found = names.get(video, names.get(f"vid{video}"))
                if found is None:
                    raise UserError(f"{record.where}: video_id {video} is not in {table['names']}")
                record = Record(dict(record.values) | {"name": found}, record.where)
            # the question's first word is its type, as the published tables of these corpora divide them
            question = record.text("question")
            facts = {"type": question.split()[0].lower()}
            yield self.sample(split, key, record, (record.text("answer"),), question, (), facts)

    def _names(self, split: str) -> dict[str, str]:
        path = self.file(split, "names")
        names = {}
        for number, line in enumerate(read_text(path).splitlines(), 1):
            words = line.split()
            if len(words) not in (0, 2):
                raise UserError(f"{path}:{number}: {line!r}, must be a file name and a video name")
            if words:
                names[words[1]] = words[0]
        return names


class ClothoAqa(Corpus):
    """A CSV file per split: file_name, QuestionText, answer, confidence; a row for each annotator. yes_no: only
    questions that all annotators answer with yes or no (true), only others (false), all (null)."""

    modality = "audio"

    def __init__(
        self,
        folder: str,
        splits: dict[str, dict[str, Any]],
        name: str,
        media: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
        clusters: str | None = None,
        yes_no: bool | None = None,
    ) -> None:
        super().__init__(folder, splits, name, media, on_bad_medium, limit, clusters)
        self.yes_no = yes_no

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        asked: dict[tuple[str, str], list[Record]] = {}
        for record in read_table(self.file(split), ("file_name", "QuestionText", "answer", "confidence")):
            asked.setdefault((record.text("file_name"), record.text("QuestionText")), []).append(record)
        numbers: Counter[str] = Counter()
        for (file, question), records in asked.items():
            answers = tuple(record.text("answer") for record in records)
            binary = all(text.lower() in ("yes", "no") for text in answers)
            number = numbers[file]
            numbers[file] += 1
            if self.yes_no is None or self.yes_no == binary:
                confidence = tuple(record.values["confidence"] for record in records)
                facts = {"type": "yes/no" if binary else "word", "confidence": confidence}
                yield self.sample(split, f"{file}.{number}", records[0], answers, question, (), facts)
