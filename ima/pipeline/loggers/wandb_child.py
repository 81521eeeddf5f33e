"""The process that tells W&B of a run: it follows the run's `rows.jsonl`, and sends tables and files at its end.

Told by the run (`ima.pipeline.loggers.wandb`) through its input, a JSON object a line: first what is asked, then `end`,
then `close`; answers likewise. Whatever happens here happens to this process alone. What was sent is noted in
`wandb/mirror.json` of the run folder, so that a resumed run goes on as the same run on W&B, each point once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ima.core.files import write_json
from ima.core.network import reach
from ima.pipeline.loggers import wandb_charts
from ima.pipeline.loggers.wandb_points import Points, Tail
from ima.runs.record import read_result

INIT_SECONDS, REACH_SECONDS, LOCK_SECONDS = 20.0, 3.0, 60.0
POLL_SECONDS = 0.5  # how often the rows are looked at
SEND_SECONDS = 5.0  # how often the points go to the server
LAST_SECONDS = 600.0  # for everything that is not sent when the run ends
IDENTITY = ("project", "entity", "group", "job_type", "tags", "notes", "name")


class Channel:
    """The pipes to the run. `told`: what it has said so far; a run that is gone has said `end: failed`."""

    def __init__(self) -> None:
        self.parent, self.rest, self.told = os.getppid(), b"", dict[str, Any]()

    def listen(self, seconds: float) -> None:
        if select.select([0], [], [], seconds)[0]:
            data = os.read(0, 65536)
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                self.told |= json.loads(line)
            if not data:
                self.lost()
        if os.getppid() != self.parent:
            self.lost()

    def lost(self) -> None:
        self.told.setdefault("end", "failed")
        self.told["close"] = True

    def say(self, **words: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(1, json.dumps(words).encode() + b"\n")


class Session:
    """A run on W&B with what is kept of it in the run folder."""

    def __init__(self, asked: Mapping[str, Any], say: Callable[..., None]) -> None:
        self.asked, self.say = asked, say
        self.folder = Path(asked["folder"])
        self.path = self.folder / "wandb" / "mirror.json"
        self.record = read_result(self.folder)
        self.config: dict[str, Any] = self.record.get("config") or {}
        self.mixture = bool(self.config.get("mixture"))
        self.kept: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self.kept = dict(json.loads(self.path.read_text(encoding="utf-8")))
        self.mode, self.step = "", 0
        self.run: Any = None
        self.defined: set[str] = set()
        alignment = self.config.get("alignment") or {}
        self.axis = "trainer/global_step" if alignment.get("every_num_steps") else "epoch"

    def open(self) -> bool:
        """Begin, or go on with, the run. False where W&B is not to be had."""
        asked = self.asked["mode"]
        for mode in (asked, "offline") if asked == "online" and not self.asked.get("replay") else (asked,):
            try:
                self.run = self.begin(mode)
                self.mode = mode
                return True
            except Exception as error:
                traceback.print_exc()
                self.say(warning=f"W&B {mode} is not there ({first_line(error)})")
        return False

    def begin(self, mode: str) -> Any:
        import wandb

        if mode == "online":
            reach(wandb.setup().settings.base_url, REACH_SECONDS)
        replay = bool(self.asked.get("replay"))
        known = {} if replay or (mode == "online" and self.kept.get("mode") == "offline") else self.kept
        self.points = Points(self.mixture, known.get("sent"))
        # of one that was cut off nobody knows what has arrived: it is sent whole, as another one
        kept_id = None if replay and self.kept.get("mode") == "online" else self.kept.get("id")
        run_id = os.environ.get("WANDB_RUN_ID") or kept_id or secrets.token_hex(4)
        names = {key: self.asked.get(key) for key in IDENTITY} | (self.kept.get("names") or {} if replay else {})
        more: dict[str, Any] = {"resume": "allow"} if mode == "online" and known.get("sent") else {}
        run = wandb.init(
            mode="online" if mode == "online" else "offline",
            id=run_id,
            dir=self.asked.get("dir") or str(self.folder),
            config=self.config,
            settings=wandb.Settings(**self.settings()),
            **names,
            **more,
        )
        self.step = max(run.step, known.get("step", 0))
        self.kept = {"id": run_id, "mode": mode, "url": run.url, "names": names}
        self.keep()
        return run

    def settings(self) -> dict[str, Any]:
        """Those of our own that the environment does not say."""
        own = {
            "init_timeout": INIT_SECONDS,
            "console": "off",
            "x_file_stream_transmit_interval": SEND_SECONDS,
            "program": self.asked.get("program"),
            "x_stats_pid": self.asked.get("pid"),
            "x_disable_stats": not self.asked.get("system_metrics"),
        }
        return {
            key: value for key, value in own.items() if value is not None and f"WANDB_{key.upper()}" not in os.environ
        }

    def keep(self, complete: bool = False) -> None:
        write_json(self.path, self.kept | {"complete": complete, "step": self.step, "sent": self.points.sent})

    def send(self, tail: Tail) -> None:
        """The points of the rows that are new."""
        any_new = False
        for epoch, step, scalars in self.points.of(tail.rows()):
            for name in scalars:
                self.define(name)
            places = {"epoch": epoch, "trainer/global_step": step}
            self.log(scalars | {name: value for name, value in places.items() if value is not None})
            any_new = True
        if any_new:
            self.keep()

    def log(self, values: Mapping[str, Any]) -> None:
        self.run.log(dict(values), step=self.step, commit=True)
        self.step += 1

    def define(self, name: str) -> None:
        """The x of a chart, once; charts of single layers are for the dashboard, not one panel each."""
        if not self.defined:
            self.run.define_metric("epoch", hidden=True)
            self.run.define_metric("trainer/global_step", hidden=True)
        if name not in self.defined:
            axis = "trainer/global_step" if name.startswith("train/") else self.axis
            self.run.define_metric(name, step_metric=axis, hidden="_layer/" in name)
        self.defined.add(name)

    def finish(self, ended: Mapping[str, Any], wait: Callable[[], None]) -> None:
        """ended: how. wait: until the page is drawn."""
        failed = ended["end"] != "ok"
        if self.mode == "online":
            reach(self.run.settings.base_url, REACH_SECONDS)  # a server that is lost is given up at once
        rows = Tail(self.folder / "rows.jsonl").rows()
        if not failed:
            if tables := wandb_charts.tables(self.folder, rows, self.mixture):
                self.log(tables)
            wait()
            if pictures := wandb_charts.pictures(self.folder):
                self.log(pictures)
            self.record = read_result(self.folder)
            summary = wandb_charts.summary(self.record)
            self.run.summary.update(summary)
            more = self.asked.get("artifacts")
            more = self.mode == "online" if more is None else more
            self.run.log_artifact(wandb_charts.artifact(self.run.id, self.folder, rows, more))
        elif self.mode == "online" and self.asked.get("alert") and ended.get("reason"):
            self.run.alert("The run failed", f"{self.folder.name}: {ended['reason']}", level="ERROR")
        self.run.finish(exit_code=1 if failed else 0)
        self.keep(complete=True)
        if self.mode == "online":
            shutil.rmtree(self.folder / "wandb" / "data", ignore_errors=True)


def main() -> int:
    """Exit code 0 where everything is with W&B."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which tells of its end
        signal.signal(number, lambda *_: None)
    with contextlib.suppress(OSError):
        os.nice(5)
    channel = Channel()
    while "folder" not in channel.told:
        channel.listen(POLL_SECONDS)
        if "folder" not in channel.told and "close" in channel.told:
            return 1
    folder = Path(channel.told["folder"])
    lock = FileLock(folder / "wandb" / "mirror.lock")
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=LOCK_SECONDS)  # the mirror of a run that was just interrupted may still be sending
    try:
        return follow(Session(channel.told, channel.say), channel)
    except Exception as error:
        traceback.print_exc()
        channel.say(warning=f"W&B is lost ({first_line(error)})")
        leave(channel)
        return 1


def follow(session: Session, channel: Channel) -> int:
    if not session.open():
        return 0
    channel.say(id=session.run.id, mode=session.mode, url=session.run.url)
    tail = Tail(session.folder / "rows.jsonl")
    while "end" not in channel.told:
        session.send(tail)
        channel.listen(POLL_SECONDS)
    timer = threading.Timer(LAST_SECONDS, leave, [channel])
    timer.daemon = True
    timer.start()
    session.send(tail)

    def wait() -> None:
        while "close" not in channel.told:
            channel.listen(POLL_SECONDS)

    session.finish(channel.told, wait)
    channel.say(done=True)
    return 0


def leave(channel: Channel) -> None:
    """At once: a library that cannot reach its server would go on trying when Python ends."""
    channel.say(done=True)
    sys.stderr.flush()
    os._exit(1)


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:120]
