"""The mirror of whole runs: offline, at a server, killed; and that nothing needs a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launcher import ROOT, Launcher
from test_training import CACHED, NOISE
from wandb_runs import (
    assert_mirrored,
    assert_points,
    assert_sent,
    exit_codes,
    fragments,
    header,
    history,
    records,
    sent_artifact,
    until,
)
from wandb_server import WandbServer, wandb_server

from ima.pipeline.loggers.wandb_charts import BY_LAYER, PREDICTIONS
from ima.runs.record import read_result
from ima.runs.results import read_rows

MIRRORED = [item for item in NOISE if item != "logger=none"] + ["trainer.max_epochs=2", "evaluation.num_generated=3"]
# Machines that are busy may take long to say goodbye to W&B; how long a run waits for that is not the question here.
PATIENT = [*MIRRORED, "logger=offline", "logger.wait_seconds=100"]
ONLINE = [*MIRRORED, "logger=wandb", "logger.wait_seconds=100"]
QUICK = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.2"}
REFUSE = "training_faults.refuse_the_network"


@pytest.mark.processes
def test_an_offline_run_holds_what_the_rows_hold_also_when_it_was_killed(launcher: Launcher, tmp_path: Path) -> None:
    argv = [*PATIENT, f"output_dir={tmp_path}", "name=run"]
    env = {"MIRROR": str(tmp_path / "run" / "wandb" / "mirror.json")}
    killed = launcher.run("train", argv, env=env, patch="training_faults.die_when_mirrored")
    assert killed.code == -9
    done = launcher.run("train", argv, patch=REFUSE)
    assert done.code == 0 and done.stderr == "", done.stderr
    assert len(fragments(tmp_path / "run")) == 2
    assert_mirrored(tmp_path / "run")
    assert read_result(tmp_path / "run")["wandb"]["mode"] == "offline"


@pytest.mark.processes
def test_a_run_that_fails_is_a_failed_one_in_its_group_and_an_evaluation_is_mirrored(
    launcher: Launcher, tmp_path: Path
) -> None:
    argv = [*PATIENT, f"output_dir={tmp_path}", "name=run"]
    env = {"WANDB_RUN_GROUP": "a-sweep"}  # as a sweep gives it to its jobs
    failed = launcher.run("train", argv, env=env, patch="training_faults.fail_at_step_6")
    assert failed.code == 1
    assert launcher.run("train", argv, env=env).code == 0
    first, last = (records(run) for run in fragments(tmp_path / "run"))
    assert exit_codes(first) == [1] and exit_codes(last) == [0]
    assert (header(first)["run_group"], header(first)["job_type"]) == ("a-sweep", "train")
    measure = [f"checkpoint={tmp_path / 'run'}", f"output_dir={tmp_path}", "name=measured", *PATIENT[-2:]]
    skip = ["intervention=skip_ffn", "intervention.skip_ffn.start=1"]
    assert launcher.run("evaluate", [*measure, *skip], env=env).code == 0
    (run,) = fragments(tmp_path / "measured")
    found = records(run)
    assert (header(found)["run_group"], header(found)["job_type"]) == ("a-sweep", "evaluate")
    assert_points(history(found), list(read_rows(tmp_path / "measured" / "rows.jsonl")))
    kept = {key for one in found if one["type"] == "summary" for key in one["summary"].get("update", {})}
    assert {"plan/flops_prefill_left", "plan/seconds_left", "T0/noun_accuracy"} <= kept


@pytest.mark.processes
def test_an_offline_mixture_holds_the_curves_of_every_entry(launcher: Launcher, tmp_path: Path) -> None:
    shapes = "{_target_: ima.config.settings.Entry, " \
             "data: {_target_: ima.data.shapes.Shapes, num_train: 8, num_test: 4}, " \
             "task: {_target_: ima.tasks.caption.CaptionTask, max_new_tokens: 3}}"  # fmt: skip
    argv = [*PATIENT, f"mixture={{a: {shapes}, b: {shapes}}}", f"output_dir={tmp_path}", "name=run"]
    done = launcher.run("train", argv, patch=REFUSE)
    assert done.code == 0, done.stderr
    (run,) = fragments(tmp_path / "run")
    points = history(records(run))
    assert_points(points, list(read_rows(tmp_path / "run" / "rows.jsonl")), mixture=True)
    (drawn,) = [item[f"{BY_LAYER}_table.path"] for item in points if f"{BY_LAYER}_table.path" in item]
    data = json.loads((run / "files" / drawn).read_text())["data"]
    assert {cells[0] for cells in data} == {f"{entry}, epoch {epoch}" for entry in "ab" for epoch in range(3)}


@pytest.mark.processes
def test_a_server_has_the_layers_of_an_epoch_before_the_next_one_and_everything_at_the_end(
    launcher: Launcher, tmp_path: Path
) -> None:
    """An epoch begins only when the server has seen the one before. The server is on this machine, other names cannot
    be resolved."""
    argv = [*ONLINE, f"output_dir={tmp_path}", "name=run", "logger.tags=[a,b]", "logger.notes=mine"]
    seen = tmp_path / "seen"
    with wandb_server() as server:
        watch_epochs(server, seen)
        env = server.env | QUICK | {"WANDB_MODE": "", "SEEN": str(seen), "WANDB_PROJECT": "p", "WANDB_ENTITY": "me"}
        done = launcher.run("train", argv, env=env, report=True, patch="training_faults.wait_for_the_epoch_before")
        assert done.code == 0 and done.stderr == "", done.stderr
        (run,) = server.runs
        known = server.runs[run]
        assert (known["project"], known["entity"], known["displayName"]) == ("p", "me", "run")
        assert (known["jobType"], known["tags"], known["notes"]) == ("train", ["a", "b"], "mine")
        assert_sent(server, tmp_path / "run", run)
        artifact = sent_artifact(server, run)
        assert "adapter.safetensors" in server.manifest(artifact) and "report.html" in server.manifest(artifact)
        assert [name for name in server.committed() if PREDICTIONS in name]
        assert not server.events, "system metrics are off"
    told = read_result(tmp_path / "run")["wandb"]
    assert told == {"id": run, "mode": "online", "url": f"{server.url}/me/p/runs/{run}"}
    assert done.stdout.splitlines()[-1] == f"W&B: {told['url']}"


def watch_epochs(server: WandbServer, path: Path) -> None:
    """Writes into a file which epochs' layers have arrived."""

    def watch() -> None:
        while not path.parent.joinpath("stop").exists():
            with server.lock:
                points = [point for _, _, point in server.arrived]
            epochs = {point["epoch"] for point in points if any(key.startswith("ima_layer/") for key in point)}
            path.write_text(" ".join(map(str, sorted(epochs))))
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.processes
def test_a_run_that_is_told_to_end_does_not_wait_for_wandb(launcher: Launcher, tmp_path: Path) -> None:
    """SIGTERM while the server hangs; the mirror of the run ends by itself."""
    argv = [*ONLINE, f"output_dir={tmp_path}", "name=run"]
    with wandb_server() as server:
        env = server.env | {"SEEN": str(tmp_path / "seen")}
        started = launcher.start("train", argv, env=env, patch="training_faults.wait_for_the_epoch_before")
        state = tmp_path / "run" / "wandb" / "mirror.json"
        until(lambda: state.is_file() and "ima_layer" in state.read_text())
        with server.lock:  # nobody is answered; a run that waits for that is killed after two minutes
            os.kill(started.pid, signal.SIGTERM)
            (tmp_path / "seen").write_text("0 1 2")
            assert started.wait() not in (0, -999)
        until(lambda: list(server.exit_codes.values()) == [1])
    assert read_result(tmp_path / "run")["status"] == "interrupted"


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
    argv += ["trainer.max_epochs=1", "data.num_train=8", "data.num_test=2"]
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
