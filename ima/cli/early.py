"""What is refused before torch is imported: mistakes about data, splits, layers and encoders that need no model.

The run itself refuses all of it too, after half a minute of imports and weights. Here the data sources are made, which
read names and annotation files only; of encoders and LLMs nothing is loaded. What cannot be known so is left to the
run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ima.cli.llm_sizes import llm_size
from ima.config.instantiation import build
from ima.core.commands import name_of
from ima.core.errors import UserError
from ima.core.signatures import Module, read_module, resolve

SLOW = ("ima.data.corpora.hub.",)  # reads whole tables, or asks the hub, when it is made
NUM_NAMED = 8


def refuse_early(root: str, config: Mapping[str, Any]) -> None:
    """Raises UserError."""
    entries = sources_of(config)
    several = bool(config.get("mixture"))
    for prefix, (source, encoder) in entries.items():
        if root == "train" and "train" not in source.splits:
            raise UserError(
                f"{prefix}data: {source.name} has no training split; measure a trained adapter on it with "
                f"{name_of('evaluate')} checkpoint=outputs/<run> data=..."
            )
        if not several:
            check_splits(config, source)
        if root == "train":
            check_encoder(prefix, encoder, source)
    check_layers(config)


def sources_of(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Prefix of its keys -> source and encoder's node, as far as they are known here."""
    nodes = {"": config} if not config.get("mixture") else {
        f"mixture.{name}.": entry for name, entry in config["mixture"].items()
    }  # fmt: skip
    found = {}
    for prefix, entry in nodes.items():
        node = entry.get("data") or {}
        target = str(node.get("_target_") or "")
        if target.startswith("ima.data.") and not target.startswith(SLOW):
            encoder = entry.get("encoder") or config.get("encoder")
            found[prefix] = build({"data": node}, "data", prefix), encoder
    return found


def check_splits(config: Mapping[str, Any], source: Any) -> None:
    for track in (config.get("evaluation") or {}).get("tracks") or ():
        if track not in source.splits:
            raise UserError(f"evaluation.tracks: {source.name} has no {track!r}; it has {', '.join(source.splits)}")
    split = (config.get("alignment") or {}).get("split", "val")
    if split not in source.splits:
        raise UserError(f"alignment.split: {split!r} is no split of {source.name}; it has {', '.join(source.splits)}")


def check_encoder(prefix: str, node: Any, source: Any) -> None:
    kind = modality_of(node) if isinstance(node, Mapping) else None
    if kind is not None and kind != source.modality:
        raise UserError(
            f"{prefix}encoder: {str(node['_target_']).rpartition('.')[2]} is for {kind}, data {source.name} is "
            f"{source.modality}; choose an encoder for {source.modality} ({name_of('train')} --help lists them)"
        )


def check_layers(config: Mapping[str, Any]) -> None:
    layers, num = (config.get("alignment") or {}).get("layers"), num_blocks(config.get("llm") or {})
    if layers and num is not None and not 0 <= min(layers) <= max(layers) <= num:
        raise UserError(f"alignment.layers: {sorted(layers)[:NUM_NAMED]} must lie in 0..{num}, the blocks of the LLM")


def num_blocks(llm: Mapping[str, Any]) -> int | None:
    if str(llm.get("_target_")).endswith(".tiny"):
        return int(llm["num_blocks"]) if "num_blocks" in llm else None
    size = llm_size(llm)
    return None if size is None else size.blocks


def modality_of(node: Mapping[str, Any]) -> str | None:
    """Of an encoder's node: its key, else what its class says in its body; None where neither tells."""
    target = str(node.get("_target_") or "")
    if "modality" in node:
        return str(node["modality"])
    module = read_module(target.rpartition(".")[0])
    found = resolve(module, target.rpartition(".")[2]) if module else None
    return said_by_class(*found) if found else None


def said_by_class(module: Module, definition: ast.stmt) -> str | None:
    if not isinstance(definition, ast.ClassDef):
        return None
    for statement in definition.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="modality")], value=ast.Constant(value=str() as said)):
                return said
    for base in definition.bases:
        found = resolve(module, base.id) if isinstance(base, ast.Name) else None
        if found is not None and (value := said_by_class(*found)):
            return value
    return None
