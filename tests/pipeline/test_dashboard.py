"""W&B holds what the files hold, and neither it nor anything else needs a network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launcher import ROOT, Launcher
from test_training import CACHED, NOISE

from ima.core.types import Row
from ima.pipeline.loggers.wandb import INIT_SECONDS, TABLE_FIELDS, scalar_name
from ima.runs.record import read_result
from ima.runs.results import read_rows

MIRRORED = [item for item in NOISE if item != "logger=none"] + ["trainer.epochs=2", "trainer.generate_samples=3"]
DRAWN = ["sim", "resid_post", "P", "T", "raw"]
REFUSE = "training_faults.refuse_the_network"


def records(folder: Path) -> list[dict[str, Any]]:
    """The newest offline run as W&B's own reader shows it."""
    run = sorted((folder / "wandb").glob("offline-run-*"))[-1]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def table_rows(folder: Path, found: list[dict[str, Any]]) -> list[list[Any]]:
    """The increments of the table put together, in the order in which they were logged."""
    run = sorted((folder / "wandb").glob("offline-run-*"))[-1]
    paths = [
        record["history"]["item"]["rows.path"]
        for record in found
        if record["type"] == "history" and "rows.path" in record["history"]["item"]
    ]
    tables = [json.loads((run / "files" / path).read_text()) for path in paths]
    assert all(table["columns"] == list(TABLE_FIELDS) for table in tables)
    return [row for table in tables for row in table["data"]]


def number(value: Any) -> Any:
    return None if value == "NaN" or (isinstance(value, float) and math.isnan(value)) else value


def assert_mirrored(folder: Path) -> None:
    found = records(folder)
    rows = list(read_rows(folder / "rows.jsonl"))
    assert [[number(cell) for cell in row] for row in table_rows(folder, found)] == [
        [row[field] for field in TABLE_FIELDS] for row in rows
    ]
    charts = [record["history"]["item"] for record in found if record["type"] == "history"]
    for row in rows:
        name = scalar_name(Row(**row))
        if name is not None:
            points = [
                number(item[name])
                for item in charts
                if name in item and (item.get("epoch"), item["trainer/global_step"]) == (row["epoch"], row["step"])
            ]
            assert points == [row["value"]], (name, row["step"])
    assert_charted(folder, rows, charts)
    summary: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    metrics = read_result(folder)["metrics"]
    assert {name: number(summary.get(name)) for name in metrics} == metrics
    (run,) = (record["run"] for record in found if record["type"] == "run")
    assert run["config"]["update"]["trainer"]["epochs"] == 2
    assert [record["exit"]["exit_code"] for record in found if record["type"] == "exit"] == [0]


def assert_charted(folder: Path, rows: list[dict[str, Any]], charts: list[dict[str, Any]]) -> None:
    """The last chart of the similarity has every epoch's values by layer; the map of layers and epochs is a picture."""
    run = sorted((folder / "wandb").glob("offline-run-*"))[-1]
    path = [item["charts/sim_table.path"] for item in charts if "charts/sim_table.path" in item][-1]
    drawn = json.loads((run / "files" / path).read_text())
    step, key, value = (drawn["columns"].index(name) for name in ("step", "lineKey", "lineVal"))
    wanted = {
        (row["layer_a"], f"epoch {row['epoch']}"): row["value"]
        for row in rows
        if (row["score"], row["site"], row["role_a"], row["role_b"], row["variant"])
        == ("sim", "resid_post", "P", "T", "raw")
    }
    assert {(cell[step], cell[key]): number(cell[value]) for cell in drawn["data"]} == wanted
    (picture,) = [item["charts/ima_heatmap.path"] for item in charts if "charts/ima_heatmap.path" in item]
    assert (run / "files" / picture).stat().st_size > 0


@pytest.mark.processes
def test_an_offline_run_holds_what_the_rows_hold_also_when_it_was_killed(launcher: Launcher, tmp_path: Path) -> None:
    argv = [*MIRRORED, "logger=offline", f"output_dir={tmp_path}", "name=run"]
    killed = launcher.run("train", argv, die="ima.pipeline.callbacks.StepRecorder.on_train_batch_end", call=6)
    assert killed.code == -9
    done = launcher.run("train", argv, patch=REFUSE)
    assert done.code == 0 and done.stderr == "", done.stderr
    assert_mirrored(tmp_path / "run")


