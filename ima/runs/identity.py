"""The identity of a run: a hash of what changes its numbers, and nothing else.

It is made from the names of the classes and those arguments that differ from the constructor's default, in one
canonical spelling. Where a class lives, which defaults are spelled out, what makes a run faster and where it runs are
not in it. A key that is added later with a default changes no hash. When a constructor's default changes, runs of
before would be taken for runs of today: then raise IDENTITY.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.moved_keys import current_config
from ima.core.moved_names import current_name
from ima.core.signatures import REQUIRED, Parameter, Source, read_module, resolve, signature
from ima.core.trust import recorded_dtype

IDENTITY = 3  # the version of the rule; results without the key were written before there was one
PACKAGE = "ima"
STACKED = ("intervention", "mixture", "stage", "callbacks")  # groups of which several choices are taken at once
# Keys that no number depends on.
MANAGEMENT = (
    "name",
    "output_dir",
    "resume",
    "overwrite",
    "logger",
    "loggers",
    "choices",
    "offline",
    "trust",
    "objective",
    "rerun",
)
# What only changes how fast a run is and where, by group.
SPEED_AND_PLACE: dict[str, tuple[str, ...]] = {
    "loader": ("num_workers",),
    "llm": ("fast", "compile", "activation_budget"),
    "trainer": (
        "accelerator", "devices", "num_nodes", "strategy", "profiler", "enable_progress_bar", "enable_model_summary",
        "enable_checkpointing", "num_sanity_val_steps", "detect_anomaly", "fast_dev_run",
    ),
    "callbacks": ("every_num_steps",),
}  # fmt: skip
# Groups whose class is often another package's: our dataclass of further keys, or of those flags that are read here.
ADDED: dict[str, str] = {
    "trainer": "ima.config.settings.Flags",
    "optimizer": "ima.config.settings.OptimizerKeys",
    "scheduler": "ima.config.settings.SchedulerKeys",
}
PATHS = ("checkpoint", "init")
# Classes that were renamed while IDENTITY stayed: the name of today -> the name that hashes keep.
KEPT_NAMES: dict[str, str] = {}


def config_hash(config: Mapping[str, Any]) -> str:
    """The identity of a composed config of train.py or evaluate.py, twelve hexadecimal digits."""
    return digest(canonical_config(config))


def identified(config: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says of its identity."""
    return {"config_hash": config_hash(config), "identity": IDENTITY}


def digest(value: Any) -> str:
    """A hash of plain values that does not see how they are spelled."""
    return hashlib.sha256(spelled(canonical(value)).encode()).hexdigest()[:12]


def spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that decide its result. Choices that stack are a list: their order may matter."""
    defaults = defaults_of(f"ima.config.roots.{'EvaluateConfig' if 'checkpoint' in config else 'TrainConfig'}")
    out: dict[str, Any] = {}
    for name, value in current_config(config).items():
        if name in MANAGEMENT or value is None or value in ({}, []):
            continue
        if name in PATHS:
            value = os.path.normpath(str(value))
        left_out = SPEED_AND_PLACE.get(name, ())
        if name in STACKED and isinstance(value, Mapping):
            found: Any = [[key, canonical(node, left_out)] for key, node in value.items()]
        else:
            found = canonical(value, left_out, defaults_of(ADDED[name]) if name in ADDED else {})
        if spelled(found) != spelled(canonical(defaults.get(name))):
            out[name] = found
    return out


def canonical(value: Any, left_out: Collection[str] = (), added: Mapping[str, Any] | None = None) -> Any:
    """One spelling for equal values: 1 for 1.0, lists for tuples, nodes without the defaults of their constructors.
    left_out: arguments of a node that do not count. added: defaults of keys that its constructor does not have."""
    if isinstance(value, Mapping) and "_target_" in value:
        return canonical_node(value, left_out, added or {})
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, Path) else value


def canonical_node(
    node: Mapping[str, Any], left_out: Collection[str] = (), added: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """{class, arguments that differ from their defaults}."""
    known = dict(added or {}) | defaults_of(str(node["_target_"]))
    defaults = {name: spelled(canonical(value)) for name, value in known.items()}
    kept = {
        str(name): canonical(value)
        for name, value in node.items()
        if not str(name).startswith("_") and name not in left_out
    }
    kept = {name: value for name, value in kept.items() if spelled(value) != defaults.get(name)}
    return {"class": bare_name(str(node["_target_"])), "arguments": kept}


def bare_name(target: str) -> str:
    """The name of a class or function without its module; outside of this package with it, to be told apart."""
    name = current_name(target)
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return name
    cuts = (cut for cut in range(len(parts) - 1, 1, -1) if read_module(".".join(parts[:cut])) is not None)
    bare = ".".join(parts[next(cuts, len(parts) - 1) :])
    return KEPT_NAMES.get(bare, bare)


def arguments_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a node's constructor is called with, as far as the config and the defaults tell."""
    given = {str(name): value for name, value in node.items() if not str(name).startswith("_")}
    return defaults_of(str(node["_target_"])) | given


def with_dtype(node: Mapping[str, Any], facts: Mapping[str, Any], source: Path | str = "result.json") -> dict[str, Any]:
    """The node of an LLM whose dtype was left to the machine (`auto`), with the dtype that a run's facts tell of.
    Raises UserError for facts (of the file `source`) that tell of something else: they may be somebody else's."""
    chosen = recorded_dtype(facts, "llm_dtype", source)
    return dict(node) | ({"dtype": chosen} if chosen and arguments_of(node).get("dtype") == "auto" else {})


def defaults_of(target: str) -> dict[str, Any]:
    """Parameter -> default; empty for a target that is not there (any longer)."""
    try:
        parameters = signature(target).parameters.values()
    except UserError:
        return {}
    return {each.name: default_of(each) for each in parameters if each.default is not REQUIRED}


def default_of(parameter: Parameter) -> Any:
    """The value of a default, also where the source names a constant or an empty container; a Source where the source
    does not tell it."""
    default = parameter.default
    if not isinstance(default, Source):
        return default
    empty: dict[str, Any] = {"dict": {}, "list": [], "tuple": []}
    found = resolve(parameter.module, default) if default.isidentifier() else None
    value = getattr(found[1], "value", None) if found is not None else None
    try:
        return ast.literal_eval(value) if value is not None else empty.get(default, default)
    except ValueError:
        return default
