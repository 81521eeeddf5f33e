"""Questions about StampWorld's clips, so that the words of a question never give its answer away.

Two things or three share every clip, and motions, counts and "yes" take turns: over thirty clips each direction, each
number of moving things and, for each verb, yes and no are asked for equally often. All questions of a clip share its
features. To move is to change place: what grows, turns or appears does not move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws
from ima.core.types import Sample
from ima.data.stampworld.video import VERSION, StampVideo
from ima.data.stampworld.video_words import COUNTS, ask_direction, ask_what, ask_whether
from ima.tasks.metrics.motions import DIRECTIONS, MOTIONS, STILL

TYPES = ("direction", "what", "whether", "count")
BLOCKS = 3  # of ten clips: the period in which counts are balanced
THIRD_THING = 0.3
BUSY = 0.25  # how often a second thing that does not move does something else
# What thirty clips ask: how many things move there, and whether that is asked. First of clips whose first thing moves.
MOVING = ((2, True),) * 6 + ((1, True),) * 3 + ((1, False),) * 3
RESTING = ((0, True),) * 6 + ((1, True),) * 3 + ((0, False),) * 9


class StampVideoQa(StampVideo):
    """Clips with questions; `facts` as StampVideo's, with "type": direction, what, whether or count.

    types: which kinds of questions are asked. num_train, ...: clips, each with one to four questions. alone: one thing
    in a clip instead of two or three, which is learnt sooner; then nothing is there to count.
    """

    RANGES = {
        "num_train": (1, None),
        "num_val": (2, None),
        "num_t0": (1, None),
        "num_t1": (1, None),
        "num_t2": (1, None),
        "num_frames": (4, 64),
        "size": (64, None),
    }

    def __init__(
        self,
        nouns: str | Iterable[str] = "demo",
        types: list[Literal["direction", "what", "whether", "count"]] | None = None,
        num_train: int = 600,
        num_val: int = 60,
        num_t0: int = 150,
        num_t1: int = 150,
        num_t2: int = 60,
        num_frames: int = 8,
        seed: int = 0,
        size: int = 160,
        svg: bool = False,
        folder: str | None = None,
        table: str | None = None,
        alone: bool = False,
    ) -> None:
        others = {"num_movers": 1, "num_static": 0} if alone else {}
        super().__init__(
            nouns, num_train, num_val, num_t0, num_t1, num_t2, num_frames=num_frames, seed=seed, size=size, svg=svg,
            folder=folder, table=table, **others,
        )  # fmt: skip
        self.alone = alone
        self.types = tuple(kind for kind in TYPES if not (alone and kind == "count")) if types is None else tuple(types)
        for name in self.types:
            if name not in TYPES:
                raise UserError(f"types: {name!r} is unknown; {nearest(name, TYPES)}")
        if alone and "count" in self.types:
            raise UserError("types: count asks how many of several things move; alone=true has one, leave count out")
        if not self.types:
            raise UserError(f"types: the list is empty; at least one of {', '.join(TYPES)}")
        self.name = "stampworld/video_qa"

    def _motions(self, draws: Draws, track: str, index: int) -> list[str]:
        first = self._first_motion(track, index)
        if self.alone:
            return [first]
        num_moving = self._count(track, index)[0] - (first in DIRECTIONS)
        second = draws.choice(DIRECTIONS)
        if not num_moving:
            others = [motion for motion in MOTIONS if motion not in (*DIRECTIONS, STILL, first)]
            second = draws.choice(others) if draws.chance(BUSY) else STILL
        return [first, second, *([STILL] if draws.chance(THIRD_THING) else [])]

    def _count(self, track: str, index: int) -> tuple[int, bool]:
        """How many things move in a clip, and whether that is asked."""
        period, place = divmod(index, BLOCKS * len(MOTIONS))
        moves = [self._first_motion(track, index - place + other) in DIRECTIONS for other in range(place + 1)]
        plan = MOVING if moves[place] else RESTING
        order = Draws(VERSION, "counts", track, period, moves[place], self._seed(track)).shuffled(plan)
        return order[moves[:place].count(moves[place])]

    def _asked_motion(self, track: str, index: int) -> str:
        """What "Does the cow ...?" asks of the first thing: the truth for half of the motions of ten clips, for the
        others each asks for the motion of the next; twenty clips swap the halves."""
        first, block = self._first_motion(track, index), index // len(MOTIONS)
        order = Draws(VERSION, "whether", track, block // 2, self._seed(track)).shuffled(MOTIONS)
        half = len(order) // 2
        parts = (order[:half], order[half:]) if block % 2 == 0 else (order[half:], order[:half])
        true, false = parts
        return first if first in true else false[(false.index(first) + 1) % len(false)]

    def _told(self, clip: Sample) -> list[Sample]:
        return [
            dataclasses.replace(
                clip,
                id=f"{clip.id}/{kind}",
                medium_id=clip.id,
                question=question,
                references=(answer,),
                facts={**clip.facts, "type": kind, "synonyms": self._synonyms(answer)},
            )
            for kind, question, answer in self._questions(clip)
            if kind in self.types
        ]

    def _questions(self, clip: Sample) -> list[tuple[str, str, str]]:
        """(type, question, answer)"""
        objects, index = clip.facts["objects"], clip.facts["index"]
        motions = [item["motion"] for item in objects]
        noun, first = self.catalog.nouns[objects[0]["noun"]], motions[0]
        out = []
        if first in DIRECTIONS:
            out.append(("direction", ask_direction(noun), first))
        alike = [motion for motion in motions if motion == first or {motion, first} <= set(DIRECTIONS)]
        if first != STILL and len(alike) == 1:
            out.append(("what", ask_what(first), noun.name))
        asked = self._asked_motion(clip.track, index)
        out.append(("whether", ask_whether(noun, asked), "yes" if asked == first else "no"))
        num, is_asked = self._count(clip.track, index)
        if is_asked and num == sum(motion in DIRECTIONS for motion in motions):
            out.append(("count", "How many things move?", COUNTS[num]))
        return out

    def _synonyms(self, answer: str) -> Sequence[str]:
        noun = self.catalog.nouns.get(answer)
        return noun.synonyms if noun is not None else ("zero",) if answer == COUNTS[0] else ()
