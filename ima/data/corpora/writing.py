"""A source's samples in the official file formats: COCO (Karpathy), VQAv2, MSR-VTT, MSRVTT-QA, AudioCaps and Clotho,
Clotho-AQA. The formats as such; media and folders are `ima.cli.export_data`'s.

Each function takes all splits at once, {split: [(sample, path of its medium, number of its medium)]}, and gives the
content of each file and the table of splits that reads them back.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import Any

from ima.core.types import Sample

Placed = tuple[Sample, str, int]
Splits = dict[str, list[Placed]]
Files = dict[str, str]
Tables = dict[str, dict[str, Any]]
NUM_ANSWERS = 10  # of VQAv2: a question with fewer annotators repeats theirs in turn


def karpathy(splits: Splits) -> tuple[Files, Tables]:
    images: list[dict[str, Any]] = []
    num_sentences = 0
    for split, placed in splits.items():
        for sample, file, number in placed:
            place, _, name = file.rpartition("/")
            sentences = [
                {"tokens": words(text), "raw": text, "imgid": number, "sentid": num_sentences + index}
                for index, text in enumerate(sample.references)
            ]
            num_sentences += len(sentences)
            images.append(
                {
                    "filepath": place, "filename": name, "imgid": number, "cocoid": number, "split": split,
                    "sentids": [sentence["sentid"] for sentence in sentences], "sentences": sentences,
                }
            )  # fmt: skip
    table = {
        split: {"annotations": "dataset_coco.json", "labels": [split], "media": "{filepath}/{filename}"}
        for split in splits
    }
    return {"dataset_coco.json": dump({"images": images, "dataset": "coco"})}, table


def vqav2(splits: Splits) -> tuple[Files, Tables]:
    files, table, key = {}, {}, 0
    for split, placed in splits.items():
        questions, annotations = [], []
        for sample, _, number in placed:
            key += 1
            answers = list(islice(cycle(sample.references), max(NUM_ANSWERS, len(sample.references))))
            questions.append({"image_id": number, "question": sample.question, "question_id": key})
            annotations.append(
                {
                    "question_type": str(sample.facts.get("type", "")), "answer_type": answer_type(answers),
                    "multiple_choice_answer": answers[0], "image_id": number, "question_id": key,
                    "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": index + 1}
                                for index, text in enumerate(answers)],
                }
            )  # fmt: skip
        names = {"questions": f"v2_OpenEnded_{split}_questions.json", "annotations": f"v2_{split}_annotations.json"}
        shared = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
        files[names["questions"]] = dump(shared | {"task_type": "Open-Ended", "questions": questions})
        files[names["annotations"]] = dump(shared | {"annotations": annotations})
        table[split] = names | {"media": numbered(placed, "{image_id:012d}")}
    return files, table


def msrvtt(splits: Splits) -> tuple[Files, Tables]:
    videos: list[dict[str, Any]] = []
    sentences: list[dict[str, Any]] = []
    for split, placed in splits.items():
        for sample, _, number in placed:
            name = f"video{number}"
            videos.append({"category": 0, "url": "", "video_id": name, "start time": 0.0, "end time": 0.0,
                           "split": split, "id": number})  # fmt: skip
            for text in sample.references:
                sentences.append({"caption": text, "video_id": name, "sen_id": len(sentences)})
    table: Tables = {
        split: {"annotations": "videodatainfo.json", "labels": [split], "media": numbered(placed, "{video_id}")}
        for split, placed in splits.items()
    }
    return {"videodatainfo.json": dump({"info": {}, "videos": videos, "sentences": sentences})}, table


def msrvtt_qa(splits: Splits) -> tuple[Files, Tables]:
    """One answer a question: the first."""
    files, table, key = {}, {}, 0
    for split, placed in splits.items():
        items = []
        for sample, _, number in placed:
            items.append({"answer": sample.references[0], "category_id": 0, "id": key, "question": sample.question,
                          "video_id": number})  # fmt: skip
            key += 1
        files[f"{split}_qa.json"] = dump(items)
        table[split] = {"annotations": f"{split}_qa.json", "media": numbered(placed, "video{video_id}")}
    return files, table


def audiocaps(splits: Splits) -> tuple[Files, Tables]:
    """AudioCaps, and Clotho too where every sound has five captions."""
    files, table, key = {}, {}, 0
    for split, placed in splits.items():
        rows = []
        for sample, file, _ in placed:
            stem = file.rpartition("/")[2].rpartition(".")[0]
            for text in sample.references:
                rows.append((key, stem, 0, text))
                key += 1
        files[f"{split}.csv"] = table_of(("audiocap_id", "youtube_id", "start_time", "caption"), rows)
        table[split] = {"annotations": f"{split}.csv", "media": numbered(placed, "{youtube_id}")}
    if all(len(sample.references) == 5 for placed in splits.values() for sample, _, _ in placed):
        header = ("file_name", *(f"caption_{index}" for index in range(1, 6)))
        for split, placed in splits.items():
            captions = [(file.rpartition("/")[2], *sample.references) for sample, file, _ in placed]
            files[f"clotho_captions_{split}.csv"] = table_of(header, captions)
    return files, table


def clotho_aqa(splits: Splits) -> tuple[Files, Tables]:
    files, table = {}, {}
    for split, placed in splits.items():
        rows = [
            (file.rpartition("/")[2], sample.question, answer, "yes")
            for sample, file, _ in placed
            for answer in sample.references
        ]
        files[f"clotho_aqa_{split}.csv"] = table_of(("file_name", "QuestionText", "answer", "confidence"), rows)
        table[split] = {"annotations": f"clotho_aqa_{split}.csv", "media": f"{folder_of(placed)}/{{file_name}}"}
    return files, table


WRITERS: dict[str, Callable[[Splits], tuple[Files, Tables]]] = {
    "image": karpathy,
    "image questions": vqav2,
    "video": msrvtt,
    "video questions": msrvtt_qa,
    "audio": audiocaps,
    "audio questions": clotho_aqa,
}


def numbered(placed: Sequence[Placed], name: str) -> str:
    """The path of media in a split, with a field of the annotation in place of their name."""
    return f"{folder_of(placed)}/{name}.{placed[0][1].rpartition('.')[2]}"


def folder_of(placed: Sequence[Placed]) -> str:
    return placed[0][1].rpartition("/")[0]


def words(text: str) -> list[str]:
    return [word for word in ("".join(c if c.isalnum() or c == "'" else " " for c in text.lower())).split() if word]


def answer_type(answers: Sequence[str]) -> str:
    if all(text in ("yes", "no") for text in answers):
        return "yes/no"
    return "number" if all(text.isdigit() for text in answers) else "other"


def table_of(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
