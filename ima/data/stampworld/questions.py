"""What can be asked about a pair of scenes: questions whose answer the edit between them changes.

One main question of the edit's own type and, mostly, one with yes or no. Things are called by their noun or, where the
scene has only one of that kind, by their category (always in T2, whose nouns no training picture shows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ima.core.keyed_random import Draws
from ima.data.stampworld.layout import ANCHORS
from ima.data.stampworld.pairs import Pair, Scene, Thing, kind_of, kinds_of
from ima.data.stampworld.scenery import Scenery
from ima.data.stampworld.words import PLACE_PHRASES, exists, is_are, the, with_kind
from ima.tasks.metrics.vocabulary import Noun

Type = Literal["yes/no", "object", "number", "category", "position"]
TYPES: tuple[Type, ...] = ("yes/no", "object", "number", "category", "position")
MAIN: dict[str, Type] = {"noun": "object", "kind": "category", "move": "position", "count": "number"}
BY_KIND_RATIO = 1 / 3
YES_NO_RATIO = 2 / 3
CROSSINGS = {("left", "right"): "left of", ("top", "bottom"): "above"}


@dataclass(frozen=True)
class Question:
    """`template`: the pattern, all questions of which are balanced. `answers`: for the first and the second scene."""

    type: Type
    template: str
    text: str
    answers: tuple[str, str]


def options(scenery: Scenery) -> dict[Type, tuple[str, ...]]:
    """Every answer that a type of question can have."""
    kinds = sorted({*kinds_of(scenery, "train"), *kinds_of(scenery, "T2")})
    return {
        "yes/no": ("yes", "no"),
        "object": tuple(scenery.pool("train")),
        "number": ("0", "1", "2", "3", "4"),
        "category": tuple(kinds),
        "position": tuple(ANCHORS),
    }


class Asker:
    """Asks about pairs of one track. `types`: those wanted; a pair may then give no question."""

    def __init__(self, scenery: Scenery, track: str, types: Sequence[Type] = TYPES) -> None:
        self.scenery, self.types = scenery, types
        self.by_kind_only = track == "T2"

    def ask(self, pair: Pair, draws: Draws) -> list[Question]:
        main = {"noun": self._object, "kind": self._category, "move": self._position, "count": self._number}[pair.edit]
        yes_no = {"noun": self._exists, "kind": self._exists, "move": self._where, "count": self._compare}[pair.edit]
        found = [question for question in (main(pair, draws),) if question and question.type in self.types]
        if "yes/no" in self.types and (draws.chance(YES_NO_RATIO) or not found):
            found += [question for question in (yes_no(pair, draws),) if question]
        return found

    def _object(self, pair: Pair, draws: Draws) -> Question | None:
        one, other = pair.edited
        if one is None or other is None or self.by_kind_only:
            return None
        text = f"What is {PLACE_PHRASES[one.group.place]}?"
        return Question("object", "object", text, (one.noun, other.noun))

    def _category(self, pair: Pair, draws: Draws) -> Question | None:
        one, other = pair.edited
        assert one is not None and other is not None
        text = f"What kind of thing is {PLACE_PHRASES[one.group.place]}?"
        return Question("category", "category", text, (self._kind(one), self._kind(other)))

    def _position(self, pair: Pair, draws: Draws) -> Question | None:
        one, other = pair.edited
        assert one is not None and other is not None
        named, called = self._call(one, pair.first, draws)
        answers = one.group.place, other.group.place
        return Question("position", "where", f"Where {called[0]} {called[1]}?", answers)

    def _number(self, pair: Pair, draws: Draws) -> Question | None:
        nums = tuple(0 if thing is None else thing.group.num for thing in pair.edited)
        thing = present(pair)
        answers = str(nums[0]), str(nums[1])
        if self.by_kind_only or draws.chance(0.5):
            text = f"How many things are {PLACE_PHRASES[thing.group.place]}?"
            return Question("number", "number at", text, answers)
        return Question("number", "number", f"How many {self._noun(thing).plural} are there?", answers)

    def _exists(self, pair: Pair, draws: Draws) -> Question | None:
        """Whether what the first or the second scene shows is there; by category where the edit changed that."""
        chosen = draws.below(2)
        thing = pair.edited[chosen]
        if thing is None:
            chosen, thing = 1 - chosen, present(pair)
        answers = ("yes", "no") if chosen == 0 else ("no", "yes")
        alone = self._kind(thing) not in {self._kind(other) for other in (*pair.first, *pair.second) if other != thing}
        if alone and (self.by_kind_only or (pair.edit == "kind" and draws.chance(0.5))):
            return Question("yes/no", "exists kind", exists(with_kind(self._kind(thing))), answers)
        if self.by_kind_only:
            return None
        return Question("yes/no", "exists", exists(self._noun(thing)), answers)

    def _where(self, pair: Pair, draws: Draws) -> Question | None:
        """Whether what was moved is at one of its two places, or beyond another thing that it passed."""
        one, other = pair.edited
        assert one is not None and other is not None
        named, (verb, called) = self._call(one, pair.first, draws)
        before, after = one.group.place, other.group.place
        for (low, high), phrase in CROSSINGS.items():
            passed = [t for t in pair.first[: pair.num_same] if t.group.place not in (low, high)]
            if {before, after} == {low, high} and passed:
                way, mark = self._call(draws.choice(passed), pair.first, draws)
                if self.by_kind_only and "kind" not in way:
                    break
                text = f"{verb.capitalize()} {called} {phrase} {mark[1]}?"
                return Question("yes/no", "relation", text, yes_if(before == low, after == low))
        place = draws.choice((before, after))
        text = f"{verb.capitalize()} {called} {PLACE_PHRASES[place]}?"
        return Question("yes/no", "placed", text, yes_if(before == place, after == place))

    def _compare(self, pair: Pair, draws: Draws) -> Question | None:
        """Whether there are any, or more than of something else."""
        nums = [0 if thing is None else thing.group.num for thing in pair.edited]
        if min(nums) == 0:
            return self._exists(pair, draws)
        rivals = [
            thing
            for thing in pair.first[: pair.num_same]
            if min(nums) <= thing.group.num < max(nums) and not self._noun(thing).one
        ]
        if not rivals or self.by_kind_only:
            return None
        rival = draws.choice(rivals)
        text = f"Are there more {self._noun(present(pair)).plural} than {self._noun(rival).plural}?"
        return Question("yes/no", "more", text, yes_if(*(num > rival.group.num for num in nums)))

    def _call(self, thing: Thing, scene: Scene, draws: Draws) -> tuple[str, tuple[str, str]]:
        """How a thing is called: "noun" or "kind", and its verb and name ("is", "the cow")."""
        kind = self._kind(thing)
        alone = [self._kind(other) for other in scene].count(kind) == 1 and thing.group.num == 1
        if alone and (self.by_kind_only or draws.chance(BY_KIND_RATIO)):
            return "kind", ("is", the(with_kind(kind)))
        return "noun", (is_are(self._noun(thing), thing.group.num), the(self._noun(thing), thing.group.num))

    def _noun(self, thing: Thing) -> Noun:
        return self.scenery.catalog.nouns[thing.noun]

    def _kind(self, thing: Thing) -> str:
        return kind_of(self.scenery, thing.group)


def present(pair: Pair) -> Thing:
    """What was edited, as the fuller of the two scenes shows it."""
    return max((thing for thing in pair.edited if thing is not None), key=lambda thing: thing.group.num)


def yes_if(first: bool, second: bool) -> tuple[str, str]:
    assert first != second, "the edit changes the answer"
    return ("yes", "no") if first else ("no", "yes")
