"""The trade-off figure: retained performance against the same adapter without a plan, from result.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ima.core.files import write_json
from ima.report.figures.skip import skip_figures, skip_tradeoff
from ima.report.load import load_run
from ima.report.plans import points_of
from ima.report.run import Run


def write(folder: Path, value: float, left: float | None = None, evaluated: Path | None = None, **skip: Any) -> Run:
    facts: dict[str, Any] = {} if evaluated is None else {"evaluated": str(evaluated)}
    if left is not None:
        plan = {"part": "block", "roles": ["percept"], "start": 4, "every": 2, "ratio": 1.0} | skip
        facts["plan"] = {"interventions": [plan], "flops": {"prefill_left": left}}
    write_json(folder / "result.json", {"status": "ok", "metrics": {"T0/noun_accuracy": value}, "facts": facts})
    return load_run(folder)


def test_an_evaluation_is_compared_with_the_run_of_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "run", 0.8)
    adapter = tmp_path / "run" / "adapter.safetensors"
    runs = [write(tmp_path / f"e{i}", 0.8 - 0.2 * i, 1 - 0.1 * i, adapter, every=i) for i in (1, 2)]
    points = points_of(runs, "T0/noun_accuracy")
    assert [(point.left, pytest.approx(point.retained)) for point in points] == [(0.9, 0.75), (0.8, 0.5)]
    figure = skip_tradeoff(runs)
    assert figure.draw is not None and len(figure.table[1]) == 2
    figure.save(tmp_path)
    assert (tmp_path / "skip_tradeoff.svg").stat().st_size > 0


def test_an_unskipped_evaluation_in_the_set_is_the_baseline(tmp_path: Path) -> None:
    write(tmp_path / "run", 0.1)
    adapter = tmp_path / "run" / "adapter.safetensors"
    runs = [write(tmp_path / "plain", 0.5, None, adapter), write(tmp_path / "skipped", 0.4, 0.7, adapter)]
    assert [point.retained for point in points_of(runs, "T0/noun_accuracy")] == [pytest.approx(0.8)]


def test_training_under_a_plan_is_a_group_of_its_own_beside_the_unskipped_training(tmp_path: Path) -> None:
    runs = [write(tmp_path / "plain", 0.5), write(tmp_path / "trained", 0.45, 0.7)]
    (point,) = points_of(runs, "T0/noun_accuracy")
    assert point.group.startswith("trained under it") and point.retained == pytest.approx(0.9)


def test_without_a_baseline_nothing_is_drawn_and_the_reason_is_said(tmp_path: Path) -> None:
    runs = [write(tmp_path / str(i), 0.4, 0.7, tmp_path / "gone" / "adapter.safetensors") for i in range(2)]
    figure = skip_tradeoff(runs)
    assert figure.draw is None and "baseline" in figure.missing


def test_plans_that_differ_in_their_blocks_alone_are_drawn_over_the_blocks(tmp_path: Path) -> None:
    write(tmp_path / "run", 0.8)
    adapter = tmp_path / "run" / "adapter.safetensors"
    listed = ([6, 7], [1, 2], [11, 12])
    runs = [write(tmp_path / f"e{i}", 0.2 * i + 0.1, 0.9, adapter, listed=blocks) for i, blocks in enumerate(listed)]
    for index, run in enumerate(runs):
        run.result["metrics"]["val/loss"] = 3.0 - index
    (figure,) = skip_figures(runs)
    assert figure.name == "skip_blocks"
    assert [(row[1], row[3], row[7]) for row in figure.table[1]] == [
        ("1 2", pytest.approx(0.3), 2.0), ("6 7", pytest.approx(0.1), 3.0), ("11 12", pytest.approx(0.5), 1.0),
    ]  # fmt: skip
    figure.save(tmp_path)
    assert "skipped blocks" in (tmp_path / "skip_blocks.svg").read_text()
    more = [*runs, write(tmp_path / "other", 0.7, 0.5, adapter, listed=list(range(10)))]
    assert [figure.name for figure in skip_figures(more)] == ["skip_blocks", "skip_tradeoff"]
    assert len(skip_figures(more)[0].table[1]) == 3 and len(skip_figures(more)[1].table[1]) == 4


def test_recovery_pairs_an_evaluation_with_the_training_under_the_same_plan(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", 0.8)
    adapter = tmp_path / "plain" / "adapter.safetensors"
    other = write(tmp_path / "other", 0.6, 0.7, adapter, every=1)
    evaluated = write(tmp_path / "evaluated", 0.4, 0.8, adapter)
    assert [figure.name for figure in skip_figures([plain, other, evaluated])] == ["skip_tradeoff"]
    figures = skip_figures([plain, other, evaluated, write(tmp_path / "trained", 0.7, 0.8)])
    assert [figure.name for figure in figures] == ["skip_tradeoff", "skip_recovery"]
    assert [(row[0], row[3], row[-1]) for row in figures[1].table[1]] == [
        ("evaluated", 0.4, "evaluated"), ("trained", 0.7, "trained"),
    ]  # fmt: skip
    figures[1].save(tmp_path)
    assert (tmp_path / "skip_recovery.svg").stat().st_size > 0


def test_measured_time_has_its_own_figure_of_the_runs_that_have_it(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", 0.8)
    adapter = tmp_path / "plain" / "adapter.safetensors"
    runs = [plain, *(write(tmp_path / f"e{i}", 0.5, 0.7, adapter, every=i) for i in (1, 2))]
    runs[1].result["facts"]["plan_seconds"] = {"left": 0.9}
    figures = skip_figures(runs)
    assert [figure.name for figure in figures] == ["skip_tradeoff", "skip_tradeoff_seconds"]
    assert [row[6] for row in figures[1].table[1]] == [0.9]
