"""The files of conf/: which groups a root file has, which choices a group has, and what is wrong with a file."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, get_args

import yaml

from ima.config.settings import GroupName
from ima.core.errors import UserError, nearest
from ima.core.files import read_utf8
from ima.core.trust import CONF


@functools.lru_cache
def default_groups(root: str, conf: Path) -> list[str]:
    """The groups of a root file's defaults list."""
    return list(default_choices(root, conf))


@functools.lru_cache
def default_choices(root: str, conf: Path) -> dict[str, Any]:
    """Group -> what a root file chooses of it; None for nothing."""
    entries = read_yaml(conf / f"{root}.yaml").get("defaults", [])
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {name.removeprefix("optional "): choice for name, choice in pairs}


def measured(items: list[Any], allowed: list[str]) -> tuple[str, list[str]]:
    """(choice, groups) of `alignment=[full,maps,null]`: groups of measures combine, over one choice (by default
    `default`). `null` is a group's name here."""
    names = ["null" if item is None else str(item) for item in items]
    groups = get_args(GroupName)
    bases = [name for name in names if name not in groups]
    for name in bases:
        if name not in allowed:
            raise UserError(f"alignment: no choice {name!r}; {nearest(name, [*allowed, *groups])}")
    if len(bases) > 1 or len(set(names)) < len(names):
        raise UserError(
            f"alignment: {', '.join(names)}: groups combine with one choice; groups are {', '.join(groups)}"
        )
    return (bases or ["default"])[0], [name for name in names if name in groups]


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(read_utf8(path)) or {}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the config files lie in {CONF}") from None
    except yaml.YAMLError as error:
        raise UserError(yaml_message(error, path)) from None


def yaml_message(error: yaml.YAMLError, path: Path | None = None) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path or (mark.name if mark else 'a yaml file')}:{mark.line + 1 if mark else 1}"
    return f"{where}: not yaml ({getattr(error, 'problem', None) or 'cannot be read'})"


def choices_of(group: str, conf: Path) -> list[str]:
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def check_package(path: Path) -> None:
    """A delta over the whole config says so in its header; without it Hydra puts its keys below its own name."""
    if not re.search(r"^#\s*@package\s+_global_", read_utf8(path), flags=re.MULTILINE):
        raise UserError(f"conf/{path.parent.name}/{path.name}: begin it with the line '# @package _global_'")
