"""Comparing two runs, and the demo's twins: paired by example, resampled by cluster, honest about what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

import ima.cli.demo
from ima.cli.compare import main
from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.runs.compare import compare, lines_of, read_predictions


def run_of(folder: Path, right: Sequence[bool], track: str = "T0", names: Sequence[str] | None = None) -> Path:
    """A run folder whose examples are in clusters of two."""
    names = names or [f"x{index}" for index in range(len(right))]
    write_json(folder / "result.json", {"status": "ok"})
    lines = [{"id": name, "track": track, "cluster": f"c{index // 2}", "epoch": 1, "right": value, "prediction": "a"}
             for index, (name, value) in enumerate(zip(names, right, strict=True))]  # fmt: skip
    blind = [line | {"track": "blind", "right": False} for line in lines]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *blind]))
    return folder


def test_the_difference_is_paired_by_example_whatever_the_order(tmp_path: Path) -> None:
    right = [True, True, True, False, True, True]
    first = run_of(tmp_path / "a", right)
    names = [f"x{index}" for index in range(6)]
    second = run_of(tmp_path / "b", right[::-1], names=names[::-1])  # the same answers, listed backwards
    found = compare(first, second)["tracks"]["T0"]
    assert found["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # unpaired intervals would have a width
    assert found["n"] == 6 and found["num_clusters"] == 3


def test_the_interval_resamples_clusters(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    by_cluster = np.repeat(draws.random(40) < 0.5, 2)  # examples of one cluster always agree
    first, second = run_of(tmp_path / "a", by_cluster.tolist()), run_of(tmp_path / "b", [False] * 80)
    found = compare(first, second)["tracks"]["T0"]["difference"]
    assert found["value"] == pytest.approx(by_cluster.mean())
    half = 1.96 * np.sqrt(by_cluster.mean() * (1 - by_cluster.mean()) / 40)  # 40 independent things, not 80
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_the_blind_row_is_no_track_unless_it_is_asked_for(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a", [True] * 4), run_of(tmp_path / "b", [False] * 4)
    assert list(compare(first, second)["tracks"]) == ["T0"]
    assert compare(first, second, tracks=["blind"])["tracks"]["blind"]["difference"]["value"] == 0.0


def test_rows_of_spoilt_media_that_only_one_run_has_are_left_out(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a", [True, False]), run_of(tmp_path / "b", [True, True])
    spoilt = {"id": "x/single_frame", "track": "single_frame", "cluster": "c0", "epoch": 1, "right": False}
    with open(first / "predictions.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(spoilt) + "\n")
    assert list(compare(first, second)["tracks"]) == ["T0"]
    with pytest.raises(UserError, match="single_frame"):
        compare(first, second, tracks=["single_frame"])


def test_main_prints_a_line_per_track_and_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run_of(tmp_path / "a", [True] * 6), run_of(tmp_path / "b", [True, False] * 3)
    assert main([str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert "T0" in out and "difference +0.500 [+0.500, +0.500]" in out and "n = 6, 3 clusters" in out
    assert json.loads((second / "comparison.json").read_text())["tracks"]["T0"]["second"]["value"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "other"], "different examples"),
        (["a", "running"], "only a finished run"),
        (["a", "nowhere"], "result.json"),
        (["a", "b", "--track", "T9"], "T9"),
        (["a", "b", "--metric", "rigth"], "right"),
        (["a", "b", "--metric", "prediction"], "no number"),
        (["a", "torn"], "torn/predictions.jsonl:1"),
        (["a", "double"], "twice"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path,
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "a", [True] * 4)
    run_of(tmp_path / "b", [True] * 4)
    run_of(tmp_path / "other", [True] * 4, names=["x0", "x1", "x2", "y"])
    write_json(tmp_path / "running" / "result.json", {"status": "running"})
    write_json(tmp_path / "torn" / "result.json", {"status": "ok"})
    (tmp_path / "torn" / "predictions.jsonl").write_text('{"id": "x0", "tra')
    run_of(tmp_path / "double", [True] * 4, names=["x0", "x1", "x2", "x2"])
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err, err
    assert not (tmp_path / "b" / "comparison.json").exists()


def test_predictions_of_a_run_tell_the_blind_row_from_its_track(tmp_path: Path) -> None:
    from ima.data.shapes import Shapes
    from ima.pipeline.predictions import write_predictions
    from ima.tasks.base import Prediction
    from ima.tasks.caption import CaptionTask

    source = Shapes(num_train=4, num_test=4, size=32)
    seen = [Prediction(sample, sample.references[0]) for sample in source.samples("T0")]
    blind = [Prediction(sample, "a thing") for sample in source.samples("T0")]
    write_predictions(tmp_path, {"T0": seen, "blind": blind}, CaptionTask(), source, epoch=1)
    tracks = read_predictions(tmp_path)
    assert list(tracks) == ["T0", "blind"] and tracks["T0"].keys() == tracks["blind"].keys()
    assert all(line["right"] for line in tracks["T0"].values())
    assert not any(line["right"] for line in tracks["blind"].values())


# -- the demo and its twin -------------------------------------------------------------------------------------------


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    plain = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


@pytest.mark.parametrize(("experiment", "more"), [("demo", []), ("demo", ["seed=3"]), ("demo_shapes", [])])
def test_the_control_differs_from_the_demo_in_nothing_but_its_encoder(experiment: str, more: list[str]) -> None:
    demo, control = (flat(compose([f"experiment={name}", *more])) for name in (experiment, f"{experiment}_control"))
    differ = {key for key in demo.keys() | control.keys() if demo.get(key) != control.get(key)}
    assert differ and {key.split(".")[0] for key in differ - {"name"}} <= {"encoder", "choices"}
    assert {key for key in differ if key.startswith("choices")} == {"choices.encoder", "choices.experiment"}
    assert control["encoder.dim"] == 1280 and control["encoder.num_tokens"] == 49  # the shape of the demo's features


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Calls of train.py, each of which leaves a run folder in the current one."""
    calls: list[list[str]] = []
    monkeypatch.chdir(tmp_path)

    def train(overrides: Sequence[str]) -> int:
        calls.append(list(overrides))
        run_of(ima.cli.demo.folder_of(overrides), [len(calls) == 1] * 4)
        return 0

    monkeypatch.setattr(ima.cli.demo, "train", train)
    return calls


