"""Two scenes that differ by one edit: one thing is another noun, stands elsewhere, or is there more or less often.

All else is the same: the other things, the background, which copies are mirrored. So one question can have two answers,
and whoever does not look cannot tell which. What the edits change takes turns (places, numbers, categories, nouns), so
that every answer is as frequent as any other. A pair is a function of its key; hides the search for what fits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ima.core.errors import UserError
from ima.core.keyed_random import Draws
from ima.data.stampworld.catalog import Stamp
from ima.data.stampworld.layout import ANCHORS, MAX_SHARED, Box, Group, clamp, lay_out, nearest, shared
from ima.data.stampworld.scenery import COPY_WEIGHTS, KIND_WEIGHTS, NUM_COPIES, Scenery, draw_ground, themes

Edit = Literal["noun", "kind", "move", "count"]
MOVES = tuple(itertools.permutations(ANCHORS, 2))
COUNTS = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0))  # a circle: every number as often as any other
NUM_TRIES = 2000
HOME_RATIO = 0.5  # of the pairs show their noun among nouns of its theme
Scene = tuple["Thing", ...]


@dataclass(frozen=True)
class Thing:
    """A group as it stands: `flips` tells which copies are mirrored."""

    group: Group
    boxes: tuple[Box, ...]
    flips: tuple[bool, ...]

    @property
    def noun(self) -> str:
        return self.group.stamp.noun


@dataclass(frozen=True)
class Pair:
    """`first` and `second`: the two scenes. What was edited is the last thing of each; where a scene has none of it
    (a count of 0) it has one thing less."""

    edit: Edit
    theme: str
    ground: str
    first: Scene
    second: Scene

    @property
    def num_same(self) -> int:
        """How many things the edit leaves as they are; they come first in both scenes."""
        same = [a == b for a, b in zip(self.first, self.second, strict=False)]
        return sum(same)

    @property
    def edited(self) -> tuple[Thing | None, Thing | None]:
        """The thing that the edit is about in both scenes; None where it is not there."""
        num = self.num_same
        one, other = (next(iter(scene[num:]), None) for scene in (self.first, self.second))
        return one, other


def feasible(scenery: Scenery, track: str) -> tuple[Edit, ...]:
    """The edits that the stamps of a track allow."""
    edits: list[Edit] = []
    if partners(scenery, track):
        edits.append("noun")
    if len(kinds_of(scenery, track)) >= 2:
        edits.append("kind")
    if scenery.pool(track):
        edits.append("move")
    if countable(scenery, track):
        edits.append("count")
    return tuple(edits)


def kind_of(scenery: Scenery, group: Group) -> str:
    return scenery.catalog.nouns[group.stamp.noun].category


@functools.cache
def kinds_of(scenery: Scenery, track: str) -> dict[str, tuple[str, ...]]:
    """Category -> its nouns in a track."""
    nouns = scenery.catalog.nouns
    found: dict[str, list[str]] = {}
    for noun in scenery.pool(track):
        found.setdefault(nouns[noun].category, []).append(noun)
    return {kind: tuple(found[kind]) for kind in sorted(found)}


@functools.cache
def partners(scenery: Scenery, track: str) -> dict[str, tuple[str, ...]]:
    """Noun -> others of its category that do not clash with it, beginning with the next one; nouns without any are
    left out."""
    found = {}
    for kind in kinds_of(scenery, track).values():
        for index, noun in enumerate(kind):
            found[noun] = tuple(o for o in kind[index + 1 :] + kind[:index] if not scenery.clash(noun, o))
    return {noun: others for noun, others in found.items() if others}


@functools.cache
def countable(scenery: Scenery, track: str) -> tuple[str, ...]:
    """Nouns of which there can be several: neither the moon nor some bread."""
    return tuple(noun for noun in scenery.pool(track) if not scenery.catalog.nouns[noun].one)


@dataclass(frozen=True)
class Plan:
    """What an edit does: the edited group before and after, None for nothing there."""

    before: Group | None
    after: Group | None


def draw_pair(scenery: Scenery, draws: Draws, track: str, edit: Edit, turn: int, max_kinds: int, size: int) -> Pair:
    """The `turn`-th pair with this edit. Raises UserError where the nouns do not allow it."""
    for attempt in range(NUM_TRIES):
        plan = PLANS[edit](scenery, draws, track, turn)
        hopeless = attempt >= NUM_TRIES // 2
        kinds = {0: 1.0} if hopeless else {num: KIND_WEIGHTS[num] for num in range(max_kinds)}
        found = stage(scenery, draws, track, plan, kinds, size)
        if found is None:
            continue
        theme, scenes = found
        if not all(scenes) and not hopeless:
            continue  # an empty picture
        ground = draw_ground(draws, theme)
        first, second = scenes if draws.chance(0.5) else scenes[::-1]
        return Pair(edit, theme, ground, first, second)
    raise UserError(f"nouns: they allow no pair of pictures that differ by a {edit} (track {track}); choose more nouns")


def stage(
    scenery: Scenery, draws: Draws, track: str, plan: Plan, kinds: dict[int, float], size: int
) -> tuple[str, tuple[Scene, Scene]] | None:
    """The theme and both scenes around a plan, or None where it does not fit."""
    versions = [group for group in (plan.before, plan.after) if group is not None]
    if not all(scenery.allowed(group, (), track) for group in versions):
        return None
    homes = [theme for theme, nouns in sorted(themes().items()) if versions[0].stamp.noun in nouns]
    home = draws.choice(homes) if homes and draws.chance(HOME_RATIO) else None
    theme, others = scenery.draw_groups(draws, track, home, kinds, versions)
    if track == "T2" and {kind_of(scenery, g) for g in others} & {kind_of(scenery, g) for g in versions}:
        return None  # its questions name categories: what was edited must be the only one of its own
    full = max(versions, key=lambda group: group.num)
    boxes = lay_out(draws, [*others, full], size)
    if boxes is None:
        return None
    flips = [tuple(draws.chance(0.5) for _ in found) for found in boxes]
    around = tuple(Thing(g, tuple(b), f) for g, b, f in zip(others, boxes[:-1], flips[:-1], strict=True))
    standing = Thing(full, tuple(boxes[-1]), flips[-1])
    scenes = []
    for group in (plan.before, plan.after):
        thing = None if group is None else standing if group == full else become(draws, standing, group, size)
        if group is not None and (thing is None or not fits(thing, around, size)):
            return None
        scenes.append(around if thing is None else (*around, thing))
    return theme, (scenes[0], scenes[1])


def become(draws: Draws, thing: Thing, group: Group, size: int) -> Thing | None:
    """The thing as another group, as little changed as can be: fewer of its copies, the same boxes moved, or another
    stamp of the same size at the same points."""
    if group.num < thing.group.num:
        kept = sorted(draws.shuffled(range(thing.group.num))[: group.num])
        return Thing(group, tuple(thing.boxes[i] for i in kept), tuple(thing.flips[i] for i in kept))
    boxes = thing.boxes
    if group.place != thing.group.place:
        (x0, y0), (x1, y1) = ANCHORS[thing.group.place], ANCHORS[group.place]
        boxes = tuple(shifted(box, round((x1 - x0) * size), round((y1 - y0) * size), size) for box in boxes)
    if group.stamp != thing.group.stamp:
        boxes = tuple(refitted(box, group.stamp, size) for box in boxes)
    return Thing(group, boxes, thing.flips)


def shifted(box: Box, right: int, down: int, size: int) -> Box:
    width, height = box[2] - box[0], box[3] - box[1]
    left, top = clamp(box[0] + right, size - width), clamp(box[1] + down, size - height)
    return left, top, left + width, top + height


def refitted(box: Box, stamp: Stamp, size: int) -> Box:
    """A box with the centre and the longer edge of `box` and the shape of the stamp."""
    factor = min(max(box[2] - box[0], box[3] - box[1]) / max(stamp.width, stamp.height), 4.0)
    width, height = max(2, round(stamp.width * factor)), max(2, round(stamp.height * factor))
    left = clamp((box[0] + box[2] - width) / 2, size - width)
    top = clamp((box[1] + box[3] - height) / 2, size - height)
    return left, top, left + width, top + height


def fits(thing: Thing, around: Sequence[Thing], size: int) -> bool:
    """As `lay_out` demands it: boxes hardly overlap, and the group is nearest to its own anchor."""
    boxes = thing.boxes
    others = [box for other in around for box in other.boxes]
    rest = [(box, other) for i, box in enumerate(boxes) for other in (*others, *boxes[:i])]
    return all(shared(a, b) <= MAX_SHARED for a, b in rest) and nearest(boxes, size) == thing.group.place


def plan_noun(scenery: Scenery, draws: Draws, track: str, turn: int) -> Plan:
    """Another noun of the same category: first each noun for the next one, then for the one after that, ..."""
    known = partners(scenery, track)
    rounds, index = divmod(turn, len(known))
    noun = list(known)[index]
    return replaced(scenery, draws, track, noun, known[noun][rounds % len(known[noun])])


def plan_kind(scenery: Scenery, draws: Draws, track: str, turn: int) -> Plan:
    """A noun of another category; ordered pairs of categories take turns."""
    kinds = kinds_of(scenery, track)
    names = list(kinds)
    num = len(names)
    one, step = turn % num, 1 + (turn // num) % (num - 1)
    noun, other = draws.choice(kinds[names[one]]), draws.choice(kinds[names[(one + step) % num]])
    return replaced(scenery, draws, track, noun, other)


def replaced(scenery: Scenery, draws: Draws, track: str, noun: str, other: str) -> Plan:
    pool, nouns = scenery.pool(track), scenery.catalog.nouns
    num = 1 if nouns[noun].one or nouns[other].one else draws.weighted(NUM_COPIES, COPY_WEIGHTS)
    before = Group(draws.choice(pool[noun]), num, draws.choice(list(ANCHORS)))
    return Plan(before, replace(before, stamp=draws.choice(pool[other])))


def plan_move(scenery: Scenery, draws: Draws, track: str, turn: int) -> Plan:
    """From one place to another; ordered pairs of places take turns."""
    pool = scenery.pool(track)
    stamp = draws.choice(pool[draws.choice(list(pool))])
    start, end = MOVES[turn % len(MOVES)]
    return Plan(Group(stamp, 1, start), Group(stamp, 1, end))


def plan_count(scenery: Scenery, draws: Draws, track: str, turn: int) -> Plan:
    """One copy more, or all of four gone."""
    pool = scenery.pool(track)
    stamp = draws.choice(pool[draws.choice(countable(scenery, track))])
    place = draws.choice(list(ANCHORS))
    before, after = (Group(stamp, num, place) if num else None for num in COUNTS[turn % len(COUNTS)])
    return Plan(before, after)


PLANS = {"noun": plan_noun, "kind": plan_kind, "move": plan_move, "count": plan_count}
