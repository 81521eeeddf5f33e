"""Scenes of one to four kinds of things with exact ground truth: boxes, numbers, places, background.

Nouns co-occur by theme (farm, kitchen, street, ...) with 20 % intruders. A tenth of the noun pairs and a tenth of the
(stamp, place) cells never occur in training: T0 asks for them. T1 scenes show only new stamps, T2 only new nouns.
Copies of a noun in one scene are the same stamp, mirrored or resized. A function of (version, track, index).
"""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from ima.data.draws import Draws, hash_unit
from ima.data.source import Source
from ima.data.stampworld import words
from ima.data.stampworld.catalog import Catalog, Stamp
from ima.data.stampworld.layout import ANCHORS, Box, Group, lay_out
from ima.data.stampworld.render import KINDS, Placed, compose
from ima.data.stampworld.single import VERSION
from ima.errors import UserError, nearest
from ima.tasks.metrics.nouns import NounReader
from ima.types import Sample

SPLIT_OF = {"train": "train", "V0": "train", "T0": "train", "V1": "V1", "T1": "T1", "T2": "T2"}
NUM_KINDS, KIND_WEIGHTS = (1, 2, 3, 4), (0.15, 0.35, 0.35, 0.15)
NUM_COPIES, COPY_WEIGHTS = (1, 2, 3, 4), (0.75, 0.15, 0.07, 0.03)
MAX_BOXES = 6
INTRUDER_RATIO = 0.2
HELD_RATIO = 0.1


