"""sweep.py: one process per job, finished jobs are skipped, one table and one page at the end.

No torch here: the parent only starts processes and reads what they leave in their run folders.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ima.core.commands import arguments, command_of
from ima.core.distributed import STARTERS, ranks_from_outside
from ima.core.errors import UserError
from ima.core.files import remove_temporaries, write_json
from ima.interventions.prune.rows import compare_runs
from ima.report.build import write_report
from ima.runs.folders import refuse_run
from ima.sweep.job import Job, jobs_of
from ima.sweep.pool import Pool, sigterm_interrupts
from ima.sweep.table import finish_table
from ima.sweep.view import View


def run_jobs(config: dict[str, Any]) -> int:
    """Run what `compose_sweep` made; returns 0 when every job is ok, 1 when one failed or was not run."""
    refuse_ranks(os.environ)
    folder = Path(config["output_dir"]) / config["name"]
    refuse_run(folder)
    jobs = jobs_of(config, folder)
    command = " ".join([command_of("sweep"), *map(shlex.quote, arguments())])
    with alone_in(folder):
        folders = [job.folder.name for job in jobs]  # by which a page made later keeps the order
        write_json(folder / "sweep.json", {"command": command, "folders": folders, "config": config})
    view = View(jobs, int(config["num_parallel"]))
    try:
        with view, sigterm_interrupts():
            Pool(jobs, config, view).run()
    finally:
        with alone_in(folder):
            finish_table(folder, jobs)
    with alone_in(folder):
        page(folder, jobs)
    return 0 if all(job.state in ("ok", "finished") for job in jobs) else 1


def refuse_ranks(environment: Mapping[str, str]) -> None:
    """Under torchrun or srun every rank would run the whole sweep. Raises UserError there."""
    for starter, num in ranks_from_outside(environment).items():
        raise UserError(
            f"{STARTERS[starter][1]}: {num} processes would each run the whole sweep; start sweep.py once,"
            " as one process: a job makes its own ranks with trainer=ddp (docs/sweeps.md)"
        )


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
