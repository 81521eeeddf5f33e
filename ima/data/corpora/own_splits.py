"""Rows of a table dealt out to splits: by a seed, whole groups at a time, so that nothing is on both sides."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from ima.core.errors import UserError
from ima.data.corpora.reading import Record


@dataclasses.dataclass(frozen=True)
class OwnRow:
    """A row of the table. file: below the folder of media. group: what must not be in two splits. split: as the table
    says it."""

    record: Record
    file: str
    group: str
    split: str | None


def shared_out(rows: Sequence[OwnRow], wanted: Mapping[str, float], seed: int, what: str) -> dict[str, list[OwnRow]]:
    """The rows of train and of the wanted splits, which get such shares of the groups. Groups come in an order that
    the seed gives each of them by its name: one that is added later moves few others. Media that share a group, or
    groups that share a medium, stay together. what: how messages call the groups. Raises UserError where a split would
    be empty."""
    of_row = together(rows)
    groups = sorted(set(of_row), key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).hexdigest())
    if len(groups) <= len(wanted):
        raise UserError(
            f"{len(groups)} {what} cannot be dealt out to train, {', '.join(wanted)}; add some, or write a column split"
        )
    place, start = dict.fromkeys(groups, "train"), 0
    for left, (name, ratio) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
        num = min(max(1, round(ratio * len(groups))), len(groups) - start - left)
        place |= dict.fromkeys(groups[start : start + num], name)
        start += num
    found: dict[str, list[OwnRow]] = {name: [] for name in ("train", *wanted)}
    for row, group in zip(rows, of_row, strict=True):
        found[place[group]].append(row)
    return found


def leaks(found: Mapping[str, Sequence[OwnRow]]) -> dict[str, list[str]]:
    """Groups (media where there are none) that are in more than one split -> these splits."""
    places: dict[str, list[str]] = {}
    for split, rows in found.items():
        for group in dict.fromkeys(row.group for row in rows):
            places.setdefault(group, []).append(split)
    return {group: splits for group, splits in places.items() if len(splits) > 1}


def together(rows: Sequence[OwnRow]) -> list[str]:
    """For each row the name of what must not be torn: groups joined where a file is in several of them."""
    first: dict[str, str] = {}  # of a file: the group it was met in
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for row in rows:
        one, other = root(row.group), root(first.setdefault(row.file, row.group))
        parent[max(one, other)] = min(one, other)
    return [root(row.group) for row in rows]
