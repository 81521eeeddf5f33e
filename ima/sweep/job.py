"""A job of a sweep: its folder, its command, and what became of it once its process has ended.

Hides how a state is read from a run folder, how a reason is found (signal, result, log) and that a run which could
not write its own end gets it written: a failed run is a row with a reason, never a gap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ima.core.commands import ROOT
from ima.core.commands import command_of as typed
from ima.core.errors import UserError
from ima.core.metric_names import VAL_LOSS
from ima.core.provenance import provenance
from ima.runs.folders import run_lock
from ima.runs.identity import IDENTITY
from ima.runs.record import RESULT, RunRecord, read_record

SCRIPTS = ROOT  # where the scripts of a checkout lie
PLAIN = re.compile(r"[\w./-]+")
ERROR_LINE = re.compile(r"error: |[\w.]*(Error|Exception|Exit|Interrupt)\b")
Spot = tuple[float, int]  # (time, epoch)


class JobFailed(Exception):
    """A job of a multirun has failed; its text is one line. Raised in the job, where launchers and sweepers see it."""


@dataclasses.dataclass
class Job:
    """One training or evaluation. state: waiting, elsewhere, running, ok, finished (before this sweep), failed or
    interrupted."""

    overrides: list[str]
    hash: str
    varied: dict[str, str]
    folder: Path
    log: Path
    overwrite: bool = False
    script: str = "train"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    flags: list[str] = dataclasses.field(default_factory=list)  # options that its process needs
    shared: list[str] = dataclasses.field(default_factory=list)  # Hydra's own keys that its process needs
    state: str = "waiting"
    reason: str = ""
    seconds: float = 0.0
    started: float = 0.0
    slot: int = 0
    seen: int | None = None
    retry_at: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    num_epochs: int | None = None
    first: Spot | None = None  # the first and the latest epoch seen by this process
    latest: Spot | None = None

    @property
    def label(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.varied.items())

    @property
    def result_path(self) -> Path:
        return self.folder / RESULT

    def result(self) -> RunRecord | None:
        """The run's record if it can be read and belongs to this config."""
        with contextlib.suppress(UserError):
            record = read_record(self.folder)
            return record if record.config_hash == self.hash else None
        return None

    def is_done(self) -> bool:
        result = self.result()
        return result is not None and result.is_ok

    def objective(self) -> float | None:
        """The recorded value of the metric that `objective` names."""
        result = self.result()
        name = str(self.config.get("objective") or VAL_LOSS)
        return result.metrics.get(name) if result is not None else None

    def has_ended_since(self, moment: float) -> bool:
        """Whether its result was written after `moment`, seconds since the epoch."""
        stamp = self.stamp()
        return stamp is not None and stamp >= moment * 1e9

    def stamp(self) -> int | None:
        """Tells a result.json that was written by this process from an older one."""
        with contextlib.suppress(OSError):
            return self.result_path.stat().st_mtime_ns
        return None


def quoted(text: str) -> str:
    """A value as the override grammar reads it back."""
    if PLAIN.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


def settle(job: Job, code: int) -> None:
    """The state of a job whose process has ended. A failed one always leaves a result.json with its reason."""
    if code == 0 and job.is_done():
        job.state = "ok"
        return
    job.state = "failed"
    result = job.result()
    told = result is not None and result.status == "failed" and job.stamp() != job.seen
    if code < 0:
        job.reason = f"killed by {signal_name(-code)}"
    elif told and result is not None:
        job.reason = str(result.reason)
        return
    elif code == 0:
        job.reason = "ended without a result"
    else:
        job.reason = last_words(job.log) or f"exit code {code}"
    record(job, "failed", job.reason)


def signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def last_words(log: Path) -> str:
    """The line of a log that tells why the process ended: its last error line, else its last line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace").rpartition("\n--- ")[2]
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)[1:] if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1].removeprefix("error: ")[:500]


def record(job: Job, status: str, reason: str, config: Mapping[str, Any] | None = None) -> None:
    """Write what the process could not write itself. Leaves a folder alone that belongs to somebody else."""
    result = job.result()
    if result is None and job.result_path.exists():
        return
    if result is not None and result.status == status and status == "interrupted":
        return
    if result is None:
        config = dict(config or job.config)
        command = " ".join([typed(job.script), *map(shlex.quote, job.overrides)])
        result = RunRecord(
            config=config, command=command, seeds={"seed": config.get("seed")}, config_hash=job.hash,
            identity=IDENTITY, **provenance(), more={"overrides": job.overrides},
        )  # fmt: skip
    result.status, result.reason = status, reason
    with contextlib.suppress(UserError), run_lock(job.folder):
        result.write(job.folder)