def test_the_demo_prints_its_times_and_last_its_page(
    trained: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ima.cli.demo, "stamps_missing", lambda: "")
    assert ima.cli.demo.main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert trained == [["experiment=demo"]]
    assert [cell.split()[0] for cell in lines[-2].split(" | ")] == ["download", "install", "run"]
    assert lines[-1] == "outputs/demo/report.html"


def test_without_the_stamps_the_demo_runs_on_shapes_under_another_name_and_says_so(
    trained: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMA_STAMPS", str(tmp_path / "nowhere"))
    assert ima.cli.demo.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert trained == [["experiment=demo_shapes"]]
    assert out.splitlines()[0].startswith("StampWorld is not available") and out.count("StampWorld") == 1
    assert out.splitlines()[-1] == "outputs/demo_shapes/report.html"
    assert compose(trained[0]).data["_target_"] == "ima.data.shapes.Shapes"


def test_a_choice_of_data_is_not_overruled(trained: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ima.cli.demo, "stamps_missing", lambda: "not there")
    assert ima.cli.demo.main(["demo", "data=stamps_single", "name=mine"]) == 0
    assert trained == [["experiment=demo", "data=stamps_single", "name=mine"]]


def test_a_name_that_is_given_is_the_demos_and_its_twin_gets_a_tail() -> None:
    assert ima.cli.demo.calls_of("control", False, ["name=x", "seed=1"]) == [
        ["experiment=demo_shapes", "name=x", "seed=1"],
        ["experiment=demo_shapes_control", "name=x-control", "seed=1"],
    ]


def test_the_control_trains_both_and_prints_the_difference_and_both_pages(
    trained: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ima.cli.demo, "stamps_missing", lambda: "")
    assert ima.cli.demo.main(["control"]) == 0
    out = capsys.readouterr().out
    assert trained == [["experiment=demo"], ["experiment=demo_control"]]
    assert "difference +1.000" in out
    assert out.splitlines()[-2:] == ["outputs/demo/report.html", "outputs/demo_control/report.html"]
    assert Path("outputs/demo_control/comparison.json").is_file()


@pytest.mark.parametrize("arguments", [["dmeo"], ["control", "encoder=noise"], ["demo", "trainer.epohcs=1"]])
def test_a_mistake_is_refused_before_anything_is_trained(
    trained: list[list[str]], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ima.cli.demo.main(arguments) == 2
    assert trained == [] and capsys.readouterr().err.count("\n") == 1


def test_every_experiment_with_a_twin_is_trained_with_it_and_no_other_is() -> None:
    assert ima.cli.demo.calls_of("twin", True, ["experiment=st_video_qa", "seed=1", "name=x"]) == [
        ["experiment=st_video_qa", "seed=1", "name=x"],
        ["experiment=st_video_qa_control", "seed=1", "name=x-control"],
    ]
    for given in ([], ["experiment=smoke"], ["experiment=st_video_qa_control"]):
        with pytest.raises(UserError, match="with a twin are: demo, .*st_audio_caption"):
            ima.cli.demo.calls_of("twin", True, given)


def test_a_failed_training_ends_the_demo_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ima.cli.demo, "stamps_missing", lambda: "")
    monkeypatch.setattr(ima.cli.demo, "train", lambda overrides: 130)
    assert ima.cli.demo.main(["control"]) == 130


def test_right_is_named_by_the_headline_of_the_task(tmp_path: Path) -> None:
    comparison = {"first": str(tmp_path), "second": "b", "metric": "right", "tracks": {}}
    assert next(iter(lines_of(comparison))).startswith("right, ")
    (tmp_path / "result.json").write_text(json.dumps({"facts": {"headline": "cider_d"}}))
    assert next(iter(lines_of(comparison))).startswith("cider d, ")
    assert next(iter(lines_of(comparison | {"metric": "rouge_l"}))).startswith("rouge_l, ")
