"""Yes/no probes of what is there (POPE): as many nouns that a scene shows as nouns that it does not.

The absent ones come in three types: random, popular (the most frequent of the training scenes) and adversarial (those
that training shows most often together with what is there). Only the last asks for eyes: the gap between random and
adversarial is what habit invents. Nothing that a noun could also be called is ever an absent one. Tests only: train on
questions (`vqa`), then evaluate here. A function of (version, track, index).
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import PIL
from PIL import Image

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.catalog import Catalog
from ima.data.stampworld.layout import lay_out
from ima.data.stampworld.scenery import KIND_WEIGHTS, NUM_KINDS, Scenery, draw_ground
from ima.data.stampworld.scenes import StampScenes
from ima.data.stampworld.single import VERSION
from ima.data.stampworld.words import exists

TYPES = ("random", "popular", "adversarial")
NUM_COUNTED = 4000  # training scenes that the frequencies come from
NUM_TRIES = 200


class StampPope(Source):
    """For each picture and each type `num_present` nouns that are there and as many that are not. `facts`: "type",
    "noun", "present", "nouns", "objects", "ground", "theme".

    nouns: "all", "demo", "few" or a list, those of the training. num_val, num_t0, num_t1: pictures of each track (val
    has V0 and V1, half each). max_kinds: at most so many different nouns in a picture. The rest as StampSingle.
    """

    modality = "image"
    splits = ("val", "T0", "T1")
    RANGES = {
        "num_val": (2, None),
        "num_t0": (1, None),
        "num_t1": (1, None),
        "num_present": (1, 3),
        "max_kinds": (1, 4),
        "size": (96, None),
    }

    def __init__(
        self,
        nouns: str | Iterable[str] = "all",
        num_val: int = 100,
        num_t0: int = 500,
        num_t1: int = 500,
        num_present: int = 3,
        max_kinds: int = 4,
        seed: int = 0,
        size: int = 224,
        svg: bool = False,
        folder: str | None = None,
        table: str | None = None,
    ) -> None:
        for key, value, low in (("num_val", num_val, 2), ("num_t0", num_t0, 1), ("num_t1", num_t1, 1),
                                ("num_present", num_present, 1), ("size", size, 96)):  # fmt: skip
            if value < low:
                raise UserError(f"{key}: {value} is too small; at least {low}")
        if max_kinds not in NUM_KINDS or num_present > min(3, max_kinds):
            raise UserError(
                f"num_present: {num_present}, max_kinds: {max_kinds}; allowed: max_kinds 1 to {NUM_KINDS[-1]}, "
                "num_present at most 3 and at most max_kinds"
            )
        self.name = "stampworld/pope"
        self.catalog = Catalog(folder, table, svg)
        self.nouns = self.catalog.select(nouns)
        self.scenery = Scenery(self.catalog, self.nouns)
        self.seed, self.size, self.num_present, self.max_kinds = seed, size, num_present, max_kinds
        self._nums = {"V0": num_val // 2, "V1": num_val - num_val // 2, "T0": num_t0, "T1": num_t1}
        every = zip(NUM_KINDS, KIND_WEIGHTS, strict=True)
        self._kinds = {num: weight for num, weight in every if num_present <= num <= max_kinds}
        self._folder, self._table = folder, table

    @property
    def fingerprint(self) -> str:
        chosen = (sorted(self.nouns), self.num_present, self.max_kinds, self.size)
        facts = (VERSION, self.name, self.catalog.manifest, chosen, PIL.__version__)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The probes of one split, always in the same order. A track without a stamp is empty."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        return list(self._samples(split))

    def medium(self, sample: Sample) -> Image.Image:
        """RGB, size x size."""
        draws = Draws(VERSION, "pope pixels", sample.medium_key)
        return self.scenery.picture(draws, sample.facts["objects"], self.size, "test", sample.facts["ground"])

    @functools.cached_property
    def counts(self) -> tuple[Counter[str], Counter[tuple[str, str]]]:
        """In how many training scenes a noun is, and two nouns are together (both orders)."""
        chosen = sorted(self.nouns)
        scenes = StampScenes(
            chosen, num_train=NUM_COUNTED, svg=self.catalog.svg, folder=self._folder, table=self._table
        )
        single: Counter[str] = Counter()
        double: Counter[tuple[str, str]] = Counter()
        for scene in scenes.samples("train"):
            there = scene.facts["nouns"]
            single.update(there)
            double.update((a, b) for a in there for b in there if a != b)
        return single, double

    def absent(self, draws: Draws, track: str, there: Sequence[str]) -> dict[str, list[str]]:
        """Type -> the nouns to ask for that are not there. Every candidate could be there in other scenes of the track,
        and none is another word for what is there."""
        single, double = self.counts
        free = [noun for noun in self.scenery.pool(track) if not any(self.scenery.confused(noun, o) for o in there)]

        def together(noun: str) -> float:
            return sum(double[other, noun] / single[other] for other in there if single[other])

        ranked = {
            "random": draws.shuffled(free),
            "popular": sorted(free, key=lambda noun: (-single[noun], noun)),
            "adversarial": sorted(free, key=lambda noun: (-together(noun), noun)),
        }
        return {kind: ranked[kind][: self.num_present] for kind in TYPES}

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def _samples(self, split: str) -> tuple[Sample, ...]:
        tracks = ("V0", "V1") if split == "val" else (split,)
        shown = [track for track in tracks if self.scenery.pool(track)]
        return tuple(s for track in shown for i in range(self._nums[track]) for s in self._probe(split, track, i))

    def _probe(self, split: str, track: str, index: int) -> list[Sample]:
        draws = Draws(VERSION, "pope", track, index)
        for _ in range(NUM_TRIES):
            theme, groups = self.scenery.draw_groups(draws, track, kinds=self._kinds)
            boxes = lay_out(draws, groups, self.size)
            there = [group.stamp.noun for group in groups]
            if boxes is None or len(there) < self.num_present:
                continue
            absent = self.absent(draws, track, there)
            if all(len(nouns) == self.num_present for nouns in absent.values()):
                break
        else:
            raise UserError(f"nouns: too few for {self.num_present} present and absent ones (track {track})")
        present = draws.shuffled(there)[: self.num_present]
        picture = f"{self.name}/{track}/{index:06d}"
        facts = {
            "nouns": tuple(there),
            "objects": [self.scenery.describe(group, found) for group, found in zip(groups, boxes, strict=True)],
            "vocabulary": "stamps",
            "answers": ("yes", "no"),
            "ground": draw_ground(draws, theme),
            "theme": theme,
        }
        return [
            Sample(
                id=f"{picture}/{kind}/{number}",
                split=split,
                track=track,
                modality=self.modality,
                references=("yes" if noun in there else "no",),
                question=exists(self.catalog.nouns[noun]),
                cluster=groups[0].stamp.cluster,
                facts=facts | {"type": kind, "noun": noun, "present": noun in there},
                medium_id=picture,
            )
            for kind, nouns in absent.items()
            for number, noun in enumerate([*present, *nouns])
        ]
