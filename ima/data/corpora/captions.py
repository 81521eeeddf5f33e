"""Captions: COCO in Karpathy's file, COCO's own caption files (NoCaps), MSR-VTT, AudioCaps, Clotho.

A sample is a medium with all its captions. `per_caption` makes one training sample of each caption instead, as the
published single-task setting trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.types import Sample
from ima.data.corpora.base import BadMedium, Corpus, Table, plain
from ima.data.corpora.reading import Record, read_list, read_object, read_table
from ima.tasks.metrics.chair import COCO, coco_classes, coco_names


class CaptionCorpus(Corpus):
    """per_caption: a training sample for each caption, not for each medium. The rest as `Corpus`."""

    def __init__(
        self,
        folder: str,
        splits: dict[str, dict[str, Any]],
        name: str,
        media: str | None = None,
        on_bad_medium: BadMedium = "error",
        limit: int | None = None,
        clusters: str | None = None,
        per_caption: bool = False,
    ) -> None:
        super().__init__(folder, splits, name, media, on_bad_medium, limit, clusters)
        self.per_caption = per_caption
        self._objects: dict[Path, dict[str, frozenset[str]]] = {}

    def captioned(
        self, split: str, key: str, record: Record, captions: tuple[str, ...], **facts: Any
    ) -> Iterator[Sample]:
        captions = tuple(text.strip() for text in captions if text.strip())
        if not captions:
            raise UserError(f"{record.where}: no caption")
        sample = self.sample(
            split, key, record, captions, facts=facts | self.true_objects(split, key, record, captions)
        )
        if not (self.per_caption and split == "train"):
            yield sample
            return
        for index, text in enumerate(captions):
            yield dataclasses.replace(sample, id=f"{sample.id}.{index}", references=(text,))

    def true_objects(self, split: str, key: str, record: Record, captions: tuple[str, ...]) -> dict[str, Any]:
        """Facts for CHAIR, where the split's table names COCO's instances: the classes that are annotated, and those
        that people's captions name."""
        if "objects" not in self.tables[split]:
            return {}
        path = self.file(split, "objects")
        if path not in self._objects:
            self._objects[path] = annotated_objects(path)
        if key not in self._objects[path]:
            raise UserError(f"{record.where}: image {key} is not among the images of {path}")
        return {"nouns": sorted(self._objects[path][key] | coco_classes(captions)), "vocabulary": COCO}


class Karpathy(CaptionCorpus):
    """dataset_coco.json (also that of Flickr8k and Flickr30k): all splits in one file, told by labels. objects: COCO's
    instances_val2014.json, so that CHAIR is measured."""

    modality = "image"
    FIELDS = ("annotations", "labels", "media")
    OPTIONAL = ("objects",)

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        labels = plain(table["labels"])
        labels = [labels] if isinstance(labels, str) else labels
        path, seen = self.file(split), set()
        for record in read_list(path, "images"):
            label = record.text("split")
            seen.add(label)
            if label in labels:
                captions = tuple(sentence.text("raw") for sentence in record.records("sentences"))
                key = record.id("cocoid" if "cocoid" in record else "imgid")
                yield from self.captioned(split, key, record, captions)
        for label in labels:
            if label not in seen:
                raise UserError(f"{path}: no image of split {label!r}; {nearest(label, seen)}")


class CocoCaptions(CaptionCorpus):
    """COCO's own format, a file per split: `images` and `annotations` with an image_id each. label: only images
    whose `domain` begins so (NoCaps: in-domain, near-domain, out-domain)."""

    modality = "image"
    OPTIONAL = ("label",)

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        path = self.file(split)
        whole = read_object(path)
        images = unique(whole.records("images"), "id")
        captions: dict[str, list[str]] = {}
        for record in whole.records("annotations"):
            key = record.id("image_id")
            if key not in images:
                raise UserError(f"{record.where}: image_id {key} is not among the images")
            captions.setdefault(key, []).append(record.text("caption"))
        for key, record in images.items():
            domain = record.text("domain") if "domain" in record else None
            if "label" in table and (domain or "") != table["label"]:
                continue
            if key not in captions:
                raise UserError(f"{record.where}: image {key} has no caption in annotations")
            facts = {"domain": domain} if domain else {}
            yield from self.captioned(split, key, record, tuple(captions[key]), **facts)


