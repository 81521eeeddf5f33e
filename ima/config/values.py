"""Names and values of a composed config against the signatures of its nodes; the messages about them.

A node is a mapping with a `_target_`; its keys are the parameters of that constructor, whether or not the yaml file
writes them. `check_key` looks at one dotted key of the command line, `check_node` checks a whole tree and gives it back
with values of the types that were asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ima.config.roots import COMPLETED
from ima.config.synonyms import synonym
from ima.config.validate import fit, is_mapping, show
from ima.core.errors import UserError, nearest
from ima.core.signatures import REQUIRED, Signature, signature
from ima.runs.identity import ADDED

MISSING = "???"
CHOICES_ONLY = ("experiment", "sweep", "multirun")  # groups whose files are deltas: no key of that name is left
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_")


def check_key(
    config: dict[str, Any], key: str, names: Signature, choices: Mapping[str, Any], kind: str = "", value: Any = None
) -> None:
    """Whether a dotted key of the command line is there to be set; every step must be a key of the node that it is
    taken in. config: the whole tree, filled. kind: what stands before the key: "", +, ++ or ~. Raises UserError."""
    node: Any = config
    allowed: Iterable[str] = names.parameters
    free = False  # inside a parameter that is a mapping with any keys
    path: list[str] = []
    parts = key.split(".")
    for part in parts:
        place = ".".join(path)
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f"{key}: {place} is a list of {len(node)}; allowed: 0 to {len(node) - 1}")
            step: Any = int(part)
        elif isinstance(node, dict):
            parameters = names.parameters if not path else {}
            if "_target_" in node:
                target = at(place, str(node["_target_"]))
                parameters = target.parameters
                allowed = [part] if target.open else [*parameters, *SPECIAL]
            elif path:
                allowed = [part] if free else node
            free = free or (part in parameters and is_mapping(parameters[part].annotation))
            if part not in allowed and part not in node:
                raise UserError(unknown(key, part, place, allowed, config))
            step = part
        elif isinstance(node, str) and "${" in node:
            return  # what it stands for is seen when it is resolved
        else:
            chosen = f" ({place}={choices[place]})" if choices.get(place) else ""
            raise UserError(f"{key}: {place} is {show(node)}{chosen} and has no keys")
        path.append(part)
        if len(path) < len(parts):
            if isinstance(node, dict) and step not in node:
                raise UserError(f"{key}: {'.'.join(path)} is not set; write {'.'.join(path)}={{...}}")
            node = node[step]
    there = isinstance(node, list) or step in node
    if kind == "~" and not there:
        raise UserError(f"~{key}: not set, so there is nothing to delete")
    if kind == "+" and there and node[step] not in (None, MISSING) and not isinstance(value, dict | list):
        raise UserError(f"+{key}: it is there already; write {key}=value without '+'")


def unknown(key: str, part: str, place: str, allowed: Iterable[str], config: dict[str, Any]) -> str:
    """The message for a name that is not there, with the place where such a name is, if any."""
    if not place:
        homes = [f"{home}.{part}" for home, node in config.items() if part in node_names(home, node)]
        if homes:
            return f"{key}: no such key; did you mean {' or '.join(homes)}?"
        if part in CHOICES_ONLY and part != key:
            return (
                f"{key}: {part}=<choice> takes a file of conf/{part}; write {key.partition('.')[2]}=value for its key"
            )
        allowed = [*allowed, *(["experiment"] if "encoder" in config else ["sweep"])]
    if known := synonym(part, place, allowed):
        return f"{key}: no such key; {known}"
    names = [name for name in allowed if not name.startswith("_")]
    where = f" in {place}" if place else ""
    return f"{key}: no {part!r}{where}; {nearest(part, names)}" if names else f"{key}: {place} has no keys"


def node_names(place: str, node: Any) -> Iterable[str]:
    if isinstance(node, dict) and "_target_" in node:
        return at(place, str(node["_target_"])).parameters
    return ()


def at(place: str, target: str) -> Signature:
    """The signature of a node's target, without what `run` fills in."""
    try:
        found = signature(target)
    except UserError as error:
        raise UserError(f"{place}.{error}") from None
    hidden = COMPLETED.get(place.rpartition(".")[2], ())
    kept = {name: parameter for name, parameter in found.parameters.items() if name not in hidden}
    if place not in ADDED:
        return dataclasses.replace(found, parameters=kept)
    added = signature(ADDED[place])
    return dataclasses.replace(found, parameters=kept | added.parameters, ranges=found.ranges | added.ranges)


def check_node(place: str, node: dict[str, Any], names: Signature) -> dict[str, Any]:
    """Names and values of a node against its signature, and of the nodes inside; values as the types asked for."""
    checked: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{place}.{name}" if place else name
        if name in SPECIAL:
            checked[name] = value
            continue
        parameter = names.parameters.get(name)
        if parameter is None and not names.open:
            raise UserError(unknown(key, name, place, names.parameters, node))
        if value == MISSING:
            raise UserError(f"{key}: missing; write {key}=value")
        value = check_inside(key, value)
        checked[name] = fit(key, value, parameter, names.ranges) if parameter else value
    if not node.get("_partial_"):
        for name, parameter in names.parameters.items():
            if parameter.default is REQUIRED and name not in node:
                key = f"{place}.{name}" if place else name
                raise UserError(f"{key}: missing; write {key}=value")
    return checked


def check_inside(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return check_node(key, value, at(key, str(value["_target_"])))
        return {name: check_inside(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list):
        return [check_inside(f"{key}.{index}", item) for index, item in enumerate(value)]
    if value == MISSING:
        raise UserError(f"{key}: missing; write {key}=value")
    return value
