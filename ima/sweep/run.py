"""The end of a multirun: one table and one page over its jobs, whichever launcher ran them. No torch here."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml
from filelock import FileLock

from ima.core.commands import arguments, command_of
from ima.core.errors import UserError
from ima.core.files import remove_temporaries, write_json
from ima.interventions.prune.rows import compare_runs
from ima.report.build import write_report
from ima.runs.record import RESULT, read_record
from ima.sweep.job import Job
from ima.sweep.table import finish_table


def finish(folder: Path, jobs: list[Job], draw: bool = True) -> None:
    """The table and the page of a multirun. Equal jobs are one line. draw: the page too."""
    single = list({job.hash: job for job in reversed(jobs)}.values())[::-1]
    command = " ".join([command_of("sweep"), *map(shlex.quote, arguments())])
    with alone_in(folder):
        names = [job.folder.name for job in single]  # by which a page made later keeps the order
        write_json(folder / "sweep.json", {"command": command, "folders": names})
        finish_table(folder, single)
        if draw:
            page(folder, single)


def jobs_in(folder: Path) -> list[Job]:
    """The jobs of a multirun as its folders tell; for sweepers that do not keep them."""
    jobs = []
    for path in sorted(folder.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime):
        with contextlib.suppress(UserError):
            result = read_record(path.parent)
            if not result.config:  # the comparison of masks, no job
                continue
            overrides = read_overrides(path.parent)
            job = Job(overrides, str(result.config_hash), dict(text.split("=", 1) for text in overrides if "=" in text),
                      path.parent, path.parent / "train.log", config=result.config)  # fmt: skip
            job.state = {"ok": "ok", "failed": "failed"}.get(result.status, "interrupted")
            job.reason = str(result.reason or "") if job.state != "ok" else ""
            jobs.append(job)
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if jobs[1:] else set()
    for job in jobs:
        job.varied = {key: value for key, value in job.varied.items() if f"{key}={value}" not in shared}
    return jobs


def read_overrides(folder: Path) -> list[str]:
    """What Hydra was given for the job."""
    try:
        found = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return []
    return [str(text) for text in found] if isinstance(found, list) else []


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Several sweep.py may work on one sweep; one at a time writes its table and page. What a killed one left half
    written goes."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        for place in (folder, folder / "figures", folder / "masks"):
            remove_temporaries(place)
        yield


def page(folder: Path, jobs: list[Job]) -> None:
    if folders := [job.folder for job in jobs if job.result() is not None]:
        compare_runs(folders, folder / "masks")
        print(f"page: {write_report(folders, folder / 'report.html')}")
