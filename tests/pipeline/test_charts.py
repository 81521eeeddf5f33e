"""The chart by layer has every measured epoch's own values, of each entry of a mixture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from report_runs import ENTRIES, make_mixture, make_run

from ima.core.types import Row
from ima.pipeline.loggers.wandb_charts import LAYER_COLUMNS, MAX_LINES, layer_rows, summary
from ima.pipeline.loggers.wandb_points import scalar_name
from ima.runs.results import read_rows


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    make_mixture(tmp_path / "mixed")
    return [Row(**row) for row in read_rows(tmp_path / "mixed" / "rows.jsonl")]


def test_no_two_rows_of_a_mixture_share_a_scalar(rows: list[Row]) -> None:
    names = Counter((scalar_name(row, mixture=True), row.epoch, row.step) for row in rows)
    assert {name: times for name, times in names.items() if times > 1 and name[0] is not None} == {}
    assert {f"{entry}/ima/mean" for entry in ENTRIES} | {"train/loss"} <= {name for name, _, _ in names}
    alone = Counter((scalar_name(row), row.epoch, row.step) for row in rows)
    assert alone["ima/mean", 1, None] == len(ENTRIES), "without the name they would be one chart"


def test_each_entry_has_lines_of_its_own_values(rows: list[Row]) -> None:
    found = [dict(zip(LAYER_COLUMNS, cells, strict=True)) for cells in layer_rows(rows, mixture=True)]
    for entry in ENTRIES:
        wanted = {
            (f"{entry}, epoch {row.epoch}", row.layer_a): row.value
            for row in rows
            if (row.task, row.score, row.variant, row.role_b) == (entry, "sim", "raw", "T")
        }
        assert {(each["line"], each["layer"]): each["sim"] for each in found if each["entry"] == entry} == wanted


def test_of_many_epochs_the_first_the_last_and_some_between_are_lines(tmp_path: Path) -> None:
    make_run(tmp_path / "run", layers=2, epochs=30, samples=0)
    found = layer_rows([Row(**row) for row in read_rows(tmp_path / "run" / "rows.jsonl")])
    lines = list(dict.fromkeys(cells[0] for cells in found))
    assert len(lines) == MAX_LINES and (lines[0], lines[-1]) == ("epoch 0", "epoch 30")


def test_measured_again_the_newer_value_counts_and_steps_tell_measurements_of_one_epoch_apart() -> None:
    def row(value: float, step: int) -> Row:
        return Row("r", "sim", value, step=step, epoch=0, split="val", layer_a=1, layer_b=1, site="resid_post",
                   role_a="P", role_b="T", variant="raw")  # fmt: skip

    found = layer_rows([row(0.1, 0), row(0.2, 5), row(0.3, 5)])
    assert [(cells[0], cells[LAYER_COLUMNS.index("sim")]) for cells in found] == [("step 0", 0.1), ("step 5", 0.3)]


def test_the_summary_has_what_a_plan_and_a_mask_leave() -> None:
    facts = {"plan": {"flops": {"prefill_left": 0.7, "prefill": None, "unit": "x"},
                      "interventions": [{"kind": "skip", "ratio": 0.9}, {"kind": "prune", "ratio": 0.5}]},
             "plan_seconds": {"left": 0.8, "unit": "s"}, "seconds": {"fit": 2.0}}  # fmt: skip
    record = {"metrics": {"a": 1.0, "b": None}, "facts": facts, "wall_seconds": 3.0}
    assert summary(record) == {"a": 1.0, "plan/flops_prefill_left": 0.7, "plan/seconds_left": 0.8,
                               "mask/sparsity": 0.5, "seconds/fit": 2.0, "wall_seconds": 3.0}  # fmt: skip
    assert summary({}) == {}
