"""Where Hydra's runs lie: the resolvers `ima.name`, `ima.folder`, `ima.hash`, `ima.sweep` of conf/, and whose a folder
is before Hydra writes into it.

A job's folder is the hash of its config: it is taken where the job runs, from that job's own config, so that it is the
same under every launcher.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ima.config.finished import finished
from ima.core.errors import UserError
from ima.runs.find import evaluation_folder
from ima.runs.folders import OF_SWEEPS, is_held, run_name
from ima.runs.identity import MANAGEMENT, config_hash, digest
from ima.runs.record import RESULT, read_record

RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")


def register() -> None:
    """Make the resolvers known to OmegaConf. They travel to the processes of other launchers."""
    for name, function in (
        ("ima.name", lambda *, _root_: run_name(finished(_root_))),
        ("ima.folder", lambda *, _root_: str(evaluation_folder(finished(_root_)))),
        ("ima.hash", lambda *, _root_: config_hash(finished(_root_))),
        ("ima.sweep", lambda *, _root_: sweep_name(_root_)),
    ):
        if not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, function)


def sweep_name(cfg: DictConfig) -> str:
    """`name`, or the sweep's, with a hash of what else was given; from the config that all jobs share."""
    if cfg.get("name"):
        return str(cfg.name)
    chosen = cfg.hydra.runtime.choices.get("sweep")
    given = [str(text) for text in cfg.hydra.overrides.task if text.partition("=")[0] not in ("sweep", *MANAGEMENT)]
    more = {key: cfg.hydra.sweeper.get(key) for key in ("params", "points", "evaluations")}
    more = {key: OmegaConf.to_container(value) for key, value in more.items() if OmegaConf.is_config(value)}
    if chosen and not given and not any(text.startswith("hydra.sweeper.p") for text in cfg.hydra.overrides.hydra):
        return str(chosen)
    return f"{chosen or 'sweep'}-{digest([sorted(given), more, cfg.hydra.job.config_name])[:6]}"


def sweep_folder(cfg: DictConfig) -> Path:
    """The folder of a multirun: `hydra.sweep.dir` of the config that all jobs share."""
    return Path(str(OmegaConf.select(cfg, "hydra.sweep.dir")))


def keep_quiet(cfg: DictConfig, config: Mapping[str, Any] | None) -> None:
    """Hydra writes its own files before the job is asked. Where the folder is not ours to write, and on further ranks,
    it writes none. config: of a single run; None where the answer is known already."""
    if config is not None and is_first_rank() and is_ours(folder_of(cfg, config), config):
        return
    with open_dict(cfg.hydra):
        cfg.hydra.output_subdir = None
        cfg.hydra.job_logging = {"version": 1, "root": None, "disable_existing_loggers": False}


def folder_of(cfg: DictConfig, config: Mapping[str, Any]) -> Path:
    """The folder of a single run where it follows from its config; with other resolvers it cannot belong to anybody."""
    text = str(OmegaConf.to_container(cfg.hydra.run, resolve=False)["dir"])  # type: ignore[call-overload,index]
    if "${ima." in text:
        return evaluation_folder(config) if "checkpoint" in config else Path(config["output_dir"]) / run_name(config)
    return Path(text) if "${" not in text else Path(os.devnull)


def is_first_rank() -> bool:
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def is_ours(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run of this config will write into the folder: nobody holds it, it is no other run's and no sweep's,
    and this run is not finished there."""
    if is_held(folder) or any((folder / name).is_file() for name in OF_SWEEPS):
        return False
    if not (folder / RESULT).exists() or config.get("overwrite"):
        return True
    try:
        record = read_record(folder)
    except UserError:
        return False
    return record.is_of(config) and not record.is_ok
