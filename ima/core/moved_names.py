"""Names of modules, classes and functions that have moved: the table, and how a name from a file is brought up to date.

Configs, `result.json` files, mask headers and folders of people's own code keep the dotted names of the day they were
written. `current_name` gives today's name; `ima.core.moved_imports` lets old import statements go on working. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Old dotted name -> new dotted name. A key is a module, a package (everything below it moves along) or one name inside
# a module; the longest key that fits decides. Where the old module's name is that of another module or package today
# (`ima.config`), list the names inside it instead of the module.
MOVED: dict[str, str] = {}


def current_name(target: str, moved: Mapping[str, str] | None = None) -> str:
    """Today's dotted name of `target`; a name that has not moved is given back as it is."""
    table = MOVED if moved is None else moved
    key = target
    while key:
        if key in table:
            return target if is_within(target, table[key]) else table[key] + target[len(key) :]
        key = key.rpartition(".")[0]
    return target


def is_within(name: str, place: str) -> bool:
    """Whether a dotted name is `place` or lies below it."""
    return name == place or name.startswith(f"{place}.")


def current_names(value: Any, moved: Mapping[str, str] | None = None) -> Any:
    """A copy of nested plain values in which every `_target_` has its current name."""
    if isinstance(value, Mapping):
        return {
            key: current_name(item, moved)
            if key == "_target_" and isinstance(item, str)
            else current_names(item, moved)
            for key, item in value.items()
        }
    return [current_names(item, moved) for item in value] if isinstance(value, list) else value
