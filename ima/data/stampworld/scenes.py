"""Scenes of one to four kinds of things with exact ground truth: boxes, numbers, places, background.

Nouns co-occur by theme (farm, kitchen, street, ...) with 20 % intruders. A tenth of the noun pairs and a tenth of the
(stamp, place) cells never occur in training: T0 asks for them. T1 scenes show only new stamps, T2 only new nouns.
Copies of a noun in one scene are the same stamp, mirrored or resized. A function of (version, track, index).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import PIL
from PIL import Image

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld import words
from ima.data.stampworld.catalog import Catalog
from ima.data.stampworld.layout import lay_out
from ima.data.stampworld.scenery import KIND_WEIGHTS, NUM_KINDS, Scenery, draw_ground, held_cell, held_pair
from ima.data.stampworld.single import VERSION


class StampScenes(Source):
    """Scenes with ground truth in `facts`: "objects" [{noun, num, place, category, stamp, cluster, boxes}], "ground".

    nouns: "all", "demo", "few" or a list. num_*: scenes of each track (val has V0 and V1, half each). max_kinds: at
    most so many different nouns in a scene. The rest as StampSingle.
    """

    modality = "image"
    splits = ("train", "val", "T0", "T1", "T2")
    RANGES = {
        "num_train": (1, None),
        "num_val": (2, None),
        "num_t0": (1, None),
        "num_t1": (1, None),
        "num_t2": (1, None),
        "max_kinds": (1, 4),
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
        max_kinds: int = 4,
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
        if max_kinds not in NUM_KINDS:
            raise UserError(f"max_kinds: {max_kinds} is out of range; allowed: 1 to {NUM_KINDS[-1]}")
        self.name = "stampworld/scene"
        self.catalog = Catalog(folder, table, svg)
        self.nouns = self.catalog.select(nouns)
        self.scenery = Scenery(self.catalog, self.nouns)
        self.seed, self.size, self.max_kinds = seed, size, max_kinds
        self._kinds = dict(list(zip(NUM_KINDS, KIND_WEIGHTS, strict=True))[:max_kinds])
        self._nums = {"train": num_train, "V0": num_val // 2, "V1": num_val - num_val // 2}
        self._nums |= {"T0": num_t0, "T1": num_t1, "T2": num_t2}

    @property
    def fingerprint(self) -> str:
        nouns = hashlib.sha256(repr(sorted(self.nouns)).encode()).hexdigest()
        facts = (
            VERSION,
            self.name,
            self.catalog.manifest,
            nouns,
            self.max_kinds,
            self.size,
            self.seed,
            PIL.__version__,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The scenes of one split, always in the same order. A track without a stamp is empty."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        tracks = ("V0", "V1") if split == "val" else (split,)
        shown = [track for track in tracks if self.scenery.pool(track)]
        return [self._sample(split, track, i) for track in shown for i in range(self._nums[track])]

    def medium(self, sample: Sample) -> Image.Image:
        """RGB, size x size."""
        draws = Draws(VERSION, "scene pixels", sample.id, self.seed if sample.split == "train" else 0)
        side = "train" if sample.split == "train" else "test"
        return self.scenery.picture(draws, sample.facts["objects"], self.size, side, sample.facts["ground"])

    def _sample(self, split: str, track: str, index: int) -> Sample:
        draws = Draws(VERSION, "scene", track, index, self.seed if track == "train" else 0)
        while True:  # almost always once: a crowded draw that does not fit is drawn again
            theme, groups = self.scenery.draw_groups(draws, track, kinds=self._kinds)
            boxes = lay_out(draws, groups, self.size)
            if boxes is not None:
                break
        ground = draw_ground(draws, theme)
        objects = [self.scenery.describe(group, found) for group, found in zip(groups, boxes, strict=True)]
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
