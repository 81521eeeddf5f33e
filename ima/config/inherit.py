"""What an evaluation takes from the run that it evaluates, put into the composed tree before names are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ima.config.overrides import PARSER, targets_given
from ima.config.roots import OF_LMM
from ima.config.values import MISSING
from ima.core.errors import UserError
from ima.core.moved_keys import current_config
from ima.core.trust import named_in, targets_of, trusting
from ima.runs.find import INHERITED, run_config, run_folder
from ima.runs.record import read_record


def inherit(
    cfg: DictConfig,
    chosen: set[str],
    overrides: Sequence[Override],
    trained: Mapping[str, Any] | None,
    conf: Path,
    extra: Sequence[Path],
    several: bool = False,
) -> dict[str, Any]:
    """Fill the open groups of the tree in place; their choices. chosen: groups of which a file is in the tree already.
    trained: the run's config where it has still to be made. extra: a person's own folders of config files, whose
    classes the run's config may name, as may the command line. several: the config is what all jobs share."""
    checkpoint = last_value(overrides, "checkpoint", None if is_missing(cfg) else cfg.get("checkpoint"))
    if several and checkpoint in (None, MISSING):
        checkpoint = swept_checkpoint(cfg)
        if checkpoint is None or (trained is None and not Path(checkpoint).exists()):
            return {}  # each job says by itself what it lacks
    if checkpoint is None or checkpoint == MISSING:
        raise UserError("checkpoint: missing; write checkpoint=outputs/<run>, or lmm=hf lmm.path=<folder>")
    given = {each.key_or_group.lstrip("/") for each in overrides}
    groups = chosen | {name for name in given if "." not in name}
    names = [name for name in INHERITED if not cfg.get(name) and name not in groups]
    if {name.split(".")[0] for name in given | chosen} & {"data", "task"} and "mixture" in names:
        names.remove("mixture")  # one task is measured, not those of the run
    if trained is None:
        with trusting(trusted(str(checkpoint), overrides, extra), conf):
            trained = run_config(str(checkpoint), names)
    trained = current_config(trained)
    for name in names:
        cfg[name] = trained.get(name, cfg.get(name))
    return {name: trained.get("choices", {}).get(name) for name in names}


def is_missing(cfg: DictConfig) -> bool:
    return "checkpoint" not in cfg or OmegaConf.is_missing(cfg, "checkpoint")


def swept_checkpoint(cfg: DictConfig) -> str | None:
    """The first checkpoint that the sweeper varies."""
    options = cfg.hydra.sweeper
    values = (options.get("params") or {}).get("checkpoint")
    if values is not None:
        return str(values.split(",")[0] if isinstance(values, str) else values[0])
    for point in options.get("points") or []:
        for text in point:
            if str(text).startswith("checkpoint="):
                return str(PARSER.parse_override(str(text)).value())
    return None


def last_value(overrides: Sequence[Override], key: str, default: Any) -> Any:
    """What the command line gives a key, the first of several values."""
    for override in reversed(overrides):
        if override.key_or_group == key:
            if override.is_sweep_override():
                return (
                    next(iter(override.sweep_string_iterator()), default) if override.is_discrete_sweep() else default
                )
            return override.value()
    return default


def trusted(checkpoint: str, overrides: Sequence[Override], extra: Sequence[Path]) -> list[str]:
    """Classes and modules that the person named: `trust`, a `_target_` of the command line, files of her own."""
    given = last_value(overrides, "trust", None)
    names = [str(name) for name in given] if isinstance(given, list) else []
    names += targets_given(overrides).values()
    for override in overrides:
        names += targets_of(override.value()) if not override.is_sweep_override() else []
    if extra:
        found = targets_of(read_record(run_folder(checkpoint)).config)
        names += [target for target in found if any(named_in(place, target) for place in extra)]
    return names


def stand_alone(
    cfg: DictConfig, chosen: set[str], overrides: Sequence[Override], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole multimodal model is measured: no run stands behind it. defaults: the config of a training."""
    given = [each.key_or_group for each in overrides]
    for key in given:
        if key.split(".")[0] in ("checkpoint", *OF_LMM):
            raise UserError(f"{key}: not together with lmm, which is a whole model and measured as it is; remove it")
    cfg["checkpoint"] = None
    names = [name for name in INHERITED if name not in OF_LMM and not cfg.get(name)]
    names = [name for name in names if name not in chosen and name not in given]
    for name in names:
        cfg[name] = defaults[name]
    return {name: defaults["choices"].get(name) for name in names}


def repeat(cfg: DictConfig, overrides: Sequence[Override], conf: Path, extra: Sequence[Path]) -> dict[str, Any]:
    """Put the config of the run that `rerun` names in the place of the files', in place; its choices. What the command
    line chooses or sets is for after it. The run gets a name of its own."""
    source = last_value(overrides, "rerun", cfg.get("rerun"))
    if source is None:
        return {}
    folder = run_folder(str(source), "rerun")
    given = {each.key_or_group for each in overrides}
    names = [name for name in (*INHERITED, "optimizer", "scheduler", "callbacks", "init") if name not in given]
    with trusting(trusted(str(source), overrides, extra), conf):
        found = run_config(str(source), names)
    for name in names:
        if name in found:
            cfg[name] = found[name]
    if cfg.get("name") is None and "name" not in given:
        cfg["name"] = f"{folder.name}-rerun"
    return {name: found["choices"].get(name) for name in names if name in found}
