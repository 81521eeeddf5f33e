"""The command line's overrides before Hydra applies them: grammar, choices of groups, names of keys.

Hydra reads them and sets them. What it would refuse in several lines, or with the advice to force the key, is refused
here in one line with the nearest names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ima.config.choices import default_choices, default_groups
from ima.config.validate import show
from ima.core.commands import command_of, name_of
from ima.core.errors import UserError, nearest
from ima.core.signatures import Signature
from ima.runs.identity import STACKED

PARSER = OverridesParser.create()
LISTS = (*STACKED, "experiment")  # groups of which several choices may be given
OWN_OF_SWEEP = ("name", "output_dir")


def parse(text: str, known: Sequence[str]) -> Override:
    """One command line argument as Hydra reads it. known: keys and groups, for the message."""
    name, equals, value = text.partition("=")
    bare = name.lstrip("+~").partition("@")[0]
    if not equals and not text.startswith("~"):
        raise UserError(f"{text}: not of the form key=value; {nearest(bare, known)}")
    if not bare:
        raise UserError(f"{text}: not of the form key=value; {nearest(bare, known)}")
    try:
        return PARSER.parse_override(text)
    except HydraException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise UserError(f"{text}: cannot be read ({reason}); quote special characters: {bare}='\"text\"'") from None


def refuse_several(override: Override, root: str) -> None:
    """Several values are for a multirun. Raises UserError."""
    if override.is_sweep_override():
        raise UserError(
            f"{override.key_or_group}: several values need a multirun; give them one at a time, or run"
            f" {command_of(root)} --multirun {override.input_line}"
        )


def refuse_own(override: Override) -> None:
    """Keys of a multirun as a whole."""
    if override.is_sweep_override() and override.key_or_group in OWN_OF_SWEEP:
        raise UserError(
            f"{override.key_or_group}: several values, but it is the sweep's own and has one; jobs get names by"
            " themselves"
        )


def check_choice(override: Override, choices: Sequence[str], root: str, conf: Path, names: Signature) -> str | None:
    """Check an override of a group. Returns the text that Hydra is given in its place; None for no override at all.

    choices: of the group, in all folders of the search path. Raises UserError for a choice that is not there and for a
    group that the script does not have."""
    name, text = override.key_or_group, str(override.input_line)
    groups, value = default_groups(root, conf), override.value()
    if "/" in name or override.is_delete() or override.package is not None:
        if "/" in name and not override.is_delete():
            check_allowed(name, value, choices)
        return text
    if name not in groups and (conf / name).is_dir() and not override.is_add():
        if name not in names.parameters:
            raise UserError(f"{name}: {name_of(root)} has no such group; {nearest(name, groups)}")
        raise UserError(
            f"{name}: not a choice of {name_of(root)}, it comes with what is evaluated; write {name}.<key>=value to"
            f" change one of its keys, or {name_of('train')} {name}=<choice> for another run"
        )
    if value is None and name in groups and default_choices(root, conf)[name] is None:
        return None  # nothing, as the root file has it
    if isinstance(value, list) and name not in LISTS and name in groups:
        raise UserError(f"{name}: {show(value)} are several choices, one is taken; {nearest('', choices)}")
    check_allowed(name, value, choices)
    return text


def check_allowed(name: str, value: Any, choices: Sequence[str]) -> None:
    several = value if isinstance(value, list) else [value]
    for item in several:
        if not isinstance(item, str | int) or str(item) not in choices:
            found = "null" if item is None else item
            raise UserError(f"{name}: no choice {str(found)!r}; {nearest(str(found), choices)}")
        if several.count(item) > 1:
            raise UserError(f"{name}: {str(item)!r} is chosen twice; name each choice once")


def as_given(override: Override, look: Callable[[str], bool]) -> str:
    """The group or first key of an override."""
    return override.key_or_group if look(override.key_or_group) else override.key_or_group.split(".")[0]


def targets_given(overrides: Sequence[Override]) -> Mapping[str, str]:
    """Node -> class, where the command line itself names the class."""
    found = {}
    for override in overrides:
        place, _, last = override.key_or_group.rpartition(".")
        if last == "_target_" and place and not override.is_sweep_override() and isinstance(override.value(), str):
            found[place] = str(override.value())
    return found
