"""What is refused or left out of a run's samples before it trains: missing media, no media, unpaired controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launcher import Launcher
from test_bad_media import KINDS, RUN, corpus

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.data.corpora.controls import spoil
from ima.data.source import MediumError
from ima.pipeline.data_checks import PreparedSamples, check_media
from ima.pipeline.predictions import write_predictions
from ima.pipeline.prepare import without
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask


def sample_of(name: str, track: str = "test", shows: bool = True) -> Sample:
    media = None if shows else ()
    return Sample(name, track, track, "video", ("a cat",), medium_id=f"{name}.mp4", media=media)


def stream_of(channel: str = "", name: str = "") -> Any:
    return SimpleNamespace(channel=SimpleNamespace(name=channel), key=f"mixture.{name}.data" if name else "data")


def parts_of(streams: list[Any], trains: str = "none") -> Any:
    return SimpleNamespace(streams=streams, llm=SimpleNamespace(trains=trains))


def shown_of(*train: Sample) -> PreparedSamples:
    return PreparedSamples(list(train), [], {}, {})


def test_a_training_without_any_medium_and_a_frozen_llm_is_refused() -> None:
    text, seen = sample_of("a", shows=False), sample_of("b")
    with pytest.raises(UserError, match="^data: no training sample shows a medium and the LLM is frozen"):
        check_media(parts_of([stream_of()]), [shown_of(text, text)])
    check_media(parts_of([stream_of()]), [shown_of(text, seen)])
    check_media(parts_of([stream_of()], "lora"), [shown_of(text)])


def test_of_a_mixture_each_adapter_has_to_see_something() -> None:
    text, seen = sample_of("a", shows=False), sample_of("b")
    check_media(parts_of([stream_of("x", "x"), stream_of("x", "y")]), [shown_of(text), shown_of(seen)])
    with pytest.raises(UserError, match=r"^mixture\.y\.data: no training sample"):
        check_media(parts_of([stream_of("x", "x"), stream_of("y", "y")]), [shown_of(seen), shown_of(text)])


@pytest.mark.parametrize("bad", ["c1.mp4", "c1.mp4/shuffled", "c1.mp4/single_frame"])
def test_a_track_and_its_controls_lose_the_same_clips(bad: str) -> None:
    track = [sample_of(f"c{index}") for index in range(3)]
    controls = {name: [spoil(sample, name) for sample in track] for name in ("shuffled", "single_frame")}
    shown = PreparedSamples([], [], {"test": track}, controls)
    stream: Any = stream_of()
    left = without(shown, {bad: "damaged"}, "val", stream, report=False)
    assert [sample.id for sample in left.tracks["test"]] == ["c0", "c2"]
    for name in controls:
        assert [sample.id for sample in left.controls[name]] == [f"c0/{name}", f"c2/{name}"]
    assert left.skipped == {"test": 1, "shuffled": 1, "single_frame": 1}


@pytest.mark.parametrize("kind", ["noise", "live"])
def test_a_missing_test_picture_stops_a_run_that_computes_no_features_before_its_training(
    launcher: Launcher, tmp_path: Path, kind: str
) -> None:
    folder = corpus(tmp_path / "coco")
    for number in (2, 5, 7, 13):  # what `corpus` damages of train and val
        (folder / "train2014" / f"{number}.jpg").write_bytes((folder / "train2014" / "0.jpg").read_bytes())
    (folder / "train2014" / "17.jpg").unlink()
    argv = [*RUN, *KINDS[kind], f"data.folder={folder}", f"output_dir={tmp_path / 'out'}", "name=run"]
    done = launcher.run("train", argv)
    assert done.code == 2 and "17.jpg: not found; data.on_bad_medium=skip" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out" / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_medium_that_is_gone_at_the_end_costs_its_picture_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = CaptionTask()
    sample = dataclasses.replace(sample_of("c0"), facts={})

    class Gone:
        splits = ("test",)

        def samples(self, split: str) -> list[Sample]:
            return [sample]

        def medium(self, sample: Sample) -> Any:
            raise MediumError("c0.mp4: not found")

    source: Any = Gone()
    write_predictions(tmp_path, {"test": [Prediction(sample, "a cat")]}, task, source, 1)
    assert "c0" in (tmp_path / "samples.jsonl").read_text() and "image" not in (tmp_path / "samples.jsonl").read_text()
    assert capsys.readouterr().err == "warning: sample c0 is shown without its medium: c0.mp4: not found\n"
