"""CHAIR on COCO: captions with the objects of COCO's instances files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora_files
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ima.config.compose import compose
from ima.core.errors import UserError
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask


def instances() -> dict[str, Any]:
    return copy.deepcopy(corpora_files.COCO_INSTANCES)


def source_in(folder: Path, content: dict[str, Any]) -> Any:
    corpora_files.coco(folder)
    corpora_files.to_json(folder / "instances_val2014.json", content)
    config: Any = OmegaConf.to_container(compose(["data=coco_chair", "data.folder=somewhere"])["data"])
    return instantiate(config | {"folder": str(folder)})


def test_what_is_there_is_what_is_annotated_and_what_people_say(tmp_path: Path) -> None:
    source = source_in(tmp_path, instances())
    (val,), (test,) = source.samples("val"), source.samples("test")
    assert val.facts["nouns"] == ["cow", "person"] and test.facts["nouns"] == ["cow"]  # every caption names a cow
    assert all("nouns" not in sample.facts for sample in source.samples("train"))


def test_captions_of_coco_are_scored_by_chair_and_wording_and_by_no_nouns(tmp_path: Path) -> None:
    (sample,) = source_in(tmp_path, instances()).samples("val")
    task = CaptionTask(headline="cider_d")
    metrics = {m.name: m.value for m in task.score([Prediction(sample, "two men ride a dog")], [sample.references])}
    assert (metrics["chair_i"], metrics["chair_s"], metrics["object_recall"]) == (0.5, 1.0, 0.5)
    assert "cider_d" in metrics and "noun_accuracy" not in metrics


def test_the_fingerprint_knows_the_instances(tmp_path: Path) -> None:
    before = source_in(tmp_path, instances()).fingerprint
    assert source_in(tmp_path, instances() | {"info": {}}).fingerprint != before


def changed(key: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[key][index].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["images"].pop(0), "image_id 2 is not among the images"),
        (lambda content: (content["images"].pop(0), content["annotations"].clear()), "image 2 is not among the images"),
        (changed("annotations", 1, category_id=99), "category_id 99 is not among the categories"),
        (changed("categories", 0, name="persn"), "'persn' is none of COCO's 80"),
        (changed("images", 1, id=2), "id 2 occurs twice"),
        (lambda content: content.pop("categories"), "categories"),
    ],
)
def test_faults_of_an_instances_file_are_told_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    content = instances()
    change(content)
    with pytest.raises(UserError) as error:
        source_in(tmp_path, content).samples("val")
    text = str(error.value)
    assert "\n" not in text and "instances_val2014.json" in text and words in text


def test_a_missing_instances_file_is_named(tmp_path: Path) -> None:
    source = source_in(tmp_path, instances())
    (tmp_path / "instances_val2014.json").unlink()
    with pytest.raises(UserError, match=r"splits.val.objects.*instances_val2014.json"):
        source.samples("val")
