"""Many runs: one table row each, one page for all, curves that mean what the rows say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from report_runs import make_run, write_page

from ima.cli.collect import main
from ima.core.types import ROW_FIELDS
from ima.report.build import write_report
from ima.report.collect import collect, write_csv
from ima.report.curves import alignment_rows, by_layer, training
from ima.report.load import load_runs, run_names

ROOT = Path(__file__).resolve().parents[2]


def row(score: str, value: float | None, **fields: Any) -> dict[str, Any]:
    return {**dict.fromkeys(ROW_FIELDS), "score": score, "value": value, **fields}


def result_only(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "ok", **fields}))
    return folder


def test_collect_has_one_row_per_run_and_failed_runs_keep_their_reason(tmp_path: Path) -> None:
    result_only(tmp_path / "a", config={"encoder": {"name": "vit"}, "seeds": [1, 2]}, metrics={"T0/cider": 1.5})
    result_only(tmp_path / "deep" / "b", config={"encoder": {"name": "noise"}}, status="failed", reason="no memory")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "result.json").write_text("{torn")
    rows = {found["run"]: found for found in collect([tmp_path])}
    assert set(rows) == {"a", "deep/b", "c"}
    assert rows["a"]["config.encoder.name"] == "vit"
    assert rows["a"]["config.seeds"] == "[1, 2]"
    assert rows["a"]["T0/cider"] == 1.5
    assert (rows["deep/b"]["status"], rows["deep/b"]["reason"], rows["deep/b"]["T0/cider"]) == (
        "failed",
        "no memory",
        None,
    )
    assert rows["c"]["status"] == "failed"
    assert "not JSON" in rows["c"]["reason"]
    assert len({tuple(found) for found in rows.values()}) == 1


def test_collected_csv_reads_back(tmp_path: Path) -> None:
    result_only(tmp_path / "a", metrics={"x": 0.1, "status": 3}, reason='say "no",\nplease')
    result_only(tmp_path / "b", metrics={"y": float("nan")})
    path = write_csv(collect([tmp_path]), tmp_path / "out" / "runs.csv")
    with open(path, newline="") as file:
        first, second = csv.DictReader(file)
    assert (float(first["x"]), first["reason"], first["status"], first["metric.status"]) == (
        0.1,
        'say "no",\nplease',
        "ok",
        "3.0",
    )
    assert (second["y"], second["x"]) == ("", "")


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    result_only(tmp_path / "a")
    assert len(collect([tmp_path, tmp_path / "a", tmp_path / "." / "a"])) == 1


def test_runs_of_the_same_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert run_names(folders) == ["x/run", "y/run"]


def test_page_of_several_runs_overlays_them_and_lists_the_failed_one(tmp_path: Path) -> None:
    for seed, encoder in enumerate(("vit", "noise")):
        make_run(tmp_path / f"_{encoder}", seed=seed, encoder=encoder, layers=3, epochs=2, samples=0)
    result_only(tmp_path / "lost", status="failed", reason="killed <b>for</b> memory", command="python train.py x=1")
    target = write_report([tmp_path])
    page = target.read_text(encoding="utf-8")
    assert target == tmp_path / "report.html"
    assert page.count("<svg ") == 4 and "needs three runs" in page
    assert "killed &lt;b&gt;for&lt;/b&gt; memory" in page
    assert "encoder.<wbr>name" in page
    assert "python train.py x=1" in page
    assert (tmp_path / "runs.csv").read_text().count("\n") == 4
    curves = (tmp_path / "figures" / "compare_ima_by_layer.csv").read_text()
    assert curves.count("_vit,") == curves.count("_noise,") == 4
    assert " _vit" in (tmp_path / "figures" / "compare_ima_by_layer.svg").read_text()


def test_many_runs_are_listed_without_reading_their_rows(tmp_path: Path) -> None:
    for index in range(40):
        folder = result_only(
            tmp_path / f"run{index}", metrics={"ima/mean": index / 40, "T0/cider": index / 10}, config={"seed": index}
        )
        (folder / "rows.jsonl").write_text("{broken\n")
    page = write_page([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.partition('id="runs"')[2].partition("</table>")[0].count("<tr>") == 41
    assert "give fewer folders" in page
    assert "n = 40" in page
    assert "broken line" not in page


def test_runs_that_failed_before_anything_give_a_page(tmp_path: Path) -> None:
    for name in "ab":
        result_only(tmp_path / name, status="failed", reason="bad config")
    page = write_report([tmp_path]).read_text(encoding="utf-8")
    assert page.count("bad config") == 2


def test_details_are_read_for_few_runs_only(tmp_path: Path) -> None:
    make_run(tmp_path / "a", layers=1, epochs=1, samples=1)
    make_run(tmp_path / "b", layers=1, epochs=1, samples=1)
    assert all(run.rows and run.samples for run in load_runs([tmp_path], max_detailed=2))
    assert not any(run.rows or run.samples for run in load_runs([tmp_path], max_detailed=1))


def test_of_two_rows_for_one_point_the_later_wins_as_after_a_resume() -> None:
    common = {"role_b": "T", "layer_b": 1, "epoch": 1, "variant": "raw"}
    assert by_layer([row("sim", 0.1, **common), row("sim", 0.2, **common)], "sim")[1].y == [0.2]


def test_curves_of_two_datasets_are_not_mixed() -> None:
    rows = [row("sim", 0.1, dataset_a="x", layer_b=layer, role_b="T", epoch=0) for layer in (0, 1)]
    rows.append(row("sim", 0.9, dataset_a="y", layer_b=1, role_b="T", epoch=0))
    assert by_layer(alignment_rows(rows), "sim")[0].y == [0.1, 0.1]


def test_text_role_falls_back_to_the_answer() -> None:
    assert by_layer([row("sim", 0.3, role_b="T.answer", layer_b=1, epoch=0)], "sim")[0].y == [0.3]


@pytest.mark.parametrize("first", [0, 1])
def test_validation_lands_on_the_last_step_of_its_epoch(first: int) -> None:
    rows = [row("train_loss", 1.0, step=step, epoch=first + step // 10) for step in range(20)]
    rows += [row("val_loss", 1.0, epoch=epoch) for epoch in (0, 1, 2)]
    assert training(rows)["val"].x == [0, 9, 19]


def test_loss_that_was_not_finite_leaves_a_gap() -> None:
    rows = [row("train_loss", value, step=step) for step, value in enumerate((1.0, None, 2.0))]
    found = training(rows)["train"]
    assert found.x == [0, 1, 2]
    assert [str(value) for value in found.y] == ["1.0", "nan", "2.0"]


def test_the_table_is_the_same_as_csv_and_parquet_and_needs_no_torch(tmp_path: Path) -> None:
    result_only(tmp_path / "a", metrics={"x": 0.1, "n": 3}, config={"seed": 1, "on": True, "mixed": 2})
    result_only(tmp_path / "b", metrics={"x": None}, config={"seed": 2, "on": False, "mixed": "two"}, status="failed")
    code = (
        "import sys\nfrom ima.cli.collect import main\n"
        f"code = main([{str(tmp_path)!r}, '--out', {str(tmp_path / 'out.csv')!r}])\n"
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [list(row) for row in rows] == [list(row) for row in table] and len(rows) == 2
    assert [row["x"] for row in table] == [0.1, None] and [row["config.on"] for row in table] == [True, False]
    assert [row["config.mixed"] for row in table] == ["2", "two"] and [row["config.seed"] for row in table] == [1, 2]
    for line, row in zip(rows, table, strict=True):
        for name, cell in line.items():
            value = row[name]
            same = (cell == "" and value is None) or cell == str(value)
            assert same or float(cell) == value, name


def test_a_table_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no result.json" in capsys.readouterr().err
