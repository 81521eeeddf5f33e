"""sweep.py: one process per job, finished jobs are skipped, one table and one page at the end.

No torch here: the parent only starts processes and reads what they leave in their run folders.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from ima.results import write_json
from ima.sweep.job import Job, jobs_of
from ima.sweep.pool import Pool, sigterm_interrupts
from ima.sweep.table import finish_table
from ima.sweep.view import View


def run_jobs(config: dict[str, Any]) -> int:
    """Run what `compose_sweep` made; returns 0 when every job is ok, 1 when one failed or was not run."""
    folder = Path(config["output_dir"]) / config["name"]
    jobs = jobs_of(config, folder)
    write_json(folder / "sweep.json", {"command": shlex.join(["python", "sweep.py", *sys.argv[1:]]), "config": config})
    view = View(jobs)
    try:
        with view, sigterm_interrupts():
            Pool(jobs, config, view).run()
    finally:
        finish_table(folder, jobs)
    page(folder, jobs)
    return 0 if all(job.state in ("ok", "finished") for job in jobs) else 1


def page(folder: Path, jobs: list[Job]) -> None:
    from ima.report import write_report

    if folders := [job.folder for job in jobs if job.result() is not None]:
        print(f"page: {write_report(folders, folder / 'report.html')}")
