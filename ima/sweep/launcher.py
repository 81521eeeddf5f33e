"""Our launcher: one process a job, a share of the cores and one GPU for each, a live table, and several commands that
work on one sweep. Chosen by default for multiruns; any other launcher of Hydra takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ima.core.errors import UserError
from ima.sweep.foresight import foretold
from ima.sweep.grid import compose_jobs
from ima.sweep.job import Job, JobFailed
from ima.sweep.pool import Pool, sigterm_interrupts
from ima.sweep.view import View

JOBS: list[Job] = []  # of the multirun that this process runs, for its table


class PoolLauncher(Launcher):
    """num_parallel: jobs at the same time. keep_going: with the other jobs where one fails."""

    def __init__(self, num_parallel: int = 1, keep_going: bool = True) -> None:
        if not isinstance(num_parallel, int) or num_parallel < 1:
            raise UserError(f"hydra.launcher.num_parallel: {num_parallel} is out of range; allowed: >= 1")
        self.num_parallel, self.keep_going = num_parallel, keep_going

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What a sweeper of Hydra asks for."""
        varied = [texts_that_differ(list(one), job_overrides) for one in job_overrides]
        jobs = compose_jobs(
            self.loader, self.config, [list(one) for one in job_overrides], varied, self.keep_going, initial_job_idx
        )
        self.run(jobs)
        return [returned(job) for job in jobs]

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs, equal ones once; their states tell what became of each."""
        JOBS.extend(jobs)
        folder = Path(str(self.config.hydra.sweep.dir))
        single = list({job.hash: job for job in reversed(jobs)}.values())[::-1]
        settings = {"name": folder.name, "num_parallel": self.num_parallel, "keep_going": self.keep_going}
        view = View(single, self.num_parallel)
        if line := foretold(single, self.num_parallel, folder.parent):
            print(line, flush=True)
        with view, sigterm_interrupts():
            Pool(single, settings, view).run()
        states = {job.hash: job for job in single}
        for job in jobs:
            job.state, job.reason = states[job.hash].state, states[job.hash].reason


def returned(job: Job) -> JobReturn:
    """What Hydra's sweepers read: the value of the objective, or the reason why there is none."""
    found = JobReturn(overrides=job.overrides, cfg=OmegaConf.create({}), task_name=job.script)
    if job.state in ("ok", "finished"):
        found.status, found.return_value = JobStatus.COMPLETED, job.objective()
    else:
        found.status, found.return_value = JobStatus.FAILED, JobFailed(f"{job.label}: {job.reason or job.state}")
    return found


def texts_that_differ(overrides: Sequence[str], others: Sequence[Sequence[str]]) -> dict[str, str]:
    """key -> value of those overrides that not all jobs share."""
    shared = set.intersection(*(set(one) for one in others)) if len(others) > 1 else set()
    return dict(text.split("=", 1) for text in overrides if text not in shared and "=" in text)
