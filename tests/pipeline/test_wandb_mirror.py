"""The mirror alone, beside a run that is played: what it sends, as what, and that no accident of it reaches the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run
from wandb_runs import assert_mirrored, assert_sent, fragments, header, records, sent_artifact, until
from wandb_server import KEY, WandbServer, wandb_server

from ima.cli.wandb_workspace import main
from ima.core.files import write_json
from ima.pipeline.loggers import wandb as module
from ima.pipeline.loggers.wandb import WandbMirror
from ima.pipeline.loggers.wandb_charts import PREDICTIONS
from ima.runs.record import read_result

pytestmark = pytest.mark.processes
QUICK = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.2"}
PATIENCE = 100.0  # of a busy machine; how long a run waits is not the question here


class Played:
    """A run of two epochs whose rows are written in two halves."""

    def __init__(self, folder: Path) -> None:
        make_run(folder, layers=3, epochs=2, samples=4)
        self.folder, self.path = folder, folder / "rows.jsonl"
        self.lines = self.path.read_text().splitlines(keepends=True)
        self.path.write_text("")

    @property
    def state(self) -> Path:
        return self.folder / "wandb" / "mirror.json"

    def start(self, **keys: Any) -> WandbMirror:
        config = read_result(self.folder)["config"]
        return WandbMirror(self.folder, config, **({"wait_seconds": PATIENCE} | keys))

    def half(self) -> None:
        """Rows up to the first epoch's alignment."""
        self.path.write_text("".join(self.lines[: len(self.lines) * 2 // 3]))

    def whole(self) -> None:
        with open(self.path, "a") as file:
            file.write("".join(self.lines[len(self.lines) * 2 // 3 :]))

    def until_sent(self) -> None:
        until(lambda: self.state.is_file() and "ima_layer" in self.state.read_text(), PATIENCE)

    def end(self, mirror: WandbMirror) -> dict[str, Any]:
        mirror.finish({})
        return module.close(self.folder)


@pytest.fixture
def run(tmp_path: Path) -> Played:
    return Played(tmp_path / "run")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as server:
        for name, value in (server.env | QUICK).items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_resumed_run_is_one_run_each_point_once(run: Played, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where rows are written again that were sent already: the checkpoint was older than they."""
    mirror = run.start()
    run.half()
    run.until_sent()
    mirror.finish(failed=True)
    until(lambda: mirror.ended.is_set())
    mirror = run.start()
    run.whole()
    told = run.end(mirror)
    assert len(fragments(run.folder)) == 2
    assert_mirrored(run.folder)
    assert told["mode"] == "offline" and told["id"] == header(records(fragments(run.folder)[0]))["run_id"]
    assert capsys.readouterr().err == ""


def test_a_server_sees_points_while_the_run_goes_on_and_everything_at_its_end(
    run: Played, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "p")
    mirror = run.start(mode="online", tags=["a", "b"], notes="mine", group="g")
    run.half()
    until(lambda: any(key.startswith("ima_layer/") for _, _, point in server.arrived for key in point), PATIENCE)
    (name,) = server.runs
    known = server.runs[name]
    assert (known["project"], known["displayName"], known["groupName"]) == ("p", "run", "g")
    assert (known["jobType"], known["tags"], known["notes"]) == ("train", ["a", "b"], "mine")
    run.whole()
    (run.folder / "report.html").write_text("page")
    assert run.end(mirror) == {"id": name, "mode": "online", "url": f"{server.url}/me/p/runs/{name}"}
    until(lambda: name in server.exit_codes)
    assert_sent(server, run.folder, name)
    assert "report.html" in server.manifest(sent_artifact(server, name))
    assert [each for each in server.committed() if PREDICTIONS in each] and not server.events
    metrics = json.loads(server.runs[name]["config"])["_wandb"]["value"]["m"]
    assert metrics, "no axis was defined"


def test_a_killed_run_goes_on_as_the_same_one_at_the_server_and_a_failure_raises_an_alert(
    run: Played, server: WandbServer
) -> None:
    keys = {"mode": "online", "artifacts": False, "system_metrics": True}
    mirror = run.start(**keys)
    run.half()
    run.until_sent()
    mirror.finish(failed=True, reason="RuntimeError: the plug was pulled")
    until(lambda: list(server.exit_codes.values()) == [1])
    assert "the plug was pulled" in json.dumps(server.alerts)
    mirror = run.start(**keys)
    run.whole()
    (run.folder / "adapter.safetensors").write_text("weights")
    told = run.end(mirror)
    assert list(server.runs) == [told["id"]]
    until(lambda: server.exit_codes[told["id"]] == 0)
    assert_sent(server, run.folder, told["id"])
    assert "adapter.safetensors" not in server.manifest(sent_artifact(server, told["id"]))
    assert server.events[told["id"]] > 0, "system metrics are on"


def test_a_run_folder_that_was_copied_elsewhere_is_sent_whole(
    run: Played, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, also where it is asked for twice; also one that was never mirrored, and one that was cut off."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirror = run.start()
    run.half()
    run.whole()
    run.end(mirror)
    monkeypatch.setenv("WANDB_MODE", "online")
    copied, bare = run.folder.parent / "b" / "copied", run.folder.parent / "bare"
    shutil.copytree(run.folder, copied)
    shutil.copytree(run.folder, bare, ignore=shutil.ignore_patterns("wandb"))
    shutil.rmtree(run.folder)
    for _ in range(2):
        assert main(["sync", str(copied.parent)]) == 0
        (name,) = server.runs
        assert_sent(server, copied, name)
    assert main(["sync", str(bare)]) == 0
    (other,) = set(server.runs) - {name}
    assert_sent(server, bare, other)
    state = bare / "wandb" / "mirror.json"
    write_json(state, json.loads(state.read_text()) | {"complete": False})
    assert main(["sync", str(bare)]) == 0
    (whole,) = set(server.runs) - {name, other}
    assert_sent(server, bare, whole)
    assert f"{server.url}/me/ima/runs/{other}" in capsys.readouterr().out


# -- accidents ---------------------------------------------------------------------------------------------------------


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb sync" in line
    return line


@pytest.mark.parametrize("env", [{}, {"WANDB_API_KEY": KEY}], ids=["nokey", "noserver"])
def test_online_without_a_key_or_a_server_is_offline_and_one_line(
    run: Played, env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = {"WANDB_MODE": "online", "HOME": str(run.folder.parent), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    for name, value in (nobody | env).items():
        monkeypatch.setenv(name, value)
    mirror = run.start(mode="online")
    run.half()
    run.whole()
    assert run.end(mirror)["mode"] == "offline"
    assert "W&B online is not there" in one_line(capsys)
    assert_mirrored(run.folder)


def test_a_home_that_cannot_be_written_changes_nothing(
    run: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    mirror = run.start()
    run.half()
    run.whole()
    run.end(mirror)
    assert_mirrored(run.folder)
    assert capsys.readouterr().err == ""


def test_a_service_that_is_killed_costs_one_line(run: Played, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = run.start()
    run.half()
    run.until_sent()
    assert mirror.process is not None
    (service,) = [
        pid for pid in descendants(mirror.process.pid) if "wandb-core" in Path(f"/proc/{pid}/comm").read_text()
    ]
    os.kill(service, signal.SIGKILL)
    run.whole()
    run.end(mirror)
    assert "W&B" in one_line(capsys)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if int(Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(name), *descendants(int(name))]
    return found


@pytest.mark.parametrize("when", ["before", "after", "stopped"])
def test_a_server_that_is_lost_costs_one_line(
    run: Played, when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before or after it has seen a point; or it hangs, and the run waits only as long as it was told to."""
    command = [sys.executable, str(Path(__file__).parents[1] / "wandb_server.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as lost:
        assert lost.stdout is not None
        env = {"WANDB_BASE_URL": lost.stdout.readline().strip(), "WANDB_API_KEY": KEY, "WANDB_MODE": "online"} | QUICK
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        mirror = run.start(mode="online", wait_seconds=2 if when == "stopped" else PATIENCE)
        until(run.state.is_file, PATIENCE)
        if when == "after":
            run.half()
            run.until_sent()
        lost.send_signal(signal.SIGSTOP if when == "stopped" else signal.SIGKILL)
        if when != "after":
            run.half()
        run.whole()
        run.end(mirror)
        lost.kill()
    assert ("is still sending after 2 s" if when == "stopped" else "W&B is lost") in one_line(capsys)
    assert mirror.process is not None
    mirror.process.kill()


def test_a_failed_start_costs_one_line(run: Played, capsys: pytest.CaptureFixture[str]) -> None:
    """A file stands where the mirror has its folder."""
    (run.folder / "wandb").write_text("")
    assert run.end(run.start()) == {}
    assert "cannot be started" in one_line(capsys)


def test_nothing_is_started_where_wandb_is_disabled(run: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    mirror = run.start(mode="online")
    assert mirror.process is None and run.end(mirror) == {} and not (run.folder / "wandb").exists()


def test_the_mirror_of_a_run_that_is_gone_ends_by_itself(run: Played, server: WandbServer) -> None:
    """As a failed run, with the rows that there are."""
    script = (
        "import os, pathlib, sys, time; from ima.pipeline.loggers.wandb import WandbMirror; "
        "folder = pathlib.Path(sys.argv[1]); mirror = WandbMirror(folder, {}, mode='online'); "
        "print('started', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(run.folder)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        run.half()
        run.until_sent()
        parent.kill()
    until(lambda: list(server.exit_codes.values()) == [1])


def test_a_sweep_is_a_group_and_its_jobs_are_called_by_what_varies(tmp_path: Path) -> None:
    run = Played(tmp_path / "grid" / "0123")
    varied = {"intervention.skip_block.ratio": "0.5", "checkpoint": "outputs/demo", "seed": "1"}
    jobs = [{"hash": "0123", "varied": varied, "overrides": []}]
    write_json(tmp_path / "grid" / "sweep.json", {"config": {"name": "grid", "jobs": jobs}})
    mirror = run.start(job_type="evaluate")
    run.end(mirror)
    found = header(records(fragments(run.folder)[0]))
    assert found["run_group"] == "grid" and found["display_name"] == "skip_block.ratio=0.5 checkpoint=demo seed=1"
