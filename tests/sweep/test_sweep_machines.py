"""Sweeps beyond one process: ranks that must not each run it, workers that share it, workers of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ima.cli import submit
from ima.cli.sweep import plan
from ima.core.errors import UserError
from ima.runs.folders import load_finished_or_clear, refuse_run, refuse_sweep
from ima.sweep.job import Job
from ima.sweep.pool import Pool
from ima.sweep.process import refuse_ranks
from ima.sweep.run import alone_in
from ima.sweep.view import View, total_left

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, False),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # a batch script, before any srun
    ],
)
def test_ranks_that_would_each_run_the_whole_sweep_are_refused(environment: dict[str, str], refused: bool) -> None:
    if not refused:
        return refuse_ranks(environment)
    with pytest.raises(UserError, match="would each run the whole sweep"):
        refuse_ranks(environment)


@pytest.mark.parametrize("script", [["sweep.py"], ["train.py", "--multirun"]])
def test_torchrun_of_a_sweep_is_one_line_and_starts_nothing(tmp_path: Path, script: list[str]) -> None:
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, str(ROOT / script[0]), *script[1:], "llm=tiny", "seed=0,1", f"output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "WORLD_SIZE: 2" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_sweep_goes_into_the_folder_of_a_run_and_no_run_into_that_of_a_sweep(tmp_path: Path) -> None:
    run, sweep = tmp_path / "run", tmp_path / "sweep"
    for folder, name in ((run, "result.json"), (sweep, "sweep.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    refuse_sweep(run)
    refuse_run(sweep)
    with pytest.raises(UserError, match="holds a run"):
        plan(["llm=tiny", "seed=0,1", f"output_dir={tmp_path}", "name=run"])
    with pytest.raises(UserError, match="holds a sweep"):
        load_finished_or_clear(sweep, {"overwrite": True})
    assert [path.name for path in run.iterdir()] == ["result.json"] and (sweep / "sweep.json").is_file()


def test_what_a_killed_sweep_left_half_written_goes_and_nothing_of_the_users(tmp_path: Path) -> None:
    theirs = {"table.csv", ".gitignore", ".git/config", "figures/.notes", ".table.csv.x1", ".env.x1y2abcd.ima-tmp"}
    for name in (".table.csv.x1y2abcd.ima-tmp/table.csv", "figures/.ima.svg.00000000.ima-tmp/ima.svg", *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with alone_in(tmp_path):
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"lock", *theirs}


def test_the_time_left_of_a_sweep_is_that_of_its_waiting_and_running_jobs(tmp_path: Path) -> None:
    jobs = [Job([], str(k), {}, tmp_path, tmp_path) for k in range(5)]
    assert total_left(jobs, 1, 0.0) is None
    jobs[0].state, jobs[0].seconds = "ok", 100.0
    jobs[1].state, jobs[1].started = "running", 50.0
    jobs[2].script = jobs[3].script = "evaluate"
    assert total_left(jobs, 1, 60.0) == pytest.approx(90 + 100 + 100 + 100)  # nothing better is known of evaluations
    jobs[2].state, jobs[2].seconds = "ok", 10.0
    assert total_left(jobs, 1, 60.0) == pytest.approx(90 + 10 + 100)
    assert total_left(jobs, 2, 60.0) == pytest.approx((90 + 10 + 100) / 2)
    jobs[1].num_epochs, jobs[1].first, jobs[1].latest = 4, (50.0, 0), (60.0, 1)
    assert total_left(jobs, 1, 60.0) == pytest.approx(30 + 10 + 100)  # its own pace


def test_workers_of_a_cluster_each_run_the_same_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's own local cluster; the sweep is a script that says that it was called."""
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    script = tmp_path / "sweep.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "Path(f'call-{os.getpid()}').write_text(' '.join(sys.argv[1:]))\nsys.exit(3)\n"
    )
    monkeypatch.setattr(submit, "SCRIPTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    given = ["llm=tiny", "seed=0,1"]
    assert submit.main(["--cluster", "local", "--workers", "2", "--set", "cpus_per_task=1", "--", *given]) == 3
    assert [path.read_text() for path in tmp_path.glob("call-*")] == [" ".join(given)] * 2


def test_a_preempted_worker_goes_back_into_the_queue_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    worker = submit.Worker(["python", str(tmp_path / "sweep.py")], ["seed=0,1"], tmp_path)
    again = worker.checkpoint().function
    assert isinstance(again, submit.Worker) and vars(again) == vars(worker)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--", "llm=tiny", "seed=0"], "nothing to vary"),
        (["--set", "gpus", "--", "llm=tiny", "seed=0,1"], "KEY=VALUE"),
        (["--cluster", "local", "--set", "no_such=1", "--", "llm=tiny", "seed=0,1"], "no_such"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_submitted(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.chdir(tmp_path)
    assert submit.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err


def test_jobs_are_one_group_on_wandb_unless_the_environment_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"name": "encoders", "output_dir": "out", "num_parallel": 1, "keep_going": True}
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert Pool([], config, View([])).environment(0)["WANDB_RUN_GROUP"] == "encoders"
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert Pool([], config, View([])).environment(0)["WANDB_RUN_GROUP"] == "mine"