class MsrVtt(CaptionCorpus):
    """videodatainfo.json: `videos` with a split label each, and `sentences`."""

    modality = "video"
    FIELDS = ("annotations", "labels", "media")

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        labels = plain(table["labels"])
        labels = [labels] if isinstance(labels, str) else labels
        path = self.file(split)
        whole = read_object(path)
        videos = unique(whole.records("videos"), "video_id")
        captions: dict[str, list[str]] = {}
        for record in whole.records("sentences"):
            key = record.id("video_id")
            if key not in videos:
                raise UserError(f"{record.where}: video_id {key} is not among the videos")
            captions.setdefault(key, []).append(record.text("caption"))
        seen = {record.text("split") for record in videos.values()}
        for label in labels:
            if label not in seen:
                raise UserError(f"{path}: no video of split {label!r}; {nearest(label, seen)}")
        for key, record in videos.items():
            if record.values["split"] in labels:
                if key not in captions:
                    raise UserError(f"{record.where}: video {key} has no sentence")
                facts = {"type": record.values["category"]} if "category" in record else {}
                yield from self.captioned(split, key, record, tuple(captions[key]), **facts)


class AudioCaps(CaptionCorpus):
    """A CSV file per split: audiocap_id, youtube_id, start_time, caption; rows of one clip are its captions."""

    modality = "audio"

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        rows: dict[str, list[Record]] = {}
        ids: set[str] = set()
        for record in read_table(self.file(split), ("audiocap_id", "youtube_id", "start_time", "caption")):
            if (number := record.text("audiocap_id")) in ids:
                raise UserError(f"{record.where}: audiocap_id {number} occurs twice; ids must differ")
            ids.add(number)
            if (start := record.number("start_time")) < 0:
                raise UserError(f"{record.where}: start_time {start:g} is before the beginning")
            rows.setdefault(f"{record.text('youtube_id')}_{start:g}", []).append(record)
        for key, records in rows.items():
            yield from self.captioned(split, key, records[0], tuple(record.text("caption") for record in records))


class Clotho(CaptionCorpus):
    """A CSV file per split: file_name, caption_1 to caption_5."""

    modality = "audio"
    COLUMNS = ("caption_1", "caption_2", "caption_3", "caption_4", "caption_5")

    def read(self, split: str, table: Table) -> Iterator[Sample]:
        for record in read_table(self.file(split), ("file_name", *self.COLUMNS)):
            captions = tuple(record.text(column) for column in self.COLUMNS)
            yield from self.captioned(split, record.text("file_name"), record, captions)


def annotated_objects(path: Path) -> dict[str, frozenset[str]]:
    """COCO's instances file: the names of classes by image, none where nothing is annotated. Raises UserError where
    it refers to what it does not list, or a class is none of COCO's 80."""
    whole, known = read_object(path), frozenset(coco_names().values())
    names = {key: record.text("name") for key, record in unique(whole.records("categories"), "id").items()}
    for name in names.values():
        if name not in known:
            raise UserError(f"{path}: category {name!r} is none of COCO's 80; {nearest(name, sorted(known))}")
    found: dict[str, set[str]] = {key: set() for key in unique(whole.records("images"), "id")}
    for record in whole.records("annotations"):
        image, category = record.id("image_id"), record.id("category_id")
        if image not in found:
            raise UserError(f"{record.where}: image_id {image} is not among the images")
        if category not in names:
            raise UserError(f"{record.where}: category_id {category} is not among the categories")
        found[image].add(names[category])
    return {key: frozenset(classes) for key, classes in found.items()}


def unique(records: Iterator[Record], key: str) -> dict[str, Record]:
    """By id; refuses two of one id."""
    found: dict[str, Record] = {}
    for record in records:
        name = record.id(key)
        if name in found:
            raise UserError(f"{record.where}: {key} {name} occurs twice; ids must differ")
        found[name] = record
    return found
