"""A job as a process of its own: its command line, and a run of it for a job that wants several ranks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ima.core.commands import process_of
from ima.core.distributed import STARTERS, ranks_from_outside
from ima.core.errors import UserError
from ima.core.trust import CONF
from ima.sweep import job as jobs_module
from ima.sweep.job import Job, settle

# What Lightning and other starters leave behind for the ranks of another run.
OF_RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_MULTIRUNS = ("hydra.mode", "hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep")


def refuse_ranks(environment: Mapping[str, str]) -> None:
    """Under torchrun or srun every rank would run the whole sweep. Raises UserError there."""
    for starter, num in ranks_from_outside(environment).items():
        raise UserError(
            f"{STARTERS[starter][1]}: {num} processes would each run the whole sweep; start sweep.py once,"
            " as one process: a job makes its own ranks with trainer=ddp (docs/sweeps.md)"
        )


def flags_of(hydra: DictConfig, root: str) -> list[str]:
    """The options of the multirun that its jobs need too."""
    flags = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", str(source.path)]
        if source.provider == "main" and str(source.path) != str(CONF):
            flags += ["--config-path", str(source.path)]
    if hydra.job.config_name != root:
        flags += ["--config-name", str(hydra.job.config_name)]
    return flags


def hydra_overrides(hydra: DictConfig) -> list[str]:
    """Hydra's own keys of the command line, without those of the multirun as a whole."""
    kept = []
    for text in map(str, hydra.overrides.hydra):
        key = text.lstrip("+~").partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in OF_MULTIRUNS):
            kept.append(text)
    return kept


def command_of(job: Job, name: str, output_dir: str) -> list[str]:
    """The command of a job; its folder is output_dir/name."""
    place = [f"name={jobs_module.quoted(name)}", f"output_dir={jobs_module.quoted(output_dir)}"]
    script = process_of(job.script, jobs_module.SCRIPTS)
    single = ["hydra.mode=RUN"] if any(text.startswith("sweep=") for text in job.overrides) else []
    return [*script, *job.flags, *job.overrides, *job.shared, *place, *single]


def places(folder: Path, sweep: str) -> tuple[str, str]:
    """(name, output_dir) of the run in a job's folder; `sweep` is the name of the folder that all jobs share."""
    above = next((place for place in folder.parents if place.name == Path(sweep).name), folder.parent)
    output_dir = above.parent
    shown = os.path.relpath(output_dir) if output_dir.is_relative_to(Path.cwd()) else str(output_dir)
    return folder.relative_to(output_dir).as_posix(), shown


def environment_of(more: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in (*OF_RANKS, "HYDRA_FULL_ERROR")}
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(more or {})


def run_as_process(root: str, hydra: DictConfig, overrides: list[str], config: Mapping[str, Any]) -> None:
    """Run a job of a multirun by itself, and wait for its end. Raises UserError with the reason of a failure."""
    folder = Path(config["output_dir"]) / config["name"]
    log = folder.parent / "logs" / f"{folder.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    job = Job(overrides, folder.name, {}, folder, log, script=root, config=dict(config))
    job.flags, job.shared = flags_of(hydra, root), hydra_overrides(hydra)
    job.seen = job.stamp()
    with open(log, "ab") as out:
        command = command_of(job, str(config["name"]), str(config["output_dir"]))
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment_of()
        )
    settle(job, done.returncode)
    if job.state != "ok":
        raise UserError(job.reason)
