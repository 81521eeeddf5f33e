"""Our sweeper: Hydra's basic one, with points (overrides that go together) and rows for jobs that are refused.

A grid is the product of `hydra.sweeper.params`, `hydra.sweeper.points` and the several values of the command line; a
value of the command line takes the place of the file's for the same key. A job whose config is refused is a failed row
with its reason, and the others run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ima.core.errors import UserError
from ima.core.files import write_atomic
from ima.sweep.grid import compose_jobs, expand
from ima.sweep.job import Job, JobFailed, record
from ima.sweep.launcher import JOBS, PoolLauncher

EVALUATIONS: list[dict[str, Any]] = []  # what sweep.py runs after the trainings of this process
LABELS: dict[tuple[str, ...], dict[str, str]] = {}  # overrides of a job -> what is shown of them; set by sweep.py


class GridSweeper(Sweeper):
    """params: key -> values. points: lists of overrides that go together. script: which script the jobs run, and
    evaluations: what follows each training; both are read by sweep.py."""

    def __init__(
        self,
        params: dict[str, Any] | None = None,
        points: Sequence[Sequence[str]] = (),
        evaluations: Sequence[dict[str, Any]] = (),
        script: str = "train",
    ) -> None:
        self.params, self.points = params or {}, points
        entries: Any = OmegaConf.to_container(OmegaConf.create(list(evaluations)))
        EVALUATIONS[:] = [dict(entry) for entry in entries]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.settings, self.loader = config, hydra_context.config_loader
        self.runner = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        plain: Any = OmegaConf.to_container(OmegaConf.create({"params": self.params, "points": list(self.points)}))
        overrides, varied = expand(arguments, plain["params"], plain["points"], OverridesParser.create(self.loader))
        varied = [LABELS.get(tuple(f"{key}={value}" for key, value in own.items()), own) for own in varied]
        keep_going = self.runner.keep_going if isinstance(self.runner, PoolLauncher) else True
        folder = Path(str(self.settings.hydra.sweep.dir))
        jobs = compose_jobs(self.loader, self.settings, overrides, varied, keep_going)
        if all(job.state == "failed" for job in jobs):
            raise UserError(jobs[0].reason)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "multirun.yaml", OmegaConf.to_yaml(self.settings))
        if isinstance(self.runner, PoolLauncher):
            self.runner.run(jobs)
        else:
            self.launch_elsewhere(jobs)
        failed = [job for job in jobs if job.state not in ("ok", "finished")]
        if failed:
            more = f" and {len(failed) - 1} more" if failed[1:] else ""
            raise JobFailed(f"{failed[0].label}: {failed[0].reason or failed[0].state}{more}")
        return [job.objective() for job in jobs]

    def launch_elsewhere(self, jobs: Sequence[Job]) -> None:
        """With a launcher of Hydra's, which would end with the first job that is refused."""
        JOBS.extend(jobs)
        for job in jobs:
            if job.state == "failed":
                record(job, "failed", job.reason)
        single = list({job.hash: job for job in reversed(jobs) if job.state != "failed"}.values())[::-1]
        results: Sequence[JobReturn] = self.runner.launch([job.overrides for job in single], initial_job_idx=0)
        for job, result in zip(single, results, strict=True):
            try:
                _ = result.return_value
                job.state = "ok"
            except Exception as error:
                told = job.result()
                job.state, job.reason = "failed", str(told.reason if told and told.status == "failed" else error)
        states = {job.hash: job for job in single}
        for job in jobs:
            if job.hash in states:
                job.state, job.reason = states[job.hash].state, states[job.hash].reason
