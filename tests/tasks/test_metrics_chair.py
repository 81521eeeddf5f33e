"""CHAIR: what captions name that is not there, for COCO's classes and for the embedded vocabulary."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import ima.tasks.metrics
from ima.core.types import Sample
from ima.tasks.base import Metric, Prediction
from ima.tasks.caption import CaptionTask
from ima.tasks.metrics.chair import chair, coco_classes, coco_names, coco_objects

COCO = {"vocabulary": "coco", "nouns": ("person", "dog")}


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("Two men and a baby bird", "person bird"),
        ("an adult elephant with a cub", "elephant"),
        ("a passenger train on the train tracks", "train"),
        ("a hot dog beside a dog", "hot dog|dog"),
        ("hot-dogs and teddy bears", "hot dog|teddy bear"),
        ("a man with a bow tie", "person|tie"),
        ("ties, benches and wine glasses", "tie|bench|wine glass"),
        ("a player at home plate with baseball bats", "person|baseball bat"),
        ("a white toilet with its seat up", "toilet"),
        ("a seat by the window", "chair"),
        ("traffic lights near a fire hydrant", "traffic light|fire hydrant"),
        ("motor bikes and knives", "motorcycle|knife"),
        ("children eating cheesecakes, people on skis", "person|cake|person|skis"),
        ("grass under a blue sky", ""),
        ("", ""),
    ],
)
def test_coco_objects_of_captions(caption: str, classes: str) -> None:
    wanted = classes.split("|") if "|" in classes else classes.split()
    assert coco_objects(caption) == wanted


def test_the_table_has_the_eighty_classes_and_no_word_stands_for_two() -> None:
    path = Path(ima.tasks.metrics.__file__).parent / "coco.tsv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    words = [word for row in rows for word in [row["class"], *filter(None, row["synonyms"].split(","))]]
    assert len(rows) == 80 and len(words) == len(set(words))
    assert all(coco_objects(f"a {name}")[:1] == [name] for name in coco_names().values())


def test_counts_of_one_caption() -> None:
    found = chair(COCO, "a man and a woman pet a cat")
    assert found is not None
    assert (found.num_said, found.num_absent, found.num_found, found.num_true, found.length) == (3, 1, 1, 2, 8)
    assert chair({}, "a cat") is None
    assert coco_classes(["a man", "his puppy"]) == {"person", "dog"}


def test_broader_terms_are_right_where_something_there_falls_under_them() -> None:
    facts = {"nouns": ("penguin", "teddy bear")}
    for text, num_absent in (("a bird and a teddy bear", 0), ("a penguin and a bear", 1), ("an orange bird", 0)):
        found = chair(facts, text)
        assert found is not None and found.num_absent == num_absent, text


def scored(facts: dict, texts: list[str]) -> dict[str, Metric]:
    samples = [Sample(str(i), "T0", "T0", "image", ("a dog",), cluster=str(i), facts=facts) for i in range(len(texts))]
    task = CaptionTask(headline="cider_d")
    found = task.score([Prediction(s, t) for s, t in zip(samples, texts, strict=True)], [("a dog",), ("a cat",)])
    return {metric.name: metric for metric in found}


def test_the_corpus_scores_divide_sums_and_stand_beside_recall_and_length() -> None:
    found = scored(COCO, ["a man and a dog", "a cat and a man", "a cat, a cat", ""])
    assert found["chair_s"].value == 2 / 4
    assert found["chair_i"].value == 3 / 6  # mentions, not captions
    assert found["object_recall"].value == 3 / 8
    assert found["caption_length"].value == pytest.approx((5 + 5 + 4 + 0) / 4)
    assert "noun_accuracy" not in found  # 80 classes are far from all that a photograph shows


def test_silence_hallucinates_nothing_and_recalls_nothing() -> None:
    found = scored({"nouns": ("cow",)}, ["", ""])
    assert found["chair_s"].value == 0 and found["object_recall"].value == 0 and found["caption_length"].value == 0
    assert found["chair_i"].value != found["chair_i"].value  # nothing over nothing


def test_lines_carry_chair_of_their_own() -> None:
    sample = Sample("0", "T0", "T0", "image", ("a dog",), facts=COCO)
    row, empty = CaptionTask().per_example([Prediction(sample, "a cat and a dog"), Prediction(sample, "")])
    assert (row["chair_s"], row["chair_i"], row["object_recall"]) == (True, 0.5, 0.5)
    assert (empty["chair_s"], empty["chair_i"], empty["object_recall"]) == (False, None, 0.0)
