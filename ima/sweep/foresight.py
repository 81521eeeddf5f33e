"""How long a sweep takes and what it leaves on disk, said before it starts: from runs like its jobs that have ended."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.runs.record import RESULT, read_record
from ima.sweep.job import Job
from ima.sweep.view import seconds_text

LONG = 600.0  # seconds: of less nothing is said
MOST = 200  # runs that are looked at
ALIKE = ("llm", "data", "task", "encoder")  # choices that make a run as long as another


def foretold(jobs: Sequence[Job], num_parallel: int, outputs: Path) -> str:
    """A line; empty where the sweep is short. outputs: where runs lie, at any depth."""
    waiting = [job for job in jobs if not job.is_done()]
    if not waiting:
        return ""
    known = ended(outputs)
    costs = [cost for job in waiting if (cost := usual(job, known)) is not None]
    if not costs:
        return ""  # it is told once a job has ended
    share = len(waiting) / len(costs)  # of those that nothing is known of, as much as of the others
    seconds = share * sum(cost[0] for cost in costs) / num_parallel
    if seconds < LONG:
        return ""
    size = share * sum(cost[1] for cost in costs) / 1e6
    return (
        f"{len(waiting)} jobs, {num_parallel} at a time: about {seconds_text(seconds)} and {size:.0f} MB of disk, "
        "as runs like them took"
    )


def ended(outputs: Path) -> list[tuple[Mapping[str, Any], float, int]]:
    """(config, seconds, bytes) of runs that ended well, the latest first."""
    paths = sorted(outputs.glob(f"*/{RESULT}"), key=mtime) + sorted(outputs.glob(f"*/*/{RESULT}"), key=mtime)
    found: list[tuple[Mapping[str, Any], float, int]] = []
    for path in paths[::-1][:MOST]:
        with contextlib.suppress(UserError, OSError):
            record = read_record(path.parent)
            if record.is_ok and record.wall_seconds:
                size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
                found.append((record.config, float(record.wall_seconds), size))
    return found


def mtime(path: Path) -> float:
    return path.stat().st_mtime


def usual(job: Job, known: Sequence[tuple[Mapping[str, Any], float, int]]) -> tuple[float, int] | None:
    """Seconds and bytes of the latest run whose choices and number of epochs are the job's."""
    wanted = kind_of(job.config)
    return next(((seconds, size) for config, seconds, size in known if kind_of(config) == wanted), None)


def kind_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    choices, trainer = config.get("choices") or {}, config.get("trainer") or {}
    made = tuple(choices.get(name) for name in ALIKE)
    return (*made, trainer.get("max_epochs"), trainer.get("max_steps"), "checkpoint" in config)
