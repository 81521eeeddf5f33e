"""IMA against performance: the correlations are those of a slow twin, controls are told apart, nothing counts twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ima.report.build import write_report
from ima.report.correlation import correlate
from ima.report.load import load_runs
from ima.report.page.tables import overview_columns
from ima.report.proxies import correlation_table, places, relation_text
from ima.report.relations import Point, is_control, permutation_p, points_of, relations, resampled, targets
from ima.report.run import Run


def point(x: float, y: float, group: str = "", control: bool = False) -> Point:
    return Point(f"run {x:.2f}", x, y, group or f"{x}-{y}", control, (0.0, y, y))


def run(folder: str = "r", x: float = 0.5, y: float = 0.5, **result: Any) -> Run:
    full = {"config": {}, "facts": {}, "metrics": {"ima/mean": x, "T0/accuracy": y}, "versions": {}, "git": {}}
    return Run(Path(folder), folder, {**full, **result})


@pytest.mark.parametrize("n", [5, 12, 40])
def test_both_correlations_are_those_of_the_slow_twin(n: int) -> None:
    generator = np.random.default_rng(n)
    x = generator.normal(size=n)
    y = 0.6 * x + generator.normal(size=n)
    twin = {each.name: each for each in correlate(x.tolist(), y.tolist())}
    for found in relations([point(a, b) for a, b in zip(x, y, strict=True)]):
        expected = twin[found.kind]
        assert found.value == pytest.approx(expected.value, abs=1e-12) and found.n == n
        assert found.p == pytest.approx(expected.p, abs=0.02 if n > 7 else 1e-12)  # other permutations are drawn
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)


def test_a_relation_made_by_the_controls_alone_is_gone_without_them() -> None:
    cloud = [point(0.8 + 0.01 * k, 0.9 + 0.01 * ((7 * k) % 5)) for k in range(8)]
    far = [point(0.1, 0.05, control=True), point(0.12, 0.08, control=True)]
    assert relations(cloud + far)[1].value > 0.95
    assert abs(relations(cloud)[1].value) < 0.5


def test_checkpoints_of_one_training_are_drawn_together_and_give_no_p() -> None:
    points = [point(k + 0.1 * e, k + 0.2 * e, group=f"training {k}") for k in range(4) for e in range(3)]
    drawn = resampled([p.group for p in points], 50, np.random.default_rng(0))
    for chosen in drawn:
        counts = np.bincount(chosen, minlength=12).reshape(4, 3)
        assert (counts == counts[:, :1]).all() and counts.sum() == 12
    found = relations(points)[0]
    assert math.isnan(found.p) and math.isfinite(found.low) and "p =" not in relation_text(points)


def test_the_permutation_p_of_few_points_is_exact() -> None:
    x, y = np.arange(4.0), np.array([0.0, 1.0, 2.0, 3.0])
    assert permutation_p(x, y, 1.0, 10, 0) == pytest.approx(2 / 24)  # in order, and in reverse


@pytest.mark.parametrize("points", [[], [point(1, 1), point(2, 2)], [point(1, k) for k in range(5)]])
def test_too_few_or_too_alike_is_said(points: list[Point]) -> None:
    assert all(math.isnan(found.value) for found in relations(points))
    assert "too few or too alike" in relation_text(points)


@pytest.mark.parametrize(
    ("config", "control"),
    [
        ({"encoder": {"_target_": "ima.models.encoders.controls.NoiseEncoder"}}, True),
        ({"encoder": {"_target_": "x.EfficientNetLite", "pretrained": False}}, True),
        ({"encoder": {"_target_": "x.VideoFrames", "image": {"_target_": "x.y", "pretrained": False}}}, True),
        ({"encoder": {"_target_": "x.EfficientNetLite", "pretrained": True}}, False),
        ({"encoder": {"_target_": "x.Own"}, "choices": {"encoder": "random_own"}}, True),
        ({"choices": {"encoder": "focus_vit", "llm": "random_smollm2"}}, True),
        ({}, False),
    ],
)
def test_controls_are_told_by_what_they_are(config: dict[str, Any], control: bool) -> None:
    assert is_control(run(config=config)) == control


def test_a_training_and_the_evaluation_of_its_last_adapter_are_one_point() -> None:
    runs = [
        run("s/a", 0.5, 0.6),
        run("s/b", 0.5, 0.6, facts={"evaluated": "s/a/checkpoints/epoch-002.safetensors"}),
        run("s/c", 0.4, 0.3, facts={"evaluated": "s/a/checkpoints/epoch-001.safetensors"}),
        run("s/d", 0.4, 0.2, facts={"evaluated": "s/e/adapter.safetensors"}),
    ]
    found = points_of(runs, "ima/mean", "T0/accuracy")
    assert [(p.x, p.y, Path(p.group).name) for p in found] == [(0.5, 0.6, "a"), (0.4, 0.3, "a"), (0.4, 0.2, "e")]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"T0/accuracy": 1, "T0/cider_d": 1, "val/loss": 1}, ["T0/accuracy", "val/loss"]),
        ({"T0/cider_d": 1, "T1/cider_d": 1, "val/loss": 1}, ["T0/cider_d", "val/loss"]),
        ({"val/loss": 1}, ["val/loss"]),
        ({}, []),
    ],
)
def test_ima_is_related_to_task_metrics_and_to_the_loss(scores: dict[str, float], expected: list[str]) -> None:
    assert targets([run(f"s/{k}", metrics={"ima/mean": 0.1 * k} | scores) for k in range(3)]) == expected
    assert targets([run(f"s/{k}", metrics={"ima/mean": 0.1 * k} | scores) for k in range(2)]) == []


def test_labels_of_points_that_lie_close_do_not_cover_each_other_and_stay_inside() -> None:
    at = [(20.0, 50.0), (21.0, 50.5), (22.0, 50.0), (120.0, 30.0), (270.0, 80.0)]
    found = places(["a label"] * 5, at, 280.0)
    assert len(set(found[:3])) == 3
    assert {side for side, _, _ in found[:3]} == {"left"} and found[4][0] == "right"


def test_the_page_of_a_sweep_names_jobs_by_what_varies_and_tells_both_correlations(tmp_path: Path) -> None:
    for k in range(6):
        encoder = "noise" if k == 5 else f"e{k}"
        folder = tmp_path / f"{k:012x}"
        folder.mkdir()
        command = f"python train.py optimizer.lr=0.1 encoder={encoder} encoder.layer=3 name=s/{k:012x} output_dir=out"
        metrics = {"ima/mean": 0.1 * k, "T0/noun_accuracy": 0.1 * (k * 5 % 6)}
        result = {"status": "ok", "config": {"choices": {"encoder": encoder}}, "command": command, "metrics": metrics}
        (folder / "result.json").write_text(json.dumps(result))
    runs = load_runs([tmp_path])
    assert [found.name for found in runs] == ["e0", "e1", "e2", "e3", "e4", "noise"]
    rows = correlation_table(runs)
    assert {(row["runs"], row["n"]) for row in rows} == {("all", 6), ("without controls", 5)}
    page = write_report([tmp_path]).read_text()
    assert "Without controls (hollow)" in page and "without controls" in page
    assert (tmp_path / "proxies.csv").read_text().count("\n") == len(rows) + 1


def evaluation(folder: Path, run: str, ratio: float) -> None:
    folder.mkdir(parents=True)
    command = f"python evaluate.py checkpoint=out/{run} intervention=[prune] intervention.prune.ratio={ratio} name=s/x"
    config = {"checkpoint": f"out/{run}", "adapter": {"hidden": len(run)}}
    result = {"status": "ok", "config": config, "command": command, "metrics": {"T0/accuracy": ratio}}
    (folder / "result.json").write_text(json.dumps(result))


def test_evaluations_of_several_runs_are_named_by_run_and_stand_in_the_order_of_the_sweep(tmp_path: Path) -> None:
    jobs = [(run, ratio) for run in ("b", "aa") for ratio in (0.5, 0.1)]
    folders = ["0f" * 6, "aa" * 6, "0b" * 6, "99" * 6]
    for folder, job in zip(folders, jobs, strict=True):
        evaluation(tmp_path / folder, *job)
    (tmp_path / "sweep.json").write_text(json.dumps({"folders": folders}))
    runs = load_runs([tmp_path])
    assert [found.name for found in runs] == ["b ratio=0.5", "b ratio=0.1", "aa ratio=0.5", "aa ratio=0.1"]
    assert overview_columns(runs) == {
        "checkpoint": ["out/b", "out/b", "out/aa", "out/aa"], "intervention.prune.ratio": ["0.5", "0.1"] * 2,
    }  # fmt: skip
    (tmp_path / "sweep.json").write_text("[")
    assert [found.folder.name for found in load_runs([tmp_path])] == sorted(folders)
