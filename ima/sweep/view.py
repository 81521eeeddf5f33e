"""What a person sees of a running sweep: a live table on a terminal, a line per event elsewhere.

Progress is read from the runs' own rows.jsonl, so that nothing has to be sent between processes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.sweep.job import Job

REFRESH_SECONDS = 1.0
MAX_ROWS = 24
TAIL_BYTES = 4096
ORDER = ("running", "failed", "interrupted", "elsewhere", "waiting", "ok", "finished")
MEANING = {"elsewhere": "another process runs it", "finished": "finished before"}
OVER = ("ok", "finished", "failed", "interrupted")


class View:
    """Use as a context manager; `event` when a job changes its state, `refresh` as often as you like."""

    def __init__(self, jobs: Sequence[Job], num_parallel: int = 1) -> None:
        self.jobs, self.num_parallel = jobs, num_parallel
        self.live: Any = None
        self.refreshed = 0.0

    def __enter__(self) -> View:
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(auto_refresh=False)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.update(self.table(), refresh=True)
            self.live.__exit__(*error)

    def event(self, job: Job) -> None:
        if self.live is not None:
            self.refresh(now=True)
            return
        num_over = sum(other.state in OVER for other in self.jobs)
        seconds = f"  {seconds_text(job.seconds)}" if job.seconds else ""
        reason = f"  {job.reason}" if job.reason else ""
        state = MEANING.get(job.state, job.state)
        left = total_left(self.jobs, self.num_parallel, time.monotonic()) if job.state in OVER else None
        rest = f"  about {seconds_text(left)} left" if left else ""
        print(f"[{num_over}/{len(self.jobs)}] {state}: {job.label}{seconds}{reason}{rest}", flush=True)

    def refresh(self, now: bool = False) -> None:
        if self.live is None or (not now and time.monotonic() - self.refreshed < REFRESH_SECONDS):
            return
        self.refreshed = time.monotonic()
        for job in self.jobs:
            if job.state == "running":
                note_progress(job)
        self.live.update(self.table(), refresh=True)

    def table(self) -> Any:
        from rich.markup import escape
        from rich.table import Table

        counts = {state: sum(job.state == state for job in self.jobs) for state in ORDER}
        title = ", ".join(f"{num} {MEANING.get(state, state)}" for state, num in counts.items() if num)
        left = total_left(self.jobs, self.num_parallel, time.monotonic())
        title += f"; about {seconds_text(left)} left" if left else ""
        table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
        for name in ("job", "state", "epoch", "elapsed", "left"):
            table.add_column(name, justify="left" if name in ("job", "state") else "right", overflow="fold")
        shown = sorted(self.jobs, key=lambda job: ORDER.index(job.state))
        for job in shown[:MAX_ROWS]:
            state = MEANING.get(job.state, job.state) + (f": {job.reason}" if job.reason else "")
            table.add_row(escape(job.label), escape(state), epoch_text(job), elapsed_text(job), left_text(job))
        if len(shown) > MAX_ROWS:
            table.add_row(f"... and {len(shown) - MAX_ROWS} more")
        return table


def note_progress(job: Job) -> None:
    """Note the run's epoch where it has moved, with the time."""
    if job.num_epochs is None and job.stamp() != job.seen and (result := job.result()) is not None:
        most = (result.config.get("trainer") or {}).get("max_epochs")
        job.num_epochs = most if isinstance(most, int) and most > 0 else None
    epoch = last_epoch(job.folder / "rows.jsonl")
    if job.num_epochs is None or epoch is None:
        return
    if job.first is None:
        job.first = job.latest = (time.monotonic(), epoch)
    elif job.latest is not None and epoch > job.latest[1]:
        job.latest = (time.monotonic(), epoch)


def last_epoch(rows: Path) -> int | None:
    """The epoch of the last whole row; None where there is none yet."""
    with contextlib.suppress(OSError, ValueError), open(rows, "rb") as file:
        file.seek(max(0, rows.stat().st_size - TAIL_BYTES))
        whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        epoch = json.loads(whole).get("epoch")
        return epoch if isinstance(epoch, int) else None
    return None


def seconds_left(job: Job, now: float) -> float | None:
    """From the epochs that this process has done so far; None before the first."""
    if job.first is None or job.latest is None or job.num_epochs is None or job.latest[1] == job.first[1]:
        return None
    pace = (job.latest[0] - job.first[0]) / (job.latest[1] - job.first[1])
    return max(0.0, pace * (job.num_epochs - job.latest[1]) - (now - job.latest[0]))


def total_left(jobs: Sequence[Job], num_parallel: int, now: float) -> float | None:
    """Of the whole sweep: waiting jobs take what those of the same script took on the average, running ones what their
    epochs tell. None before a first job is over, or where nothing is left."""
    took: dict[str, list[float]] = {}
    for job in jobs:
        if job.state == "ok" and job.seconds:
            took.setdefault(job.script, []).append(job.seconds)
    means = {script: sum(seconds) / len(seconds) for script, seconds in took.items()}
    if not means:
        return None
    usual = sum(means.values()) / len(means)
    rest = 0.0
    for job in jobs:
        mean = means.get(job.script, usual)
        if job.state == "waiting":
            rest += mean
        elif job.state == "running":
            own = seconds_left(job, now)
            rest += own if own is not None else max(0.0, mean - (now - job.started))
    return rest / num_parallel or None


def epoch_text(job: Job) -> str:
    if job.state != "running" or job.latest is None:
        return ""
    return f"{job.latest[1]}/{job.num_epochs}"


def elapsed_text(job: Job) -> str:
    seconds = time.monotonic() - job.started if job.state == "running" else job.seconds
    return seconds_text(seconds) if seconds else ""


def left_text(job: Job) -> str:
    left = seconds_left(job, time.monotonic()) if job.state == "running" else None
    return "" if left is None else seconds_text(left)


def seconds_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
