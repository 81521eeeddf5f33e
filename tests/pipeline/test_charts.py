"""W&B's charts of a mixture: every entry has its own, none overwrites another's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from report_runs import ENTRIES, make_mixture

from ima.core.types import Row
from ima.pipeline.loggers.wandb import scalar_name
from ima.pipeline.loggers.wandb_charts import Charts
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


def test_each_entry_has_a_chart_of_its_own_values_from_the_first_row_on(rows: list[Row]) -> None:
    charts = Charts(mixture=True)
    first = [row for row in rows if row.task == "image_caption"]
    assert set(charts.logged(charts.add(first))) == {f"charts/{score}/image_caption" for score in ("sim", "sim_gap")}
    charts.add(rows)
    for entry in ENTRIES:
        layers, values, names = charts.lines(("sim", entry))
        wanted = {
            (row.epoch, row.layer_a): row.value
            for row in rows
            if (row.task, row.score, row.variant, row.role_b) == (entry, "sim", "raw", "T")
        }
        found = {
            (int(name.split()[1]), layer): value
            for name, curve in zip(names, values, strict=True)
            for layer, value in zip(layers, curve, strict=True)
        }
        assert found == wanted
    assert charts.heat_map().image is not None
