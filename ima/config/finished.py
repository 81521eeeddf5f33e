"""What a run is given: the composed tree as plain, resolved, checked values, with the choices that made it.

`${hydra:...}` stays as text until the job runs, since Hydra knows these values only then.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ima.config.choices import default_choices, default_groups
from ima.config.fill import written
from ima.config.roots import check_together, groups_of
from ima.config.values import check_node
from ima.core.errors import UserError, nearest
from ima.core.moved_names import current_names
from ima.core.signatures import signature
from ima.core.trust import CONF, Trust, named_in, targets_of
from ima.runs.identity import MANAGEMENT, STACKED, config_hash

ROOT_TARGETS = {"train": "ima.config.roots.TrainConfig", "evaluate": "ima.config.roots.EvaluateConfig"}
HYDRA = "${hydra:"
NO_CHOICES = ("sweep", "multirun")  # how runs are started, not what they are


def root_of(cfg: Mapping[str, Any]) -> str:
    return "evaluate" if "checkpoint" in cfg else "train"


def finished(
    cfg: DictConfig,
    root: str | None = None,
    conf: Path | None = None,
    hydra: DictConfig | None = None,
    running: bool = False,
) -> dict[str, Any]:
    """The config of a run from what Hydra composed. hydra: its own node, where it is not in `cfg`. running:
    `${hydra:...}` can be resolved. Raises UserError for the first value that does not fit."""
    root, hydra = root or root_of(cfg), cfg.hydra if hydra is None else hydra
    conf = conf or conf_of(hydra)
    names = signature(ROOT_TARGETS[root])
    tree = written(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    config = current_names(resolve(tree, running))
    config = {name: value for name, value in config.items() if name in names.parameters}
    for group in groups_of(root):
        if not config.get(group):
            config[group] = {} if group in STACKED else None
    config = check_node("", config, names)
    chosen = hydra.runtime.choices
    named = [name for name in default_groups(root, conf) if name not in NO_CHOICES]
    choices = {name: plain_choice(chosen.get(name)) for name in named}
    if root == "evaluate":
        choices |= {str(name): plain_choice(chosen[name]) for name in chosen if name in names.parameters}
    for name, value in choices.items():
        if name in STACKED:
            choices[name] = list(config.get(name) or {})
        elif isinstance(value, list):
            choices[name] = "+".join(map(str, value))
    check_groups(root, config, conf)
    config["choices"] = choices
    trust = Trust(tuple(config["trust"]), conf)
    outside = {target for target in targets_of(config) if not is_ours(target) and not is_named(conf, target)}
    config["trust"] = sorted({*config["trust"], *(target for target in outside if not trust.allows(target))})
    check_together(config)
    if root == "train" and config.get("name") is None:
        given = [text.lstrip("+~").partition("=")[0] for text in hydra.overrides.task]
        config["name"] = default_name(config, choices, given)
    return config


def is_ours(target: str) -> bool:
    return target.split(".")[0] == "ima"


def conf_of(hydra: DictConfig) -> Path:
    """The folder of the primary config."""
    for source in hydra.runtime.config_sources:
        if source.provider == "main" and source.schema == "file":
            return Path(str(source.path))
    return CONF


@functools.lru_cache
def is_named(conf: Path, target: str) -> bool:
    return named_in(conf, target)


def plain_choice(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def resolve(config: dict[str, Any], running: bool) -> dict[str, Any]:
    kept: dict[str, str] = {}

    def hide(value: Any) -> Any:
        if isinstance(value, str) and HYDRA in value:
            kept[f"<hydra {len(kept)}>"] = value
            return f"<hydra {len(kept) - 1}>"
        if isinstance(value, dict):
            return {key: hide(item) for key, item in value.items()}
        return [hide(item) for item in value] if isinstance(value, list) else value

    def show(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: show(item) for key, item in value.items()}
        if isinstance(value, list):
            return [show(item) for item in value]
        for word, text in kept.items() if isinstance(value, str) and "<hydra " in value else ():
            value = value.replace(word, text)
        return value

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config if running else hide(config)), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{key}: {lines[0].rstrip('.')}; write ${{key}} with a key that is there") from None
    assert isinstance(resolved, dict)
    return {str(name): show(value) for name, value in resolved.items()}


def check_groups(root: str, config: Mapping[str, Any], conf: Path) -> None:
    """A group's node has a `_target_`; a stacked group maps names to such nodes; what must be there is there."""
    for group in groups_of(root):
        node = config.get(group)
        nodes = (node or {}).items() if group in STACKED else [("", node)] if node else []
        for name, inner in nodes:
            if not isinstance(inner, dict) or "_target_" not in inner:
                key = f"{group}.{name}" if name else group
                shape = "is 'name: {_target_: ...}', since several stack" if group in STACKED else "has a _target_"
                raise UserError(f"{key}: no _target_; each file of conf/{group}/ {shape}")
        is_needed = default_choices(root, conf).get(group) is not None and group not in STACKED
        if not node and is_needed and not (conf / group / "none.yaml").is_file():
            names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
            raise UserError(f"{group}: nothing is chosen; {nearest('', names)}")


def default_name(config: dict[str, Any], choices: Mapping[str, Any], given: Sequence[str]) -> str:
    """The experiment where nothing else was chosen; with other choices a name that tells them apart."""
    experiment = choices.get("experiment")
    if experiment and all(name in ("experiment", *MANAGEMENT) or name.startswith("logger.") for name in given):
        return str(experiment)
    return f"{experiment or f'train-{datetime.date.today():%Y%m%d}'}-{config_hash(config)[:6]}"
