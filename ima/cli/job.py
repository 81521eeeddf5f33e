"""What Hydra runs: one training or one evaluation, alone or as a job of a multirun.

Survival is the job's own: one that is finished returns its recorded value at once, a killed one goes on from its
checkpoint, one that another process runs is waited for, and one that fails writes its failed row and raises. So a
multirun that is started again finishes under every launcher and sweeper. A job that wants several ranks becomes a
process of its own, whose command line the ranks inherit.
"""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ima.cli.early import refuse_early
from ima.config.finished import finished
from ima.config.folders import is_first_rank
from ima.config.hub_names import hub_names
from ima.config.instantiation import flags_of
from ima.core.distributed import Place, place_of
from ima.core.errors import UserError, memory_line, nearest
from ima.core.extras import missing_extra
from ima.core.network import settle
from ima.core.trust import trusting
from ima.runs.folders import BUSY, find_own, is_held, refuse_held
from ima.runs.hub import is_hub
from ima.runs.identity import config_hash
from ima.runs.record import RunRecord, read_record
from ima.sweep.job import Job, JobFailed, record
from ima.sweep.process import run_as_process

ENTRIES = {"train": "ima.pipeline.run.fit", "evaluate": "ima.pipeline.run.evaluate"}
WAIT_SECONDS = 1.0
# Errors of files that are the place's, not the program's: full, closed to us, or no folder at all.
OF_THE_PLACE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
)  # fmt: skip
DEFAULT_OBJECTIVE = "val/loss"
PAGE = "report.html"
# Of this process, set by `run_script`; processes that a launcher starts have none of it.
ENTRY: Callable[[Any], Any] | None = None
TYPED: list[str] | None = None
STARTED = False
REFUSAL: Exception | None = None


def train(cfg: DictConfig) -> Any:
    return work("train", cfg)


def evaluate(cfg: DictConfig) -> Any:
    return work("evaluate", cfg)


TASKS = {"train": train, "evaluate": evaluate}


def work(root: str, cfg: DictConfig) -> Any:
    """The value of the objective. What a single run is refused for is kept for the script, which says it in a line."""
    global STARTED, REFUSAL
    hydra: Any = HydraConfig.get()
    STARTED = True
    gc.enable()
    if TYPED is not None:
        sys.argv = list(TYPED)  # ranks are started with it, and result.json tells it
    several = hydra.mode == RunMode.MULTIRUN
    config = finished(cfg, root, hydra=hydra, running=True)
    folder = Path(hydra.runtime.output_dir)
    place(config, folder, Path(hydra.runtime.cwd))
    if several:
        return run_job(root, config, folder, hydra)
    try:
        if is_first_rank():
            refuse_held(folder)
            found = find_own(folder, config)
            if found is not None and found.is_ok and may_say_finished(config):
                return say_finished(root, config, folder)
        run(root, config)
    except Exception as error:
        if line_of(error) is None:
            raise
        REFUSAL = error
        return None
    return None if ENTRY is not None else objective_of(config, folder)


def may_say_finished(config: Mapping[str, Any]) -> bool:
    """Whether nothing but the folder's own record has to be asked."""
    return ENTRY is None and config.get("resume") != "must" and not config.get("stage")


def say_finished(root: str, config: Mapping[str, Any], folder: Path) -> Any:
    """There is nothing to do; its page and its objective are there."""
    said = {
        "train": "this run is finished already; overwrite=true trains it anew",
        "evaluate": "evaluated already; overwrite=true measures again",
    }
    print(f"{folder}: {said[root]}")
    if (folder / PAGE).is_file():
        print(folder / PAGE)
    return objective_of(config, folder)


def place(config: dict[str, Any], folder: Path, cwd: Path) -> None:
    """Write Hydra's folder of the run as the config's own: `output_dir` as it was given, where it lies below."""
    given = Path(config["output_dir"])
    if given.is_absolute() or os.getcwd() == str(cwd):
        with_cwd = given if given.is_absolute() else cwd / given
        if folder.is_relative_to(with_cwd) and folder != with_cwd:
            config["name"] = folder.relative_to(with_cwd).as_posix()
            return
    config["output_dir"], config["name"] = str(folder.parent), folder.name
    for key in ("checkpoint", "init"):  # hydra.job.chdir: what was typed is relative to where it was typed
        if config.get(key) and os.getcwd() != str(cwd) and not is_hub(str(config[key])):
            config[key] = str(cwd / config[key])


def run(root: str, config: dict[str, Any]) -> None:
    """Train or evaluate in this process."""
    module, _, function = ENTRIES[root].rpartition(".")
    settle(config.get("offline"), hub_names(config))
    with trusting(config.get("trust") or ()):
        if ENTRY is None and is_first_rank():
            refuse_early(root, config)
        entry = ENTRY or getattr(importlib.import_module(module), function)
        entry(config)


def run_job(root: str, config: dict[str, Any], folder: Path, hydra: DictConfig) -> Any:
    """A job of a multirun in the process of its launcher. Raises JobFailed with the reason.

    A launcher may have started all its ranks (srun with several tasks): they take part, the first one alone looks after
    the folder."""
    place = place_of(flags_of(config)) if wants_ranks(config) else Place()
    if not place.is_main:
        run(root, config)
        return None
    overrides = [str(text) for text in hydra.overrides.task]
    job = Job(overrides, config_hash(config), {}, folder, folder / "log.txt", script=root)
    anew = bool(config.get("overwrite"))
    while True:
        while is_held(folder):
            time.sleep(WAIT_SECONDS)
        if not anew and job.is_done():
            return objective_of(config, folder)
        try:
            if place.starts:
                run_as_process(root, hydra, overrides, config)
            else:
                run(root, config)
            return objective_of(config, folder) if ENTRY is None else None
        except Exception as error:
            if isinstance(error, UserError) and BUSY in str(error):
                continue  # another process was quicker
            line = line_of(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            if line_of(error) is None:
                logging.getLogger(__name__).exception("the job failed")
            found = job.result()
            if found is None or found.status != "failed":
                record(job, "failed", line, config)
            raise JobFailed(f"{' '.join(overrides)}: {line}") from error


def wants_ranks(config: Mapping[str, Any]) -> bool:
    trainer = config.get("trainer") or {}
    return str(trainer.get("devices", 1)) not in ("1", "None") or int(trainer.get("num_nodes") or 1) > 1


def objective_of(config: Mapping[str, Any], folder: Path) -> Any:
    """The value of the metric that `objective` names; None where a run without one was not asked for any. Raises
    UserError for a metric that the run does not have."""
    if not is_first_rank():
        return None
    record: RunRecord = read_record(folder)
    name = str(config.get("objective") or DEFAULT_OBJECTIVE)
    value = record.metrics.get(name)
    if value is None and name != DEFAULT_OBJECTIVE:
        names = [key for key in record.metrics if not key.endswith(("/low", "/high"))]
        raise UserError(f"objective: {name!r} is no metric of the run {folder}; {nearest(name, names)}")
    return value


def line_of(error: BaseException) -> str | None:
    """The line for a mistake of a person; None for one of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (lacking := missing_extra(error)):
        return lacking
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]!r}…: {error.strerror} ({len(str(error.filename))} characters); name another"
    if isinstance(error, OSError) and error.errno in OF_THE_PLACE:
        return f"{error.filename or 'file'}: {error.strerror}; free some space or set output_dir and IMA_CACHE"
    return (memory_line(error) or None) if isinstance(error, RuntimeError | MemoryError) else None
