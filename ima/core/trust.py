"""What a config that somebody else wrote may name: the configs of run folders, the headers of mask files.

Such a config is plain data. A `_target_` in it is made only where a person's own configuration names it too: a file of
conf/, the command line, or `trust`. All of it is looked at before anything is imported; sources are parsed, not run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ima.core.commands import conf_folder
from ima.core.errors import UserError
from ima.core.signatures import Definition, read_module, resolve

CONF = conf_folder()
# For all that transformers loads: classes of its own, none of the folder's.
STOCK: dict[str, Any] = {"trust_remote_code": False}
SPECIAL: dict[str, type] = {"_target_": str, "_partial_": bool, "_convert_": str, "_recursive_": bool}
LOGGER = "logger"
DTYPES = ("float32", "bfloat16", "float16")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Trust:
    """names: classes, functions and modules that the person named. ask: how more are named, for messages."""

    names: tuple[str, ...] = ()
    conf: Path = CONF
    ask: str = "trust=[{}]"

    def allows(self, target: str) -> bool:
        """A module's name stands for what is defined in it or below, not for what it imports from elsewhere."""
        if target in self.names or named_in(self.conf, target):
            return True
        return any(target.startswith(f"{name}.") for name in self.names) and bool(
            (home := home_of(target)) and any(f"{home}.".startswith(f"{name}.") for name in self.names)
        )


CURRENT: ContextVar[Trust | None] = ContextVar("trust", default=None)


@contextmanager
def trusting(names: Collection[str], conf: Path = CONF, ask: str = Trust.ask) -> Iterator[None]:
    """What is read inside may name these as well."""
    token = CURRENT.set(Trust(tuple(names), conf, ask))
    try:
        yield
    finally:
        CURRENT.reset(token)


def check_foreign(values: Mapping[str, Any], source: Path | str) -> None:
    """Raises UserError at the first thing in `values` that is more than plain data and not allowed."""
    trust = CURRENT.get() or Trust()
    places: list[tuple[str, Any]] = [("", values)]
    while places:
        place, value = places.pop()
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{source}: {place}: {shown(value)} refers to something; what is read here is plain data")
        if isinstance(value, list):
            places += [(f"{place}.{index}", item) for index, item in enumerate(value)]
        if isinstance(value, Mapping):
            for name, item in value.items():
                key = shown(f"{place}.{name}".lstrip(".")).strip("'\"")
                check_entry(str(name), key, item, source, trust)
                places.append((key, item))


def check_entry(name: str, key: str, value: Any, source: Path | str, trust: Trust) -> None:
    if "${" in name:
        raise UserError(f"{source}: {key}: refers to something; what is read here is plain data")
    if not re.fullmatch(r"_\w+_", name):
        return
    kind = SPECIAL.get(name)
    if kind is None or not isinstance(value, kind):
        allowed = ", ".join(SPECIAL) if kind is None else f"a {kind.__name__}"
        raise UserError(f"{source}: {key}: {shown(value)} is not taken from a file; allowed: {allowed}")
    target = str(value)
    if name == "_target_" and not trust.allows(target):
        ask = trust.ask.format(target if DOTTED.fullmatch(target) and len(target) <= 120 else "my.module")
        raise UserError(
            f"{source}: {key}: {shown(value)} is named neither in {trust.conf.name}/ nor by you, so it is not made; "
            f"where you trust it, write {ask}"
        )


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 160 else f"{text[:150]}..."


def targets_of(value: Any) -> set[str]:
    """Every `_target_` in a tree of plain values."""
    if isinstance(value, Mapping):
        own = {value["_target_"]} if isinstance(value.get("_target_"), str) else set()
        return own.union(*map(targets_of, value.values()))
    return set().union(*map(targets_of, value)) if isinstance(value, list | tuple) else set()


def named_in(conf: Path, target: str) -> bool:
    """Whether a file of `conf` has this very `_target_`, other than for a logger: loggers write and connect, and none
    is ever taken from a file."""
    for path in conf.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace") if path.parent.name != LOGGER else ""
        if target in text:
            try:
                tree = yaml.safe_load(text)
            except yaml.YAMLError:  # it is refused, with its line, where it is chosen
                continue
            rest = {key: node for key, node in tree.items() if key != LOGGER} if isinstance(tree, Mapping) else None
            if target in targets_of(rest):
                return True
    return False


def home_of(target: str) -> str | None:
    """The module whose source defines the class or function (or the class of the method) that `target` names."""
    parts = target.split(".")
    if not DOTTED.fullmatch(target):
        return None
    for cut in range(len(parts) - 1, 0, -1):
        module = read_module(".".join(parts[:cut]))
        if module is not None:
            found = resolve(module, parts[cut])
            return found[0].name if found and isinstance(found[1], Definition) else None
    return None


def recorded_dtype(facts: Mapping[str, Any], name: str, source: Path | str) -> str | None:
    """The dtype that a file says its LLM had; None where it says none."""
    value = facts.get(name)
    if value is not None and value not in DTYPES:
        raise UserError(f"{source}: {name}: {shown(value)} is no dtype; allowed: {', '.join(DTYPES)}")
    return value


def reason_of(error: Exception, length: int = 160) -> str:
    """Why transformers could not load a model folder, for a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        return "it needs Python code of its own (auto_map), which is never run; give a type that transformers knows"
    return (str(error).strip() or text).splitlines()[0][:length]
