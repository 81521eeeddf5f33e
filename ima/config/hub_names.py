"""What a config wants of the Hugging Face hub that lies neither here nor in the local cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.network import hub_folder
from ima.core.signatures import signature

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
OF_HUB = "hub:"


def hub_names(config: Any) -> list[str]:
    """Names of models and data sets, each once."""
    return list(dict.fromkeys(found(config)))


def found(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith(OF_HUB):
        yield value.removeprefix(OF_HUB)
    elif isinstance(value, Mapping):
        if "_target_" in value:
            yield from of_node(value)
        for each in value.values():
            yield from found(each)
    elif isinstance(value, list):
        for each in value:
            yield from found(each)


def of_node(node: Mapping[str, Any]) -> Iterator[str]:
    """`path` of a model or a table; weights of timm, by `name`."""
    path = node.get("path")
    if isinstance(path, str) and NAME.fullmatch(path) and not Path(path).exists():
        if all(hub_folder(path, kind) is None for kind in ("models", "datasets")):
            yield path
        return
    try:
        parameters = signature(str(node["_target_"])).parameters
    except UserError:
        return
    if {"pretrained", "checkpoint", "name"} <= set(parameters):
        wants = node.get("pretrained", True) and not node.get("checkpoint")
        if wants and hub_folder(f"timm/{node.get('name')}") is None:
            yield f"timm/{node.get('name')}"
