"""One caption against the ground truth of its picture: what is named, what is not there, which slots are filled.

The facts it reads: "nouns" (what is there), "vocabulary" (which table), "category" for media of one thing (or the
categories of several), "order" (nouns one after the other) and "objects" (noun, num, place) for scenes. Hides how
texts are read (`nouns`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ima.tasks.metrics.nouns import Mention, NounReader, reader

SLOTS = ("noun", "position", "count")
Slots = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Judgement:
    """named: nouns that are there and named. absent: words that name what is not there. right: all named, none
    absent. order_right: what comes one after the other is named so, by noun, and by category. slots: for each kind
    (hits, said, true), hits <= min(said, true)."""

    named: frozenset[str]
    absent: tuple[str, ...]
    right: bool
    category_right: bool | None
    slots: Slots
    order_right: bool | None = None
    category_order_right: bool | None = None


def judge(facts: Mapping[str, Any], text: str) -> Judgement | None:
    """None where the facts know no nouns."""
    if "nouns" not in facts:
        return None
    read = reader(facts.get("vocabulary", "stamps"))
    present = frozenset(facts["nouns"])
    mentions = read.mentions(text)
    named = frozenset(noun for mention in mentions for noun in mention.nouns & present)
    absent = tuple(mention.text for mention in mentions if not mention.true_of(present))
    category, order = facts.get("category"), tuple(facts.get("order", ()))
    return Judgement(
        named=named,
        absent=absent,
        right=named == present and not absent,
        category_right=None if category is None else category_right(mentions, category, read),
        slots=slots_of(mentions, facts, present),
        order_right=[noun for m in mentions for noun in m.nouns & present] == list(order) if order else None,
        category_order_right=category_order_right(mentions, order, read) if order else None,
    )


def category_right(mentions: list[Mention], category: str | Sequence[str], read: NounReader) -> bool:
    """Something is said, and all that is said can be of that category; of several, each is said."""
    wanted = (category,) if isinstance(category, str) else tuple(category)
    fits = [[is_of(mention, one, read) for one in wanted] for mention in mentions]
    return bool(fits) and all(map(any, fits)) and all(map(any, zip(*fits, strict=True)))


def is_of(mention: Mention, category: str, read: NounReader) -> bool:
    return any(
        noun in read.vocabulary and read.vocabulary[noun].category == category for noun in mention.nouns | mention.broad
    )


def category_order_right(mentions: list[Mention], order: Sequence[str], read: NounReader) -> bool | None:
    """None where the order of categories would say nothing (a bird after a bird, a noun of no table)."""
    categories = [read.vocabulary[noun].category for noun in order if noun in read.vocabulary]
    if len(set(categories)) < len(order):
        return None
    return len(mentions) == len(order) and all(map(is_of, mentions, categories, [read] * len(order)))


def slots_of(mentions: list[Mention], facts: Mapping[str, Any], present: frozenset[str]) -> Slots:
    """Each noun is asked once; broader terms that are true neither help nor hurt, false ones count as said."""
    said: dict[str, Mention] = {}
    for mention in mentions:
        chosen = sorted(mention.nouns & present)
        if not chosen and mention.true_of(present):
            continue
        said.setdefault(chosen[0] if chosen else f"?{mention.text}", mention)
    right = {noun: mention for noun, mention in said.items() if noun in present}
    slots: Slots = {"noun": (len(right), len(said), len(present))}
    objects = facts.get("objects")
    if objects and all("place" in item for item in objects):  # things in a clip move: they have no place
        places = {item["noun"]: item["place"] for item in objects}
        nums = {item["noun"]: item["num"] for item in objects}
        placed = {noun: mention.place for noun, mention in said.items() if mention.place is not None}
        counted = {noun: mention.num for noun, mention in said.items() if mention.num is not None}
        slots["position"] = (sum(places.get(n) == p for n, p in placed.items()), len(placed), len(places))
        slots["count"] = (sum(nums.get(n) == c for n, c in counted.items()), len(counted), len(nums))
    return slots
