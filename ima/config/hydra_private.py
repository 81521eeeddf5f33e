"""Every private name of Hydra and OmegaConf that is used here, in one place; a test names them one by one.

Hydra promises none of these. `tests/config/test_hydra_private.py` fails where an update has changed one. Who needs one
of them imports it from here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra._internal.defaults_list as lists
import hydra._internal.hydra as application
import hydra._internal.utils as utils
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

__all__ = [
    "CachingConfigRepository",
    "ConfigLoaderImpl",
    "ConfigRepository",
    "create_config_search_path",
    "is_marked",
    "mark",
    "prepare",
]

PLUGINS = Path(__file__).resolve().parents[1] / "sweep" / "plugin"  # our part of the namespace package hydra_plugins
VERSION_BASE = "1.3"
MARK = "ima_filled"
ALL_CHOICES = lists._create_interpolation_map


def prepare() -> None:
    """What `hydra.main` does before it composes; for a config that is composed without it."""
    find_plugin()
    lists._create_interpolation_map = choices_if_needed
    if version.getbase() is None:
        version.setbase(VERSION_BASE)
    setup_globals()


def choices_if_needed(overrides: Any, defaults_list: Any, self_added: bool) -> DictConfig:
    """All choices, which Hydra gathers for every file; only a list with `${...}` in it needs them."""
    needed = any(default.is_interpolation() for default in defaults_list)
    return ALL_CHOICES(overrides, defaults_list, self_added) if needed else DictConfig({})


def find_plugin() -> None:
    """Hydra looks for plugins once, in the parts of a namespace package that are found on sys.path by then."""
    if str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))


def use_loader(make_loader: Callable[..., ConfigLoaderImpl]) -> None:
    """`hydra.main` composes with the loader that `make_loader(config_search_path=...)` makes."""
    application.ConfigLoaderImpl = make_loader  # type: ignore[assignment,misc]


def raise_errors() -> None:
    """`hydra.main` lets every error through instead of printing it and leaving the process."""
    for module in (utils, application):
        module.run_and_report = call  # type: ignore[attr-defined]


def call(function: Callable[[], Any]) -> Any:
    return function()


class Misused(Exception):
    """What argparse has to say about an option."""


def argument_parser() -> argparse.ArgumentParser:
    """Hydra's options; a mistake raises Misused."""
    parser = get_args_parser()

    def error(message: str) -> Any:
        raise Misused(message)

    parser.error = error  # type: ignore[method-assign]
    return parser


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Option as it is written -> what it is."""
    return {text: action for action in parser._actions for text in action.option_strings}


def mark(node: DictConfig, key: str) -> None:
    """Mark a value of a config; copies and pickles keep the mark."""
    child = node._get_node(key)
    child._set_flag(MARK, True)  # type: ignore[union-attr]


def is_marked(node: DictConfig, key: str) -> bool:
    child = node._get_node(key)
    flags = child._metadata.flags if child is not None else None
    return bool(flags and flags.get(MARK))
