"""What scenes are drawn from: the stamps that a track may show, themes of nouns that belong together, held-out pairs.

Shared by all sources of scenes (captions, questions, probes), so that they show the same world: what occurs together,
how often, and what no training picture ever shows. Decides what is there and where; `render` does the painting.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ima.core.keyed_random import Draws, hash_unit
from ima.data.stampworld.catalog import Catalog, Stamp
from ima.data.stampworld.layout import ANCHORS, Box, Group
from ima.data.stampworld.render import KINDS, Placed, compose
from ima.data.stampworld.single import VERSION
from ima.tasks.metrics.nouns import NounReader

SPLIT_OF = {"train": "train", "V0": "train", "T0": "train", "V1": "V1", "T1": "T1", "T2": "T2"}
NUM_KINDS, KIND_WEIGHTS = (1, 2, 3, 4), (0.15, 0.35, 0.35, 0.15)
NUM_COPIES, COPY_WEIGHTS = (1, 2, 3, 4), (0.75, 0.15, 0.07, 0.03)
MAX_BOXES = 6
INTRUDER_RATIO = 0.2
HELD_RATIO = 0.1


class Scenery:
    """The world of one catalogue and one choice of nouns. T2 always shows all its unknown nouns."""

    def __init__(self, catalog: Catalog, nouns: frozenset[str]) -> None:
        self.catalog, self.nouns = catalog, nouns
        self.stamps = {stamp.key: stamp for stamp in catalog.stamps}
        self._reader = NounReader(catalog.nouns)

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def pool(self, track: str) -> dict[str, tuple[Stamp, ...]]:
        """The stamps that a track may show, by noun."""
        pool: dict[str, list[Stamp]] = {}
        for stamp in self.catalog.stamps:
            if stamp.split == SPLIT_OF[track] and (stamp.noun in self.nouns or track == "T2"):
                pool.setdefault(stamp.noun, []).append(stamp)
        return {noun: tuple(stamps) for noun, stamps in sorted(pool.items())}

    def draw_groups(
        self,
        draws: Draws,
        track: str,
        theme: str | None = None,
        kinds: Mapping[int, float] | None = None,
        besides: Sequence[Group] = (),
    ) -> tuple[str, list[Group]]:
        """A theme and groups of it, each at an anchor of its own.

        kinds: how many groups with which probability (1 to 4). besides: groups that stand there already; they take
        their places, and nothing that they clash with is drawn.
        """
        pool = self.pool(track)
        drawn = theme or draws.choice(sorted(themes()))
        at_home = [noun for noun in themes()[drawn] if noun in pool]
        zipf = [(rank + 1) ** -0.6 for rank in range(len(at_home))]
        kinds = kinds or dict(zip(NUM_KINDS, KIND_WEIGHTS, strict=True))
        wanted = draws.weighted(list(kinds), list(kinds.values()))
        places = draws.shuffled([place for place in ANCHORS if place not in {group.place for group in besides}])
        groups: list[Group] = []
        for _ in range(wanted * 4):
            if len(groups) == wanted:
                break
            intruder = not at_home or draws.chance(INTRUDER_RATIO)
            noun = draws.choice(list(pool)) if intruder else draws.weighted(at_home, zipf)
            stamp, place = draws.choice(pool[noun]), places[len(groups)]
            num = 1 if self.catalog.nouns[noun].one else draws.weighted(NUM_COPIES, COPY_WEIGHTS)
            if not self.allowed(Group(stamp, num, place), [*besides, *groups], track):
                continue
            room = MAX_BOXES - sum(group.num for group in groups)
            groups.append(Group(stamp, max(1, min(num, room)), place))
        return (drawn, groups) if groups or besides else self.draw_groups(draws, track, theme, kinds)

    def allowed(self, group: Group, others: Iterable[Group], track: str) -> bool:
        """Whether a group may join others: no two that a caption could not tell apart; in training nothing held out."""
        noun = group.stamp.noun
        if any(self.clash(noun, other.stamp.noun) for other in others):
            return False
        if track != "train":
            return True
        return not held_cell(group.stamp, group.place) and not any(held_pair(noun, o.stamp.noun) for o in others)

    def clash(self, noun: str, other: str) -> bool:
        """A hen and a chicken in one scene could not be told apart by what a caption says."""
        return noun == other or noun in self._reader.above[other] or other in self._reader.above[noun]

    def confused(self, noun: str, other: str) -> bool:
        """Whether one may be called what the other is called: clashing nouns, and those that share a word."""
        return self.clash(noun, other) or other in self._namesakes[noun]

    @functools.cached_property
    def _namesakes(self) -> dict[str, set[str]]:
        """Noun -> all nouns that one of its names or synonyms may mean."""
        found: dict[str, set[str]] = {noun: set() for noun in self.catalog.nouns}
        for meant in self._reader.names.values():
            for noun in meant:
                found[noun] |= meant
        return found

    def describe(self, group: Group, boxes: Sequence[Box]) -> dict[str, Any]:
        """A group as it stands in `Sample.facts["objects"]`."""
        stamp = group.stamp
        return {
            "noun": stamp.noun,
            "num": group.num,
            "place": group.place,
            "category": self.catalog.nouns[stamp.noun].category,
            "stamp": stamp.key,
            "cluster": stamp.cluster,
            "boxes": tuple(boxes),
        }

    def picture(
        self, draws: Draws, objects: Iterable[Mapping[str, Any]], size: int, side: str, ground: str
    ) -> Image.Image:
        """RGB, size x size: objects as `describe` tells of them, each copy mirrored or not."""
        placed = [
            self.placed(self.stamps[item["stamp"]], box, draws.chance(0.5)) for item in objects for box in item["boxes"]
        ]
        return compose(draws, size, side, placed, ground)

    def placed(self, stamp: Stamp, box: Box, mirrored: bool) -> Placed:
        """The picture of a stamp, fitted to its box; mirrored only where that is no lie (letters)."""
        left, top, right, bottom = box
        image = self.catalog.picture(stamp).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        if mirrored and stamp.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Placed(image, left, top)


@functools.cache
def themes() -> dict[str, tuple[str, ...]]:
    with open(Path(__file__).parent / "themes.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["theme"]: tuple(row["nouns"].split(",")) for row in rows}


def draw_ground(draws: Draws, theme: str) -> str:
    """A kind of background: half of the scenes ignore their theme."""
    return draws.choice(theme_grounds(theme) if draws.chance(0.5) else KINDS)


def theme_grounds(theme: str) -> tuple[str, ...]:
    """Two kinds of background that a theme prefers; every kind serves several themes."""
    first = int(hash_unit(VERSION, "ground", theme) * len(KINDS))
    return KINDS[first], KINDS[(first + 1) % len(KINDS)]


@functools.cache
def held_pair(noun: str, other: str) -> bool:
    """Pairs that no training scene shows together."""
    return hash_unit(VERSION, "pair", *sorted((noun, other))) < HELD_RATIO


@functools.cache
def held_cell(stamp: Stamp, place: str) -> bool:
    """Places at which no training scene shows this stamp."""
    return hash_unit(VERSION, "cell", stamp.key, place) < HELD_RATIO
