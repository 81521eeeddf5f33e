"""Stages: trainings that one command runs one after the other, each from the adapters (and LLM) of the one before.

A stage is a small delta over the config. The last one is the run itself; those before lie in folders below it. A run's
config keeps its stages up to its own, so that each run folder tells alone how it was made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ima.config.instantiation import build_settings
from ima.config.settings import Evaluation, Flags, Loader, OptimizerKeys, Stage
from ima.core.errors import UserError, nearest

SETTINGS = {"loader": Loader, "evaluation": Evaluation, "trainer": Flags, "optimizer": OptimizerKeys}


def stage_configs(config: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """(run name, config) of each training, in order; the last is the run `name` itself."""
    stages: dict[str, Any] = config.get("stage") or {}
    names = list(stages)
    out = []
    for index, stage in enumerate(names[:-1]):
        kept = {key: stages[key] for key in names[: index + 1]}
        out.append((f"{name}/{stage}", {**config, "stage": kept}))
    return [*out, (name, dict(config))]


def apply_stage(config: Mapping[str, Any], training: bool = True) -> dict[str, Any]:
    """The config with its last stage applied. An evaluation measures all entries, whichever were trained on."""
    out = dict(config)
    if not config.get("stage"):
        return out
    name, node = list(config["stage"].items())[-1]
    stage = build_settings(Stage, node, f"stage.{name}")
    if stage.train is not None:
        out["llm"] = {**config["llm"], "train": stage.train}
    for group, values in changes_of(stage).items():
        if group in config:  # an evaluation has no optimizer
            out[group] = {**config[group], **values}
    if stage.entries is not None and training:
        for entry in stage.entries:
            if entry not in config["mixture"]:
                raise UserError(f"stage.{name}.entries: no entry {entry!r}; {nearest(entry, config['mixture'])}")
        out["trained_entries"] = list(stage.entries)
    return out


def changes_of(stage: Stage) -> dict[str, dict[str, Any]]:
    """What a stage sets, by group. A class of one's own may add further fields of these groups."""
    names = {field.name: group for group, kind in SETTINGS.items() for field in dataclasses.fields(kind)}
    names |= {"lr": "optimizer", "weight_decay": "optimizer"}
    fields = dataclasses.fields(stage if dataclasses.is_dataclass(stage) else Stage)
    out: dict[str, dict[str, Any]] = {}
    for name in (field.name for field in fields):
        group, value = names.get(name), getattr(stage, name)
        if group is not None and value is not None:
            out.setdefault(group, {})[name] = value
    return out
