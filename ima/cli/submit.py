"""`python -m ima submit --workers 8 ... -- sweep=encoders`: workers of one sweep as jobs of a cluster.

Each worker is `sweep.py` with the same arguments: the sweep's folders say what is left to do, so that workers need not
know of each other. A worker that is preempted or runs out of time goes back into the queue. Needs the extra `slurm`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.cli.sweep import plan
from ima.core.commands import ROOT, process_of
from ima.core.errors import UserError
from ima.core.extras import how_to_install

SCRIPTS = ROOT
CLUSTERS = ("slurm", "local", "debug")


class Worker:
    """What runs on a node: sweep.py until nothing is left. Pickled by submitit."""

    def __init__(self, command: Sequence[str], overrides: Sequence[str], cwd: Path) -> None:
        self.command, self.overrides, self.cwd = list(command), list(overrides), cwd

    def __call__(self) -> int:
        return subprocess.run([*self.command, *self.overrides], cwd=self.cwd).returncode

    def checkpoint(self) -> Any:
        """submitit asks before a job is taken away: the same again, later."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Worker(self.command, self.overrides, self.cwd))


def submit(
    overrides: Sequence[str],
    num_workers: int = 1,
    cluster: str = "slurm",
    hours: float = 24.0,
    settings: dict[str, Any] | None = None,
    logs: Path = Path("outputs/submitted"),
) -> list[Any]:
    """The submitted jobs. Checks the grid first, here. Raises UserError where submitit or the cluster is missing, or
    a setting is not known."""
    plan(overrides)
    try:
        import submitit
    except ImportError:
        raise UserError(how_to_install("submitit")) from None
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster=cluster)
        executor.update_parameters(name="ima-sweep", timeout_min=max(1, round(60 * hours)), **(settings or {}))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"{cluster}: {' '.join(str(error).split())}") from None
    worker = Worker(process_of("sweep", SCRIPTS), overrides, Path.cwd())
    with executor.batch():
        return [executor.submit(worker) for _ in range(num_workers)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima submit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, default=1, help="how many work on the sweep at a time")
    parser.add_argument("--cluster", choices=CLUSTERS, default="slurm", help="local: processes of this machine")
    parser.add_argument("--hours", type=float, default=24.0, help="after which a worker goes back into the queue")
    parser.add_argument("--logs", type=Path, default=Path("outputs/submitted"), help="where the workers' output goes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of submitit's executor")
    parser.add_argument("overrides", nargs="+", help="after --: the arguments of sweep.py")
    options = parser.parse_args(arguments)
    try:
        jobs = submit(
            options.overrides, options.workers, options.cluster, options.hours,
            dict(map(setting, options.set)), options.logs,
        )  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("submitted: " + " ".join(str(job.job_id) for job in jobs))
    if options.cluster == "slurm":  # whoever asked need not stay
        return 0
    return max(int(job.result() or 0) for job in jobs)


def setting(text: str) -> tuple[str, Any]:
    """gpus_per_node=1 as a name and a number or text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: not of the form KEY=VALUE")
    return name, int(value) if value.lstrip("-").isdigit() else value
