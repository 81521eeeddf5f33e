"""Every settable key of a composed tree with its default, read from the constructors' signatures.

Files stay deltas: what they do not write is added here, between Hydra's merge of the files and the command line, so
that plain overrides, `--cfg` and completion know every key, of classes of a person's own too. Nothing is imported.
What was added and is still the default is taken out again before a run gets its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ima.config.hydra_private import is_marked, mark
from ima.config.validate import is_mapping
from ima.config.values import MISSING, at
from ima.core.signatures import REQUIRED, Parameter, Signature, Source
from ima.runs.identity import canonical, default_of, spelled

PLAIN = (bool, int, float, str, type(None))


def fill(config: DictConfig, names: Signature) -> None:
    """Add to the root and to every node below what they leave to their defaults, in place. names: of the root."""
    add(config, names, set())
    for name in list(config.keys()):
        if name != "hydra":
            fill_below(config, str(name), str(name))


def fill_below(parent: DictConfig | ListConfig, key: Any, place: str) -> None:
    node = inside(parent, key)
    if isinstance(node, DictConfig):
        target = inside(node, "_target_")
        if isinstance(target, str):
            add(node, at(place, target), set(), partial=bool(inside(node, "_partial_")))
        for name in list(node.keys()):
            fill_below(node, name, f"{place}.{name!s}")
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            fill_below(node, index, f"{place}.{index}")


def add(node: DictConfig, names: Signature, hidden: set[Any], partial: bool = False) -> None:
    """The parameters that a node does not write; a required one is `???`. What takes any key takes it without `+`."""
    if names.open:
        OmegaConf.set_struct(node, False)
    written = set(node.keys()) | hidden
    for name, parameter in names.parameters.items():
        if name not in written:
            value = plain_default(parameter)
            if value is REQUIRED and not partial:
                value = MISSING
            if value is not REQUIRED and not isinstance(value, Source):
                node[name] = value
                mark(node, name)
        if is_mapping(parameter.annotation) and isinstance(child := inside(node, name), DictConfig):
            OmegaConf.set_struct(child, False)


def inside(node: DictConfig | ListConfig, key: Any) -> Any:
    """The value at a key; None where it is missing or refers to something."""
    if isinstance(node, DictConfig) and key not in node.keys():  # noqa: SIM118 (a missing value is not `in` the node)
        return None
    return None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]


def plain_default(parameter: Parameter) -> Any:
    """REQUIRED, a Source where the default is not plain data, or the value as a config can hold it."""
    if parameter.default is REQUIRED:
        return REQUIRED
    value = default_of(parameter)
    return value if isinstance(value, Source) or not is_plain(value) else listed(value)


def is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return isinstance(value, PLAIN)


def listed(value: Any) -> Any:
    """Tuples as lists, as a config has them."""
    if isinstance(value, list | tuple):
        return [listed(item) for item in value]
    return {key: listed(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def written(config: DictConfig) -> dict[str, Any]:
    """The tree as plain values, interpolations as text, without what `fill` added and nobody changed."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for name in plain:
        strip(inside(config, name), plain[name], str(name))
    return {str(name): value for name, value in plain.items()}


def strip(node: Any, plain: Any, place: str) -> None:
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            strip(inside(node, index), plain[index], f"{place}.{index}")
    if not isinstance(node, DictConfig):
        return
    target = inside(node, "_target_")
    parameters = at(place, target).parameters if isinstance(target, str) else {}
    for key in list(plain):
        if is_marked(node, key) and key in parameters:
            default = plain_default(parameters[key])
            if default is not REQUIRED and spelled(canonical(default)) == spelled(canonical(plain[key])):
                del plain[key]
                continue
        strip(inside(node, key), plain[key], f"{place}.{key}")
