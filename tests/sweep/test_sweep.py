"""Sweeps: what is run, skipped, run again, ended, and what is left behind. Jobs are a script of a few lines in place
of train.py, which keeps these tests at the speed of starting a process; one marked `real` runs true trainings."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from ima.cli import sweep as sweep_command
from ima.cli.sweep import plan
from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.sweep import job as job_module
from ima.sweep import pool
from ima.sweep.job import Job, last_words, quoted
from ima.sweep.process import command_of
from ima.sweep.table import aligned, short_table
from ima.sweep.view import View, last_epoch, seconds_left

ROOT = Path(__file__).resolve().parents[2]
PLAN = "plan.json"  # beside the run folders: what the fake training does, by seed
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
given = {name: value.strip("'") for name, value in (text.split("=", 1) for text in sys.argv[1:])}
root = Path(given["output_dir"])
folder = root / given["name"]
folder.mkdir(parents=True, exist_ok=True)
plan = json.loads((root / "plan.json").read_text()) if (root / "plan.json").exists() else {}
what = plan.get(given["seed"], "ok")
calls = root / "calls"
calls.mkdir(exist_ok=True)
mark = calls / f"{given['seed']}-{os.getpid()}"
started = time.time()
result = {"config": {"seed": int(given["seed"])}, "config_hash": folder.name, "status": "running",
          "metrics": {}, "wall_seconds": 1.0, "git": {}, "versions": {}}
write = lambda **more: (folder / "result.json").write_text(json.dumps(result | more))
if what == "refused":
    sys.exit("error: encoder.checkpoint: x.pth does not exist")
if what == "traceback":
    raise ValueError("shapes differ")
if what == "killed":
    write()
    os.kill(os.getpid(), signal.SIGKILL)
if what == "told":
    write(status="failed", reason="UserError: the disk is full")
    sys.exit(2)
if what == "silent":
    sys.exit(0)
if what == "long":
    write()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        write(status="interrupted", reason="KeyboardInterrupt")
        sys.exit(130)
time.sleep(0.2 if what == "slow" else 0)
accuracy = 0.5 + int(given["seed"]) / 100
write(status="ok", metrics={"T0/noun_accuracy": accuracy, "T0/noun_accuracy/low": accuracy - 0.1,
      "T0/noun_accuracy/high": accuracy + 0.1, "blind/noun_accuracy": 0.0, "ima": 0.3})
mark.write_text(f"{started} {time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Output folder of sweeps whose jobs run FAKE; no page is drawn."""
    script = tmp_path / "train.py"
    script.write_text(FAKE)
    monkeypatch.setattr(job_module, "SCRIPTS", tmp_path)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)
    monkeypatch.setattr("ima.sweep.run.page", lambda folder, jobs: None)
    return tmp_path / "out put"  # with a space: paths travel through the override grammar


def sweep(out: Path, num: int = 3, plan: dict[str, str] | None = None, *more: str) -> int:
    out.mkdir(parents=True, exist_ok=True)
    (out / PLAN).write_text(json.dumps(plan or {}))
    seeds = ",".join(str(seed) for seed in range(num))
    return run([f"seed={seeds}", *more], out)


def run(arguments: list[str], out: Path) -> int:
    return sweep_command.main(["llm=tiny", *arguments, "name=s", f"output_dir={quoted(str(out))}"])


def first_job(arguments: list[str], out: Path) -> Job:
    return plan(["llm=tiny", *arguments, "name=s", f"output_dir={quoted(str(out))}"])[1][0]


