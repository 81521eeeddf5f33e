"""Command line and conf/ to one checked config, without importing what it names.

Hydra composes the groups (defaults lists, experiments as deltas). The rest is done here, because Hydra's refusals are
long and recommend to force the key: every mistake is one UserError with the nearest allowed names. A key is allowed
when the constructor that it goes to has such a parameter, whether or not the yaml file writes it. Nothing that is
composed imports torch.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ima.config.choices import check_package, choices_of, default_choices, default_groups, measured, yaml_message
from ima.config.roots import OF_LMM, ROOTS, check_together, groups_of
from ima.config.validate import show
from ima.config.values import CHOICES_ONLY, MISSING, check_node, put
from ima.core.commands import command_of, name_of
from ima.core.errors import UserError, nearest
from ima.core.moved_keys import current_config
from ima.core.moved_names import current_names
from ima.core.signatures import signature
from ima.core.trust import CONF, named_in, targets_of, trusting
from ima.runs.find import INHERITED, run_config
from ima.runs.identity import MANAGEMENT, STACKED, config_hash

ROOT_TARGETS = {"train": "ima.config.roots.TrainConfig", "evaluate": "ima.config.roots.EvaluateConfig"}
ROOT_TARGETS["sweep"] = "ima.config.roots.SweepConfig"
PARSER = OverridesParser.create()


def compose(
    argv: Sequence[str], root: str = "train", conf: Path = CONF, *, trained: Mapping[str, Any] | None = None
) -> DictConfig:
    """The resolved and validated config of a script. Raises UserError, one line, for any mistake of a person.

    trained: the config of the run that is evaluated, where that run has still to be made."""
    overrides = [parse(text, root, conf) for text in argv]
    groups = default_groups(root, conf)
    values: list[tuple[str, Any]] = []
    chosen: dict[str, str | list[str]] = {}
    for override in overrides:
        name = override.key_or_group
        if name in groups and override.value() is None and default_choices(root, conf)[name] is None:
            chosen.pop(name, None)  # nothing, as the root file has it
            continue
        value = override.value()
        if name == "alignment" and isinstance(value, list):
            base, added = measured(value, choices_of(name, conf))
            chosen[name] = base
            values.append(("alignment.groups", added))
            continue
        if name in groups and not (name in STACKED and isinstance(override.value(), dict)):
            chosen[name] = choose(name, override.value(), conf)
        elif (conf / name).is_dir() and name not in signature(ROOT_TARGETS[root]).parameters:
            raise UserError(f"{name}: {name_of(root)} has no such group; {nearest(name, groups)}")
        elif (conf / name).is_dir() and name not in groups and not isinstance(override.value(), dict):
            raise UserError(
                f"{name}: not a choice of {name_of(root)}, it comes with what is evaluated; write {name}.<key>=value to"
                f" change one of its keys, or {name_of('train')} {name}=<choice> for another run"
            )
        else:
            values.append((name, with_current_names(name, override.value())))
    config, choices = compose_groups(root, chosen, conf)
    config = current_names(config)
    named = {target for target in named_targets(values) if not named_in(conf, target)}
    if root == "evaluate":
        with trusting([*trust_of(values), *named], conf):
            inherit(config, choices, values, chosen, trained)
    names = signature(ROOT_TARGETS[root])
    for key, value in values:
        put(config, key, value, names, choices)
    config = resolve(config)
    config = check_node("", config, names)
    check_groups(root, config)
    config["choices"] = choices
    if root != "sweep":
        config["trust"] = sorted({*config["trust"], *named})
    check_together(config)
    if root == "train" and config.get("name") is None:
        config["name"] = default_name(config, choices, [override.key_or_group for override in overrides])
    return OmegaConf.create(config)


def with_current_names(key: str, value: Any) -> Any:
    """A value of the command line in which targets that have moved have today's names."""
    last = key.rpartition(".")[2]
    return current_names({last: value})[last]


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values."""
    found = OmegaConf.to_container(config)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def parse(text: str, root: str, conf: Path) -> Override:
    """One command line argument as Hydra reads it; no deletions, no lists of values."""
    if text.startswith("-"):
        raise UserError(f"{text}: no such option; {nearest(text, ['--help', '--cfg', '--multirun'])}")
    name, equals, value = text.partition("=")
    known = [*default_groups(root, conf), *signature(ROOT_TARGETS[root]).parameters]
    if text.startswith("~"):
        raise UserError(f"{text}: nothing is deleted on the command line; write key=null, or group=none")
    if not equals:
        raise UserError(f"{text}: not of the form key=value; {nearest(text, known)}")
    if not value.strip():
        raise UserError(f"{name}: no value; write {name}=value, or {name}=null for none")
    if name.lstrip("+").startswith("hydra") and name.lstrip("+")[5:6] in (".", "/", ""):
        where = f"runs land in output_dir/name, sweeps are those of {name_of('sweep')}"
        raise UserError(f"{name}: Hydra's own keys are not used; {where}")
    try:
        override = PARSER.parse_override(text.lstrip("+"))
    except HydraException as error:
        reason = first_line(error)
        raise UserError(f"{text}: cannot be read ({reason}); quote special characters: {name}='\"text\"'") from None
    if override.package is not None or override.type != OverrideType.CHANGE or not override.key_or_group:
        raise UserError(f"{text}: not of the form key=value; {nearest(name, known)}")
    if override.is_sweep_override() and root == "sweep":
        raise UserError(f"{name}: several values, but it is the sweep's own and has one; jobs get names by themselves")
    if override.is_sweep_override():
        raise UserError(f"{name}: several values need a sweep: {command_of('train')} --multirun {text}")
    return override


def choose(group: str, value: Any, conf: Path) -> str | list[str]:
    """The choice(s) of a group after checking that their files exist."""
    allowed = choices_of(group, conf)
    several = value if isinstance(value, list) else [value]
    if isinstance(value, list) and group not in STACKED:
        raise UserError(f"{group}: {show(value)} are several choices, one is taken; {nearest('', allowed)}")
    for item in several:
        if not isinstance(item, str | int) or str(item) not in allowed:
            found = "null" if item is None else item
            raise UserError(f"{group}: no choice {str(found)!r}; {nearest(str(found), allowed)}")
        if several.count(item) > 1:
            raise UserError(f"{group}: {str(item)!r} is chosen twice; name each choice once")
    return [str(item) for item in several] if group in STACKED else str(value)


def compose_groups(root: str, chosen: dict[str, str | list[str]], conf: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config as plain values with interpolations, choice by group) as Hydra's defaults lists give it."""
    for group in set(chosen) & set(CHOICES_ONLY):
        check_package(conf / group / f"{chosen[group]}.yaml")
    arguments = [f"{group}=[{','.join(c)}]" if isinstance(c, list) else f"{group}={c}" for group, c in chosen.items()]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            composed = hydra_compose(root, overrides=arguments, return_hydra_config=True)
        picked = {name: composed.hydra.runtime.choices.get(name) for name in default_groups(root, conf)}
        config = OmegaConf.to_container(composed, resolve=False)
    except yaml.YAMLError as error:
        raise UserError(yaml_message(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"conf/{source_of(root, chosen)}: {first_line(error)}") from None
    except RecursionError:
        raise UserError(f"conf/{source_of(root, chosen)}: its defaults include the file itself; remove that") from None
    assert isinstance(config, dict)
    result = {str(name): value for name, value in config.items() if name != "hydra"}
    for field in dataclasses.fields(ROOTS[root]):
        if field.default_factory is not dataclasses.MISSING:
            result.setdefault(field.name, field.default_factory())
        else:
            result.setdefault(field.name, field.default)
    for group in groups_of(root):
        if not result[group]:  # Hydra gives {} for a file without keys, such as none.yaml
            result[group] = {} if group in STACKED else None
    for group in STACKED:
        if group in picked:
            picked[group] = list(result[group])
    return result, picked


def source_of(root: str, chosen: dict[str, str | list[str]]) -> str:
    return f"experiment/{chosen['experiment']}.yaml" if "experiment" in chosen else f"{root}.yaml"


def first_line(error: Exception) -> str:
    """The first line of an error of Hydra, and the hint below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = f"; {lines[1].rstrip('.')}" if lines[1:] and lines[1].startswith("Did you mean") else ""
    return lines[0].rstrip(".") + hint if lines else type(error).__name__


def inherit(
    config: dict[str, Any],
    choices: dict[str, Any],
    values: list[tuple[str, Any]],
    chosen: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Fill what the evaluation leaves open from the run that it evaluates."""
    if "lmm" in chosen:
        stand_alone(config, choices, values, chosen)
        return
    checkpoint = next((value for key, value in reversed(values) if key == "checkpoint"), config.get("checkpoint"))
    if checkpoint is None or checkpoint == MISSING:
        raise UserError("checkpoint: missing; write checkpoint=outputs/<run>, or lmm=hf lmm.path=<folder>")
    own_data = any(key.split(".")[0] in ("data", "task") for key in [*chosen, *(key for key, _ in values)])
    open_names = [name for name in INHERITED if not config.get(name) and not choices.get(name) and name not in chosen]
    if own_data and "mixture" in open_names:
        open_names.remove("mixture")  # one task is measured, not those of the run
    trained = current_config(trained) if trained else run_config(str(checkpoint), open_names)
    for name in open_names:
        config[name] = trained.get(name, config.get(name))
        choices[name] = trained.get("choices", {}).get(name)


def trust_of(values: list[tuple[str, Any]]) -> list[str]:
    """The `trust` of the command line, before it is checked with all other keys."""
    given = next((value for key, value in reversed(values) if key == "trust"), None)
    return [name for name in given if isinstance(name, str)] if isinstance(given, list) else []


def named_targets(values: list[tuple[str, Any]]) -> set[str]:
    """What the command line itself names as a `_target_`."""
    found: set[str] = set().union(*(targets_of(value) for _, value in values))
    return found | {value for key, value in values if key.endswith("._target_") and isinstance(value, str)}


def stand_alone(
    config: dict[str, Any], choices: dict[str, Any], values: list[tuple[str, Any]], chosen: Mapping[str, Any]
) -> None:
    """A whole multimodal model is measured: no run stands behind it."""
    for key in [*chosen, *(key for key, _ in values)]:
        if key.split(".")[0] in ("checkpoint", *OF_LMM):
            raise UserError(f"{key}: not together with lmm, which is a whole model and measured as it is; remove it")
    config["checkpoint"] = None
    defaults: Any = OmegaConf.to_container(compose([], "train"))
    for name in INHERITED:
        if name not in OF_LMM and not config.get(name) and not choices.get(name) and name not in chosen:
            config[name] = defaults[name]
            choices[name] = defaults["choices"].get(name)


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise UserError(f"{key}: {first_line(error)}; write ${{key}} with a key that is there") from None
    assert isinstance(resolved, dict)
    return {str(name): value for name, value in resolved.items()}


def check_groups(root: str, config: dict[str, Any]) -> None:
    """A group's node has a `_target_`; a stacked group maps names to such nodes."""
    for group in groups_of(root):
        node = config.get(group)
        nodes = (node or {}).items() if group in STACKED else [("", node)] if node else []
        for name, inner in nodes:
            if not isinstance(inner, dict) or "_target_" not in inner:
                key = f"{group}.{name}" if name else group
                shape = "is 'name: {_target_: ...}', since several stack" if group in STACKED else "has a _target_"
                raise UserError(f"{key}: no _target_; each file of conf/{group}/ {shape}")


def default_name(config: dict[str, Any], choices: dict[str, Any], given: list[str]) -> str:
    """The experiment where nothing else was chosen; with other choices a name that tells them apart."""
    experiment = choices.get("experiment")
    if experiment and all(name in ("experiment", *MANAGEMENT) or name.startswith("logger.") for name in given):
        return str(experiment)
    return f"{experiment or f'train-{datetime.date.today():%Y%m%d}'}-{config_hash(config)[:6]}"
