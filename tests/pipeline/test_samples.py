"""The lines that a run leaves of every example: complete, scored against the whole split, plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ima.core.types import Sample
from ima.pipeline.predictions import write_predictions
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask
from ima.tasks.metrics.cider import Frequencies, cider_d
from ima.tasks.qa import QaTask


class Few:
    """Four pictures, two of them never predicted."""

    name, modality, splits, controls, fingerprint = "few", "image", ("T0",), (), "few-1"
    TEXTS = ("a red cow", "a blue car", "a red car", "two red cows")

    def samples(self, split: str) -> list[Sample]:
        assert split == "T0"  # what stands beside a track has no split of its own
        return [
            Sample(f"f/{i}", "T0", "T0", "image", (text,), question="What is it?" if i else "", cluster=f"c{i}")
            for i, text in enumerate(self.TEXTS)
        ]

    def medium(self, sample: Sample) -> Image.Image:
        return Image.new("RGB", (8, 8))


def lines_of(folder: Path, task: Any) -> list[dict[str, Any]]:
    said = [Prediction(sample, "a red car") for sample in Few().samples("T0")[:2]]
    write_predictions(folder, {"T0": said, "blind": said}, task, Few(), 1)  # type: ignore[arg-type]
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_cider_of_a_line_is_weighed_by_the_whole_split_not_by_what_was_predicted(tmp_path: Path) -> None:
    found = lines_of(tmp_path, CaptionTask(headline="cider_d"))
    whole = Frequencies.of([sample.references for sample in Few().samples("T0")])
    wanted = cider_d(["a red car"] * 2, [("a red cow",), ("a blue car",)], whole)
    assert [line["track"] for line in found] == ["T0", "T0", "blind", "blind"]
    assert [line["cider_d"] for line in found] == pytest.approx([*wanted, *wanted])
    assert wanted[0] != pytest.approx(
        cider_d(["a red car"], [("a red cow",)], Frequencies.of([("a red cow",), ("a blue car",)]))[0]
    )


def test_lines_tell_the_question_where_there_is_one(tmp_path: Path) -> None:
    assert ["question" in line for line in lines_of(tmp_path, CaptionTask())] == [False, True] * 2
    (tmp_path / "qa").mkdir()
    first = lines_of(tmp_path / "qa", QaTask(metric="exact"))[1]
    assert first["question"] == "What is it?" and first["right"] == 0 and first["answer"] == "a blue car"
