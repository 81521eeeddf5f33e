"""Nodes of a checked config made into what their `_target_` names; a person's mistakes become lines that name the key.

Parts (an encoder, a task, ...) are made with everything inside them. Settings (loader, evaluation, alignment, an
entry of a mixture, a stage) are made from plain values: lists become tuples, and nodes inside an entry stay nodes, to
be made in their turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ima.config.settings import Alignment, Entry, Evaluation, Flags, Loader, Stage
from ima.core.errors import UserError, prefix_errors
from ima.core.extras import missing_extra

Kind = TypeVar("Kind", Loader, Evaluation, Alignment, Entry, Stage)


def build(config: Mapping[str, Any], name: str, prefix: str = "") -> Any:
    """Instantiate a node. What its constructor refuses is the user's to mend: one line that begins with the key."""
    with prefix_errors(f"{prefix}{name}"):
        return made(config[name])


def made(node: Any, **special: Any) -> Any:
    try:
        return instantiate(node, **special)
    except InstantiationException as error:
        if lacking := missing_extra(error):
            raise UserError(lacking) from error
        if not isinstance(error.__cause__, UserError | OSError):
            raise
        raise error.__cause__ from error


def build_settings(kind: type[Kind], node: Mapping[str, Any], key: str) -> Kind:
    """The settings that a node's `_target_` makes: of `kind`, of a class derived from it, or of one with the same
    attributes. key: of the node, for messages. A node without a `_target_` is of `kind` itself."""
    home = f"{kind.__module__}.{kind.__name__}"
    with prefix_errors(key):
        call = made({"_target_": home, **node}, _partial_=True, _recursive_=False, _convert_="all")
        found = call.func(*call.args, **lists_to_tuples(call.keywords))
    lacking = [field.name for field in dataclasses.fields(kind) if not hasattr(found, field.name)]
    if lacking:
        raise UserError(
            f"{key}._target_: {node['_target_']!r} makes nothing with {', '.join(lacking[:3])}; derive it from {home}"
        )
    return found


def lists_to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings are frozen: lists of a config are tuples there."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def flags_of(config: Mapping[str, Any]) -> Flags:
    """Those flags of the trainer that are read here; the trainer itself need not be made for it."""
    known = {field.name for field in dataclasses.fields(Flags)}
    return Flags(**{name: value for name, value in (config.get("trainer") or {}).items() if name in known})


def loader_of(config: Mapping[str, Any]) -> Loader:
    return build_settings(Loader, config["loader"], "loader")


def evaluation_of(config: Mapping[str, Any]) -> Evaluation:
    return build_settings(Evaluation, config["evaluation"], "evaluation")


def alignment_of(config: Mapping[str, Any]) -> Alignment | None:
    """None where nothing is measured."""
    return build_settings(Alignment, config["alignment"], "alignment") if config.get("alignment") else None
