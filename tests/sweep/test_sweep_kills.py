"""Sweeps of real (tiny) trainings through sweep.py: killed without warning, out of memory, refused, given again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ima.core.files import TEMPORARY

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.processes
TINY = ["llm=tiny", "data=shapes", "data.num_train=20", "data.num_test=6", "data.size=32", "encoder=noise",
        "encoder.dim=8", "encoder.num_tokens=4", "adapter=linear", "trainer.accelerator=cpu", "loader.batch_size=6",
        "task.max_new_tokens=4", "callbacks.checkpoint.every_num_steps=3", "logger=none"]  # fmt: skip


def start(out: Path, *more: str, cwd: Path = ROOT, python_path: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "IMA_CACHE": str(out.parent / "cache")}
    if python_path:
        environment["PYTHONPATH"] = python_path
    command = [sys.executable, str(ROOT / "sweep.py"), *TINY, "name=s", f"output_dir={out}", *more]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    return out


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "s" / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in out.glob("s/*/result.json")]


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.01)


def child_of(out: Path, folder: Path) -> int:
    """The pid of the process that works in `folder`, by its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"name=s/{folder.name}" in words and f"output_dir={out}" in words:
            return int(path.parent.name)
    raise AssertionError("no process writes there")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the child in /proc")
def test_parent_and_child_killed_in_the_middle_leave_a_sweep_that_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Six jobs; kill -9 of both while the third trains; the same command again; a twin of that job alone."""
    out, twin = tmp_path / "out", tmp_path / "twin"
    grid = ["seed=0,1,2,3,4,5", "trainer.max_epochs=2"]
    sweep = start(out, *grid)

    def third_trains() -> bool:
        folders = [path.parents[1] for path in out.glob("s/*/checkpoints/last.safetensors")]
        running = [f for f in folders if json.loads((f / "result.json").read_text())["status"] == "running"]
        return len(folders) == 3 and len(running) == 1

    wait_for(third_trains, sweep)
    (folder,) = [path.parent for path in out.glob("s/*/result.json") if "running" in path.read_text()[:40]]
    os.kill(sweep.pid, signal.SIGKILL)
    os.kill(child_of(out, folder), signal.SIGKILL)
    sweep.communicate(timeout=60)
    # What a kill in the middle of a write leaves:
    half_written = out / "s" / f".table.csv.abcdefgh{TEMPORARY}" / "table.csv"
    half_written.parent.mkdir()
    half_written.write_text("half a line")
    before = {path: path.stat().st_mtime_ns for path in out.glob("s/*/adapter.safetensors")}
    assert len(before) == 2

    again = start(out, *grid)
    said = finish(again)
    assert again.returncode == 0, said
    assert said.count("finished before: seed=") == 2 and said.count("\n[") + said.startswith("[") == 2 + 4 * 2
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a finished job was run again"
    rows = table(out)
    assert sorted(row["config.seed"] for row in rows) == list("012345") and {row["status"] for row in rows} == {"ok"}
    assert [path for path in out.rglob(".*") if path.name != ".hydra"] == [], "something half written is left"
    seed = json.loads((folder / "result.json").read_text())["config"]["seed"]
    whole = start(twin, f"params.seed=[{seed}]", "trainer.max_epochs=2")
    assert finish(whole) and whole.returncode == 0
    undisturbed = twin / "s" / folder.name
    weights = "adapter.safetensors"
    assert (folder / weights).read_bytes() == (undisturbed / weights).read_bytes(), "not the weights of a whole run"
    assert (folder / "rows.jsonl").read_text() == (undisturbed / "rows.jsonl").read_text()


def test_a_job_that_raises_one_out_of_memory_and_one_refused_are_a_failed_row_each(tmp_path: Path) -> None:
    """The others finish; the exit code says that not all did."""
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'seed=1' in sys.argv:\n"
        "    import ima.runs.results\n"
        "    ima.runs.results.RowWriter.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if 'seed=2' in sys.argv:\n"
        "    import ima.runs.results\n"
        "    def broken(*_): raise RuntimeError('a broken part')\n"
        "    ima.runs.results.RowWriter.write = broken\n"
    )
    out = tmp_path / "out"
    sweep = start(out, "seed=0,1,2,-3", "trainer.max_epochs=1", python_path=f"{faults}{os.pathsep}{ROOT}")
    said = finish(sweep)
    assert sweep.returncode == 1, said
    rows = {row["config.seed"] or "refused": (row["status"], row["reason"]) for row in table(out)}
    assert rows == {
        "0": ("ok", ""),
        "1": ("failed", "killed by SIGKILL (out of memory?)"),
        "2": ("failed", "RuntimeError: a broken part"),
        "refused": ("failed", "seed: -3 is out of range; allowed: 0 to 4294967295"),
    }
    assert said.splitlines()[0].startswith("[1/4] failed: seed=-3"), "the refused one is told first"


def test_evaluations_wait_for_their_training_and_share_its_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    follow = "evaluations=[{epochs:[1,2],overrides:['alignment=default']}]"
    sweep = start(out, "seed=0", "trainer.max_epochs=2", follow)
    said = finish(sweep)
    assert sweep.returncode == 0, said
    found = sorted(results(out), key=lambda result: str(result["facts"].get("evaluated")))
    assert [result["facts"].get("evaluated", "")[-21:] for result in found] == [
        "epoch-001.safetensors", "epoch-002.safetensors", "",
    ]  # fmt: skip
    assert found[1]["metrics"]["val/loss"] == found[2]["metrics"]["val/loss"] != found[0]["metrics"]["val/loss"]
    assert "epoch 1" in (out / "s" / "report.html").read_text()
    assert "status" in (out / "s" / "table.csv").read_text() and (out / "s" / "table.parquet").is_file()