class StampScenes(Source):
    """Scenes with ground truth in `facts`: "objects" [{noun, num, place, category, stamp, cluster, boxes}], "ground".

    nouns: "all", "demo" or a list. num_*: scenes of each track (val has V0 and V1, half each). The rest as StampSingle.
    """

    modality = "image"
    splits = ("train", "val", "T0", "T1", "T2")
    RANGES = {
        "num_train": (1, None),
        "num_val": (2, None),
        "num_t0": (1, None),
        "num_t1": (1, None),
        "num_t2": (1, None),
        "size": (96, None),
    }

    def __init__(
        self,
        nouns: str | Iterable[str] = "all",
        num_train: int = 4000,
        num_val: int = 300,
        num_t0: int = 500,
        num_t1: int = 500,
        num_t2: int = 200,
        seed: int = 0,
        size: int = 224,
        svg: bool = False,
        folder: str | None = None,
        table: str | None = None,
    ) -> None:
        for key, value, low in (("num_train", num_train, 1), ("num_val", num_val, 2), ("num_t0", num_t0, 1),
                                ("num_t1", num_t1, 1), ("num_t2", num_t2, 1), ("size", size, 96)):  # fmt: skip
            if value < low:
                raise UserError(f"{key}: {value} is too small; at least {low}")
        self.name = "stampworld/scene"
        self.catalog = Catalog(folder, table, svg)
        self.nouns = self.catalog.select(nouns)
        self.seed, self.size = seed, size
        self._nums = {"train": num_train, "V0": num_val // 2, "V1": num_val - num_val // 2}
        self._nums |= {"T0": num_t0, "T1": num_t1, "T2": num_t2}
        self._stamps = {stamp.key: stamp for stamp in self.catalog.stamps}
        self._reader = NounReader(self.catalog.nouns)

    @property
    def fingerprint(self) -> str:
        nouns = hashlib.sha256(repr(sorted(self.nouns)).encode()).hexdigest()
        facts = (VERSION, self.name, self.catalog.manifest, nouns, self.size, self.seed, PIL.__version__)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The scenes of one split, always in the same order. A track without a stamp is empty."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        tracks = ("V0", "V1") if split == "val" else (split,)
        return [
            self._sample(split, track, i) for track in tracks if self._pool(track) for i in range(self._nums[track])
        ]

    def medium(self, sample: Sample) -> Image.Image:
        """RGB, size x size."""
        draws = Draws(VERSION, "scene pixels", sample.id, self.seed if sample.split == "train" else 0)
        placed = []
        for item in sample.facts["objects"]:
            stamp = self._stamps[item["stamp"]]
            for left, top, right, bottom in item["boxes"]:
                image = self.catalog.picture(stamp).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
                if draws.chance(0.5) and stamp.mirror:
                    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                placed.append(Placed(image, left, top))
        side = "train" if sample.split == "train" else "test"
        return compose(draws, self.size, side, placed, sample.facts["ground"])

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def _pool(self, track: str) -> dict[str, tuple[Stamp, ...]]:
        """The stamps that a track may show, by noun."""
        pool: dict[str, list[Stamp]] = {}
        for stamp in self.catalog.stamps:
            if stamp.split == SPLIT_OF[track] and (stamp.noun in self.nouns or track == "T2"):
                pool.setdefault(stamp.noun, []).append(stamp)
        return {noun: tuple(stamps) for noun, stamps in sorted(pool.items())}

    def _sample(self, split: str, track: str, index: int) -> Sample:
        draws = Draws(VERSION, "scene", track, index, self.seed if track == "train" else 0)
        while True:  # almost always once: a crowded draw that does not fit is drawn again
            theme, groups = self._draw_groups(draws, track)
            boxes = lay_out(draws, groups, self.size)
            if boxes is not None:
                break
        kinds = theme_grounds(theme) if draws.chance(0.5) else KINDS
        ground = draws.choice(kinds)
        objects = [self._object(group, found) for group, found in zip(groups, boxes, strict=True)]
        said = [(self.catalog.nouns[group.stamp.noun], group.num, group.place) for group in groups]
        nouns = tuple(group.stamp.noun for group in groups)
        return Sample(
            id=f"{self.name}/{track}/{index:06d}",
            split=split,
            track=track,
            modality=self.modality,
            references=words.scene_references(said, ground, "train" if split == "train" else "test"),
            cluster=groups[0].stamp.cluster,
            facts={
                "nouns": nouns,
                "objects": objects,
                "ground": ground,
                "theme": theme,
                "held_pair": any(held_pair(a, b) for i, a in enumerate(nouns) for b in nouns[:i]),
                "held_cell": any(held_cell(group.stamp, group.place) for group in groups),
                "kinds": ("template",) * 5,
                "vocabulary": "stamps",
            },
        )

    def _object(self, group: Group, boxes: list[Box]) -> dict[str, Any]:
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

    def _draw_groups(self, draws: Draws, track: str) -> tuple[str, list[Group]]:
        pool = self._pool(track)
        theme = draws.choice(sorted(themes()))
        at_home = [noun for noun in themes()[theme] if noun in pool]
        zipf = [(rank + 1) ** -0.6 for rank in range(len(at_home))]
        wanted = draws.weighted(NUM_KINDS, KIND_WEIGHTS)
        places = draws.shuffled(list(ANCHORS))
        groups: list[Group] = []
        for _ in range(wanted * 4):
            if len(groups) == wanted:
                break
            intruder = not at_home or draws.chance(INTRUDER_RATIO)
            noun = draws.choice(list(pool)) if intruder else draws.weighted(at_home, zipf)
            stamp, place = draws.choice(pool[noun]), places[len(groups)]
            num = 1 if self.catalog.nouns[noun].one else draws.weighted(NUM_COPIES, COPY_WEIGHTS)
            if any(self._clash(noun, group.stamp.noun) for group in groups):
                continue
            if track == "train" and any(held_pair(noun, group.stamp.noun) for group in groups):
                continue
            if track == "train" and held_cell(stamp, place):
                continue
            room = MAX_BOXES - sum(group.num for group in groups)
            groups.append(Group(stamp, max(1, min(num, room)), place))
        return (theme, groups) if groups else self._draw_groups(draws, track)

    def _clash(self, noun: str, other: str) -> bool:
        """A hen and a chicken in one scene could not be told apart by what a caption says."""
        return noun == other or noun in self._reader.above[other] or other in self._reader.above[noun]


@functools.cache
def themes() -> dict[str, tuple[str, ...]]:
    with open(Path(__file__).parent / "themes.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["theme"]: tuple(row["nouns"].split(",")) for row in rows}


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