@pytest.mark.processes
def test_a_run_that_fails_is_a_failed_one_in_its_group_and_an_evaluation_is_mirrored(
    launcher: Launcher, tmp_path: Path
) -> None:
    argv = [*MIRRORED, "logger=offline", f"output_dir={tmp_path}", "name=run"]
    env = {"WANDB_RUN_GROUP": "a-sweep"}  # as a sweep gives it to its jobs
    failed = launcher.run("train", argv, env=env, patch="training_faults.fail_at_step_6")
    assert failed.code == 1
    found = records(tmp_path / "run")
    assert [record["exit"]["exit_code"] for record in found if record["type"] == "exit"] == [1]
    (run,) = (record["run"] for record in found if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("a-sweep", "train")
    assert launcher.run("train", argv, env=env).code == 0
    measure = [f"checkpoint={tmp_path / 'run'}", f"output_dir={tmp_path}", "name=measured", "logger=offline"]
    assert launcher.run("evaluate", measure, env=env).code == 0
    found = records(tmp_path / "measured")
    (run,) = (record["run"] for record in found if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("a-sweep", "evaluate")
    rows = list(read_rows(tmp_path / "measured" / "rows.jsonl"))
    assert [[number(cell) for cell in row[:3]] for row in table_rows(tmp_path / "measured", found)] == [
        [row[field] for field in TABLE_FIELDS[:3]] for row in rows
    ]


@pytest.mark.processes
def test_an_offline_mixture_holds_the_curves_of_every_entry(launcher: Launcher, tmp_path: Path) -> None:
    shapes = "{_target_: ima.config.settings.Entry, " \
             "data: {_target_: ima.data.shapes.Shapes, num_train: 8, num_test: 4}, " \
             "task: {_target_: ima.tasks.caption.CaptionTask, max_new_tokens: 3}}"  # fmt: skip
    argv = [*MIRRORED, f"mixture={{a: {shapes}, b: {shapes}}}", "logger=offline", f"output_dir={tmp_path}", "name=run"]
    done = launcher.run("train", argv, patch=REFUSE)
    assert done.code == 0, done.stderr
    charts = [record["history"]["item"] for record in records(tmp_path / "run") if record["type"] == "history"]
    for row in read_rows(tmp_path / "run" / "rows.jsonl"):
        name = scalar_name(Row(**row), mixture=True)
        if name is not None:
            places = [(item.get("epoch"), item["trainer/global_step"]) for item in charts if name in item]
            values = [number(item[name]) for item in charts if name in item]
            assert dict(zip(places, values, strict=True))[row["epoch"], row["step"]] == row["value"], name
            assert len(set(places)) == len(places), f"{name} was written twice at one step"
    drawn = {key for item in charts for key in item if key.startswith("charts/")}
    assert {f"charts/sim/{entry}_table.path" for entry in "ab"} <= drawn and "charts/ima_heatmap.path" in drawn
    assert not any(key.startswith("charts/sim_table") for key in drawn)


KEY = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567"}


@pytest.mark.processes
@pytest.mark.parametrize("env", [{}, KEY, KEY | {"WANDB_BASE_URL": "http://127.0.0.1:9"}], ids=["nokey", "dns", "port"])
def test_wandb_online_without_a_network_costs_one_line(launcher: Launcher, tmp_path: Path, env: dict[str, str]) -> None:
    argv = [*MIRRORED, "logger=wandb", f"output_dir={tmp_path}", "name=run"]
    done = launcher.run("train", argv, env=env, patch=REFUSE)
    assert done.code == 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "W&B online is not there" in done.stderr
    assert read_result(tmp_path / "run")["wall_seconds"] < INIT_SECONDS, "it was waited for"
    assert_mirrored(tmp_path / "run")


@pytest.mark.processes
def test_scripts_work_with_the_network_refused(launcher: Launcher, tmp_path: Path) -> None:
    """Training from a shell, evaluation, their pages: nobody even asks for a name or a connection, nothing is said on
    stderr."""
    (tmp_path / "sitecustomize.py").write_text("import training_faults\ntraining_faults.refuse_the_network()\n")
    refused = tmp_path / "refused"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HF_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT / "tests"), str(ROOT)])
    seen = {"REFUSED": str(refused), "IMA_CACHE": str(tmp_path / "cache")}
    argv = [*[item for item in CACHED if item != "logger=none"], f"output_dir={tmp_path}", "name=run"]
    argv += ["trainer.epochs=1", "data.num_train=8", "data.num_test=2"]
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    train = subprocess.run(command, capture_output=True, text=True, env=environment | seen, cwd=tmp_path, timeout=300)
    assert train.returncode == 0 and train.stderr == "", train.stderr
    skip = [f"checkpoint={tmp_path / 'run'}", "intervention=skip_ffn", "intervention.skip_ffn.start=1"]
    evaluate = launcher.run("evaluate", skip, env=seen, patch=REFUSE, report=True, cwd=tmp_path)
    assert evaluate.code == 0 and evaluate.stderr == "", evaluate.stderr
    assert not refused.exists(), refused.read_text()
    (evaluated,) = (tmp_path / "run").glob("evaluate-*")
    for folder, stdout in ((tmp_path / "run", train.stdout), (evaluated, evaluate.stdout)):
        assert read_result(folder)["status"] == "ok"
        assert stdout.splitlines()[-1] == f"page: {folder / 'report.html'}" and (folder / "report.html").is_file()
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"sitecustomize.py", "__pycache__", "cache", "run"}, "files outside the run folder and the cache"
