"""Config files and merged trees that one process reads once: each job of a sweep asks for the same files.

A file is read again when it changes on disk (its time, size or inode); a tree is merged again when its list of files or
one of these files changes. Hydra only looks at the files that are kept here; whatever merging may change is a copy, and
so is every tree that is given out.
"""

from __future__ import annotations

import collections
import copy
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from ima.config.hydra_private import CachingConfigRepository, ConfigRepository

MOST_TREES = 32  # of a megabyte or less
FILES: dict[tuple[str, str], tuple[Hashable, Any]] = {}  # (folder, path inside) -> (stamp, what Hydra loaded)
TREES: collections.OrderedDict[Hashable, DictConfig] = collections.OrderedDict()


class Stored:
    """A node of Hydra's ConfigStore, equal only to itself."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and other.node is self.node

    def __hash__(self) -> int:
        return id(self.node)


class FileRepository(ConfigRepository):
    """The files of a search path, each parsed once."""

    def load_config(self, config_path: str) -> Any:
        place, stamp = self.stamped(config_path)
        known = FILES.get(place)
        if known is None or known[0] != stamp:
            known = stamp, super().load_config(config_path)
            if stamp is not None:
                FILES[place] = known
        return known[1]

    def stamped(self, config_path: str) -> tuple[tuple[str, str], Hashable]:
        """Where Hydra finds a config, and what changes when the config does; None where no config is found."""
        for source in self.sources:
            if source.is_config(config_path):
                place = f"{source.scheme()}://{source.path}", source._normalize_file_name(config_path)
                return place, stamp_of(source.scheme(), source.path, place[1])
        return ("", config_path), None


def stamp_of(scheme: str, folder: str, path: str) -> Hashable:
    if scheme == "structured":
        return Stored(ConfigStore.instance()._load(path).node)
    if scheme != "file":
        return scheme  # a file of an installed package
    found = os.stat(os.path.join(folder, path))
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class Copies(CachingConfigRepository):
    """What merging may change: every file is a copy."""

    def __init__(self, files: CachingConfigRepository) -> None:
        self.delegate, self.cache = files.delegate, files.cache

    def load_config(self, config_path: str) -> Any:
        return copy.deepcopy(super().load_config(config_path))


def merged(defaults: Sequence[Any], files: CachingConfigRepository, merge: Callable[..., DictConfig]) -> DictConfig:
    """The tree of a list of files, as `merge(defaults=..., repo=...)` makes it."""
    stamped: Any = files.delegate.stamped  # type: ignore[attr-defined]
    key = tuple((repr(each), each.is_self, each.primary, *stamped(each.config_path)) for each in defaults)
    tree = TREES.pop(key, None)
    if tree is None:
        tree = merge(defaults=defaults, repo=Copies(files))
    TREES[key] = tree  # the one that was used last
    while len(TREES) > MOST_TREES:
        TREES.popitem(last=False)
    return copy.deepcopy(tree)
