"""The processes of a sweep: how many at a time, on which cores and GPU, and how they are ended.

The state of a sweep is what its run folders say, so an interrupted one goes on when the same command is given again,
and two commands may work on one sweep: a folder that another process is writing is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from ima.runs.folders import BUSY, is_held
from ima.sweep.job import Job, last_words, record, settle
from ima.sweep.process import command_of, environment_of, places
from ima.sweep.view import View

POLL_SECONDS = 0.1
ELSEWHERE_SECONDS = 2.0  # how often a folder that another process holds is looked at again
GRACE_SECONDS = 20.0  # for an interrupted job to put its state down, before it is killed


class Pool:
    """Up to `num_parallel` processes; with several, each is kept to its share of cores and to one GPU."""

    def __init__(self, jobs: list[Job], config: dict[str, Any], view: View) -> None:
        self.jobs, self.view = jobs, view
        self.name = str(config["name"])
        self.num_parallel, self.keep_going = int(config["num_parallel"]), bool(config["keep_going"])
        self.gpus = visible_gpus() if self.num_parallel > 1 else []
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []

    def run(self) -> None:
        for job in self.jobs:
            if job.state == "failed":  # its config was refused
                record(job, "failed", job.reason)
                self.view.event(job)
            elif not job.overwrite and job.is_done():
                job.state = "finished"
                self.view.event(job)
            else:
                self.waiting.append(job)
        try:
            while self.waiting or self.running:
                self.fill()
                self.collect()
                if not self.keep_going and any(job.state == "failed" for job in self.jobs):
                    return
                self.view.refresh()
                time.sleep(POLL_SECONDS)
        finally:  # on Ctrl-C, on a first failure that stops the rest, on any error of our own
            self.end_all()

    def fill(self) -> None:
        """Start what there is room for; a folder held by another process goes to the back of the queue."""
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.num_parallel:
                return
            job = self.waiting.popleft()
            if time.monotonic() < job.retry_at:
                self.waiting.append(job)
            elif is_held(job.folder):
                self.postpone(job)
            elif job.state == "elsewhere" and job.is_done():
                job.state = "finished"
                self.view.event(job)
            else:
                self.start(job)

    def postpone(self, job: Job) -> None:
        is_news, job.state = job.state != "elsewhere", "elsewhere"
        job.retry_at = time.monotonic() + ELSEWHERE_SECONDS
        self.waiting.append(job)
        if is_news:
            self.view.event(job)

    def start(self, job: Job) -> None:
        taken = {other.slot for other in self.running}
        job.slot = next(slot for slot in range(self.num_parallel) if slot not in taken)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.seen, job.started, job.state = job.stamp(), time.monotonic(), "running"
        with open(job.log, "ab") as log:
            log.write(f"--- {' '.join(job.overrides)}\n".encode())
            log.flush()
            job.process = subprocess.Popen(
                command_of(job, *places(job.folder, self.name)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(job.slot),
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends its jobs in order
            )
        self.running.append(job)
        self.view.event(job)

    def environment(self, slot: int) -> dict[str, str]:
        environment = environment_of()
        environment.setdefault("WANDB_RUN_GROUP", self.name)  # the sweep's runs side by side
        if self.num_parallel > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // self.num_parallel)))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return environment

    def collect(self) -> None:
        for job in list(self.running):
            assert job.process is not None
            code = job.process.poll()
            if code is None:
                continue
            self.running.remove(job)
            job.seconds = time.monotonic() - job.started
            if code and (is_held(job.folder) or BUSY in last_words(job.log)):  # another one was quicker
                self.postpone(job)
                continue
            settle(job, code)
            self.view.event(job)

    def end_all(self) -> None:
        """End running jobs so that they can go on later: a polite signal first, then less polite ones."""
        for number, patience in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            alive = [job for job in self.running if job.process is not None and job.process.poll() is None]
            for job in alive:
                assert job.process is not None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.process.pid, number)
            until = time.monotonic() + patience
            while time.monotonic() < until and any(job.process and job.process.poll() is None for job in alive):
                time.sleep(POLL_SECONDS)
        for job in self.running:
            job.state, job.seconds = "interrupted", time.monotonic() - job.started
            if job.is_done():  # it was just over
                job.state = "ok"
            else:
                record(job, "interrupted", "the sweep was stopped")
            self.view.event(job)
        self.running.clear()


def visible_gpus() -> list[str]:
    """Numbers of the GPUs that may be used, found without torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """A batch system's SIGTERM ends the sweep as Ctrl-C does: jobs are ended, the state can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