def calls(out: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (out / "calls").glob("*"))


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "s" / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_job_runs_once_in_its_own_folder_and_is_a_row(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(fake) == 0
    assert calls(fake) == ["0", "1", "2"]
    rows = table(fake)
    assert sorted(row["config.seed"] for row in rows) == ["0", "1", "2"] and {row["status"] for row in rows} == {"ok"}
    assert len({row["folder"] for row in rows}) == 3
    out = capsys.readouterr().out
    assert "0.520 [0.420, 0.620]" in out and "blind" not in out and out.count("ok: seed=") == 3


def test_finished_jobs_are_skipped_and_no_row_comes_twice(fake: Path) -> None:
    assert sweep(fake, 2) == 0
    assert sweep(fake, 3) == 0
    assert calls(fake) == ["0", "1", "2"] and len(table(fake)) == 3


def test_equal_jobs_of_a_grid_run_once(fake: Path) -> None:
    fake.mkdir()
    assert run(["seed=1,1"], fake) == 0
    assert calls(fake) == ["1"] and len(table(fake)) == 1


def test_overwrite_runs_finished_jobs_again(fake: Path) -> None:
    assert sweep(fake, 2) == 0
    assert sweep(fake, 2, None, "overwrite=true") == 0
    assert calls(fake) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("refused", "encoder.checkpoint: x.pth does not exist"),
        ("traceback", "ValueError: shapes differ"),
        ("killed", "killed by SIGKILL (out of memory?)"),
        ("told", "UserError: the disk is full"),
        ("silent", "ended without a result"),
    ],
)
def test_a_job_that_fails_is_a_row_with_its_reason_and_runs_again(
    fake: Path, what: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(fake, 2, {"1": what}) == 1
    failed = [row for row in table(fake) if row["status"] == "failed"]
    assert [row["reason"] for row in failed] == [reason] and failed[0]["config.seed"] == "1"
    assert f"failed: {reason}" in capsys.readouterr().out
    assert sweep(fake, 2) == 0
    assert calls(fake) == ["0", "1"] and [row["status"] for row in table(fake)] == ["ok", "ok"]


def test_an_old_reason_is_not_told_for_a_new_failure(fake: Path) -> None:
    assert sweep(fake, 2, {"1": "told"}) == 1
    assert sweep(fake, 2, {"1": "refused"}) == 1
    assert next(row["reason"] for row in table(fake) if row["status"] == "failed").startswith("encoder.checkpoint")


def test_a_first_failure_stops_the_sweep_where_that_is_asked(fake: Path) -> None:
    assert sweep(fake, 4, {"0": "refused"}, "keep_going=false") == 1
    assert not (fake / "calls").exists() or calls(fake) == []
    assert len(table(fake)) == 1


def test_no_more_than_the_allowed_number_runs_at_once(fake: Path) -> None:
    assert sweep(fake, 6, {str(seed): "slow" for seed in range(6)}, "num_parallel=2") == 0
    spans = [tuple(map(float, path.read_text().split()[:2])) for path in (fake / "calls").glob("*")]
    together = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert len(spans) == 6 and max(together) == 2


def test_parallel_jobs_take_the_gpus_in_turn(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert sweep(fake, 2, {"0": "slow", "1": "slow"}, "num_parallel=2") == 0
    assert sorted(path.read_text().split()[2] for path in (fake / "calls").glob("*")) == ["4", "7"]


def test_a_folder_that_another_process_writes_is_waited_for(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ELSEWHERE_SECONDS", 0.05)
    folder = first_job(["seed=0,1"], fake).folder
    folder.mkdir(parents=True)
    lock, jobs = FileLock(folder / "lock"), []
    with lock:
        original = pool.Pool.postpone

        def postpone(self: pool.Pool, job: Job) -> None:
            original(self, job)
            jobs.append(job)
            if len(jobs) == 3:  # the other process ends with a result
                (folder / "result.json").write_text(json.dumps({"status": "ok", "config_hash": folder.name}))
                lock.release()

        monkeypatch.setattr(pool.Pool, "postpone", postpone)
        assert run(["seed=0,1"], fake) == 0
    assert calls(fake) == ["1"] and jobs[0].state == "finished" and len(table(fake)) == 2


def test_a_foreign_result_is_left_alone(fake: Path) -> None:
    folder = first_job(["seed=0,1"], fake).folder
    folder.mkdir(parents=True)
    text = json.dumps({"status": "ok", "config_hash": "of another run"})
    (folder / "result.json").write_text(text)
    (fake / PLAN).write_text(json.dumps({"0": "refused"}))
    assert run(["seed=0,1"], fake) == 1
    assert (folder / "result.json").read_text() == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_jobs_and_goes_on_later(fake: Path, number: signal.Signals) -> None:
    """In a process of its own, as a person would: signal, exit code 130, no job left, then the same command again."""
    fake.mkdir(parents=True)
    (fake / PLAN).write_text(json.dumps({"1": "long"}))
    code = f"""
        import signal, sys
        from pathlib import Path
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import ima.sweep.run, ima.sweep.job as job_module
        from ima.cli.sweep import main
        job_module.SCRIPTS = Path({str(fake.parent)!r})
        ima.sweep.run.page = lambda folder, jobs: None
        sys.exit(main(["llm=tiny", "seed=0,1,2", "name=s", "output_dir='{fake}'"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not (running := [p for p in fake.glob("s/*/result.json") if "running" in p.read_text()]):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out.decode() and "goes on" in err.decode()
    assert json.loads(running[0].read_text())["status"] == "interrupted"
    assert sorted(row["status"] for row in table(fake)) == ["interrupted", "ok"]
    assert sweep(fake) == 0
    assert calls(fake) == ["0", "1", "2"]


def test_the_parent_imports_no_torch() -> None:
    code = "import sys, ima.sweep.run, ima.cli.sweep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ}).returncode == 0


def test_the_reason_is_the_last_error_line_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("--- seed=1\nValueError: old\n--- seed=1\nepoch 1: 10%\repoch 1: 20%\nKeyError: 'x'\nbye\n")
    assert last_words(log) == "KeyError: 'x'"
    log.write_text("--- seed=1\nepoch 1: 10%\repoch 1: 20%\n")
    assert last_words(log) == "epoch 1: 20%"
    log.write_text("--- seed=1\n")
    assert last_words(log) == ""


@pytest.mark.parametrize("text", ["plain/name-1.x", "with space", "a,b", "it's", "back\\slash", "a=b", "{x}", "[1]"])
def test_quoted_values_come_back_as_they_were(text: str) -> None:
    from ima.config.compose import PARSER

    assert str(PARSER.parse_override(f"name={quoted(text)}").value()) == text


def test_progress_and_time_left_come_from_the_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert last_epoch(rows) is None
    rows.write_text("".join(json.dumps({"epoch": epoch, "pad": "x" * 3000}) + "\n" for epoch in range(4)) + '{"epo')
    assert last_epoch(rows) == 3
    job = Job([], "h", {"seed": "1"}, tmp_path, tmp_path / "log.txt", num_epochs=6)
    assert seconds_left(job, 0.0) is None
    job.first, job.latest = (100.0, 1), (120.0, 3)
    assert seconds_left(job, 125.0) == pytest.approx(25.0)
    assert seconds_left(job, 300.0) == 0.0


def test_the_live_table_shows_reasons_and_cuts_long_sweeps(tmp_path: Path) -> None:
    from rich.console import Console

    jobs = [Job([], str(k), {"seed": str(k)}, tmp_path / str(k), tmp_path / "log.txt") for k in range(60)]
    jobs[40].state, jobs[40].reason = "failed", "killed by SIGKILL [now]"
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(View(jobs).table())
    text = console.export_text()
    assert "59 waiting" in text and "failed: killed by SIGKILL [now]" in text and "36 more" in text


def test_the_printed_table_has_a_cell_for_every_column(tmp_path: Path) -> None:
    jobs = [Job([], str(k), {"seed": str(k)}, tmp_path / str(k), tmp_path / "log.txt") for k in range(2)]
    rows = short_table(jobs)
    assert rows[0] == ["seed", "state", "time"] and {len(row) for row in rows} == {3}
    assert len(aligned(rows)) == 3


@pytest.mark.processes
def test_a_real_sweep_of_a_tiny_training(tmp_path: Path) -> None:
    """A true training through train.py: table, page and exit code, then a second call that skips it."""
    small = ["llm=tiny", "data=shapes", "encoder=noise", "encoder.num_tokens=4", "encoder.dim=8", "logger=none",
             "trainer.max_epochs=1", "data.num_train=16", "data.num_test=4", "data.size=32",
             "adapter=linear"]  # fmt: skip
    command = [sys.executable, "sweep.py", *small, "params.seed=[3]", "name=tiny", f"output_dir='{tmp_path}/a b'"]
    environment = {**os.environ, "IMA_CACHE": str(tmp_path / "cache")}
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "a b" / "tiny"
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [(row["status"], row["config.seed"]) for row in rows] == [("ok", "3")]
    assert "<html" in (folder / "report.html").read_text()
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0 and second.stdout.count("finished before: seed=3") == 1


def test_a_sweep_of_evaluations_varies_the_plan_of_one_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = OmegaConf.to_container(compose(["experiment=smoke", "logger=none"], "train"))
    write_json(run / "result.json", {"status": "ok", "config": config})
    given = ["script=evaluate", f"checkpoint={run}", "intervention=[skip_ffn]", "intervention.skip_ffn.start=1"]
    _, jobs, _ = plan([*given, "intervention.skip_ffn.ratio=0.5,1.0"])
    assert [job.varied for job in jobs] == [{"intervention.skip_ffn.ratio": ratio} for ratio in ("0.5", "1.0")]
    assert len({job.hash for job in jobs}) == 2
    for job in jobs:
        assert Path(command_of(job, "s", "out")[1]).name == "evaluate.py"
    with pytest.raises(UserError, match="resume: no 'resume'"):
        plan([*given, "resume=never", "seed=0,1"])
