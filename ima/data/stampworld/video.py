"""Clips of one or two movers and things that stay still, with exact ground truth: who does what, where, in each frame.

Ten motions (ima.tasks.metrics.motions). Nothing but the motion itself tells it: stamps are mirrored at random, the
middle frame is drawn alike for all motions, motions and nouns take turns. A tenth of the (noun, motion) pairs never
occur in training: T0 asks for them. T1 shows only new stamps, T2 only new nouns. A function of (version, track, index).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import PIL
from PIL import Image

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws, hash_unit
from ima.core.media import Frames
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.catalog import Catalog, Stamp
from ima.data.stampworld.motions import Pose, control_order, middle, path, zones
from ima.data.stampworld.render import KINDS, Placed, ground_for, pose
from ima.data.stampworld.video_words import clip_references
from ima.tasks.metrics.motions import MOTIONS, STILL
from ima.tasks.metrics.nouns import NounReader

VERSION = "stampworld-video-1"
SPLIT_OF = {"train": "train", "V0": "train", "T0": "train", "V1": "V1", "T1": "T1", "T2": "T2"}
TWO_MOVERS = 0.25
NUM_STATIC, STATIC_WEIGHTS = (0, 1, 2), (0.55, 0.3, 0.15)
HELD_RATIO = 0.1


class StampVideo(Source):
    """Clips with ground truth in `facts`: "objects" [{noun, motion, stamp, cluster, category, mirror, poses}], the
    first one is what the clip is about; "motion" is its motion.

    nouns: "all", "demo" or a list. num_train, ...: clips of each track (val has V0 and V1, half each). num_movers,
    num_static: at most so many things that act and that only stand there. size: pixels of a frame's edge.
    `controls`: the middle frame all the time, and all frames in a wrong order.
    """

    modality = "video"
    splits = ("train", "val", "T0", "T1", "T2")
    controls = ("single_frame", "shuffled_frames")
    RANGES = {
        "num_train": (1, None),
        "num_val": (2, None),
        "num_t0": (1, None),
        "num_t1": (1, None),
        "num_t2": (1, None),
        "num_movers": (1, 2),
        "num_static": (0, 2),
        "num_frames": (4, 64),
        "size": (64, None),
    }

    def __init__(
        self,
        nouns: str | Iterable[str] = "demo",
        num_train: int = 800,
        num_val: int = 100,
        num_t0: int = 200,
        num_t1: int = 200,
        num_t2: int = 100,
        num_movers: int = 2,
        num_static: int = 2,
        num_frames: int = 8,
        seed: int = 0,
        size: int = 160,
        svg: bool = False,
        folder: str | None = None,
        table: str | None = None,
    ) -> None:
        given = {"num_train": num_train, "num_val": num_val, "num_t0": num_t0, "num_t1": num_t1, "num_t2": num_t2}
        given |= {"num_movers": num_movers, "num_static": num_static, "num_frames": num_frames, "size": size}
        for key, value in given.items():
            low, high = StampVideo.RANGES[key]
            if value < (low or 0) or (high is not None and value > high):
                raise UserError(f"{key}: {value} is not allowed; {low} to {high}" if high else f"{key}: at least {low}")
        self.name = "stampworld/video"
        self.catalog = Catalog(folder, table, svg)
        self.nouns = self.catalog.select(nouns)
        self.num_movers, self.num_static, self.num_frames = num_movers, num_static, num_frames
        self.seed, self.size = seed, size
        self._nums = {"train": num_train, "V0": num_val // 2, "V1": num_val - num_val // 2}
        self._nums |= {"T0": num_t0, "T1": num_t1, "T2": num_t2}
        self._stamps = {stamp.key: stamp for stamp in self.catalog.stamps}
        self._reader = NounReader(self.catalog.nouns)

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.name, self.catalog.manifest, tuple(sorted(self.nouns)), self.size, self.num_frames,
                 self.num_movers, self.num_static, self.seed, PIL.__version__)  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The samples of one split, always in the same order."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        tracks = ("V0", "V1") if split == "val" else (split,)
        clips = [self._clip(split, t, index) for t in tracks if self._pool(t) for index in range(self._nums[t])]
        return [sample for clip in clips for sample in self._told(clip)]

    def medium(self, sample: Sample) -> Frames:
        """num_frames RGB pictures, size x size, on one background."""
        facts = sample.facts
        side = "train" if sample.split == "train" else "test"
        draws = Draws(VERSION, "ground", sample.track, facts["index"], self.seed if side == "train" else 0)
        paths = [[Pose(*numbers) for numbers in item["poses"]] for item in facts["objects"]]
        drawn: dict[tuple[int, int, float], Image.Image] = {}

        def placed(number: int, at: Pose) -> Placed:
            edge = max(4, round(at.edge * self.size))
            if (number, edge, at.angle) not in drawn:
                item = facts["objects"][number]
                picture = pose(self.catalog.picture(self._stamps[item["stamp"]]), edge, 0.0, item["mirror"])
                drawn[number, edge, at.angle] = picture.rotate(at.angle, Image.Resampling.BICUBIC, expand=True)
            image = drawn[number, edge, at.angle]
            return Placed(image, round(at.x * self.size - image.width / 2), round(at.y * self.size - image.height / 2))

        centre = self.num_frames // 2
        inside = [within(placed(number, poses[centre]), self.size) for number, poses in enumerate(paths)]
        ground = Image.fromarray(ground_for(draws, self.size, side, inside, facts["ground"])).convert("RGBA")
        frames: dict[tuple[Pose, ...], Image.Image] = {}
        for poses in zip(*paths, strict=True):
            if poses not in frames:
                canvas = ground.copy()
                for number, at in enumerate(poses):
                    if at.visible:
                        stamp = placed(number, at)
                        canvas.alpha_composite(*on_canvas(stamp, self.size))
                frames[poses] = canvas.convert("RGB")
        images = [frames[poses] for poses in zip(*paths, strict=True)]
        return Frames(tuple(images[index] for index in facts.get("order", range(self.num_frames))))

    def control(self, sample: Sample, name: str) -> Sample:
        if name not in self.controls:
            return super().control(sample, name)
        order = control_order(name, self.num_frames, (VERSION, sample.medium_key))
        return dataclasses.replace(
            sample,
            id=f"{sample.id}/{name}",
            medium_id=f"{sample.medium_key}/{name}",
            facts={**sample.facts, "order": order},
        )

    def _told(self, clip: Sample) -> list[Sample]:
        """The samples that a clip gives: here its captions."""
        return [clip]

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def _pool(self, track: str) -> dict[str, tuple[Stamp, ...]]:
        """The stamps that a track may show, by noun."""
        pool: dict[str, list[Stamp]] = {}
        for stamp in self.catalog.stamps:
            if stamp.split == SPLIT_OF[track] and (stamp.noun in self.nouns or track == "T2"):
                pool.setdefault(stamp.noun, []).append(stamp)
        return {noun: tuple(stamps) for noun, stamps in sorted(pool.items())}

    def _clip(self, split: str, track: str, index: int) -> Sample:
        draws = Draws(VERSION, "clip", track, index, self.seed if track == "train" else 0)
        motions = self._motions(draws, track, index)
        nouns = self._draw_nouns(draws, track, index, motions)
        motions = motions[: len(nouns)]
        objects = self._objects(draws, track, nouns, motions)
        ground = draws.choice(KINDS)
        done = [(self.catalog.nouns[noun], motion) for noun, motion in zip(nouns, motions, strict=True)]
        references = clip_references(done, ground, "train" if split == "train" else "test")
        return Sample(
            id=f"{self.name}/{track}/{index:06d}",
            split=split,
            track=track,
            modality=self.modality,
            references=references,
            cluster=objects[0]["cluster"],
            facts={
                "nouns": tuple(nouns),
                "objects": objects,
                "motion": motions[0],
                "ground": ground,
                "index": index,
                "held_pair": any(held(*pair) for pair in zip(nouns, motions, strict=True)),
                "kinds": ("template",) * len(references),
                "vocabulary": "stamps",
            },
        )

    def _first_motion(self, track: str, index: int) -> str:
        """Every ten clips show each motion once."""
        block, place = divmod(index, len(MOTIONS))
        return Draws(VERSION, "motions", track, block, self._seed(track)).shuffled(MOTIONS)[place]

    def _motions(self, draws: Draws, track: str, index: int) -> list[str]:
        """Of each thing; the first is the one that the clip is about."""
        second = self.num_movers > 1 and draws.chance(TWO_MOVERS)
        num_static = min(draws.weighted(NUM_STATIC, STATIC_WEIGHTS), self.num_static)
        return [
            self._first_motion(track, index), *([draws.choice(MOTIONS)] if second else []), *([STILL] * num_static)
        ]  # fmt: skip

    def _draw_nouns(self, draws: Draws, track: str, index: int, motions: Sequence[str]) -> list[str]:
        """The first noun by turns for each motion, the others at random among those that can be told from it."""
        pool = self._pool(track)
        held_out = held if track == "train" else lambda noun, motion: False
        block = index // len(MOTIONS)
        turns = [noun for noun in pool if not held_out(noun, motions[0])] or list(pool)
        order = Draws(VERSION, "nouns", track, motions[0], block // len(turns), self._seed(track)).shuffled(turns)
        nouns = [order[block % len(turns)]]
        for motion in motions[1:]:
            free = [noun for noun in pool if not any(self._clash(noun, other) for other in nouns)]
            free = [noun for noun in free if not held_out(noun, motion)] or free
            if free:  # a very small pool may have none: then the clip shows less
                nouns.append(draws.choice(free))
        return nouns

    def _objects(
        self, draws: Draws, track: str, nouns: Sequence[str], motions: Sequence[str]
    ) -> tuple[dict[str, Any], ...]:
        pool, num = self._pool(track), len(nouns)
        out = []
        for noun, motion, zone in zip(nouns, motions, zones(draws, num), strict=True):
            stamp = draws.choice(pool[noun])
            mirror = draws.chance(0.5) and stamp.mirror
            poses = path(draws, middle(draws, zone, num), motion, num, self.num_frames)
            out.append(
                {
                    "noun": noun,
                    "num": 1,
                    "motion": motion,
                    "category": self.catalog.nouns[noun].category,
                    "stamp": stamp.key,
                    "cluster": stamp.cluster,
                    "mirror": mirror,
                    "poses": tuple(dataclasses.astuple(one) for one in poses),
                }
            )
        return tuple(out)

    def _seed(self, track: str) -> int:
        return self.seed if track == "train" else 0

    def _clash(self, noun: str, other: str) -> bool:
        """A hen and a chicken in one clip could not be told apart by what a caption says."""
        return noun == other or noun in self._reader.above[other] or other in self._reader.above[noun]


def within(stamp: Placed, size: int) -> Placed:
    """The part of a stamp that lies on a picture of that size."""
    image, corner = on_canvas(stamp, size)
    return Placed(image, *corner)


def on_canvas(stamp: Placed, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """What of a stamp lies on a size x size canvas, and where; at least one pixel."""
    left, top = max(stamp.left, 0), max(stamp.top, 0)
    right = max(min(stamp.left + stamp.image.width, size), left + 1)
    bottom = max(min(stamp.top + stamp.image.height, size), top + 1)
    image = stamp.image.crop((left - stamp.left, top - stamp.top, right - stamp.left, bottom - stamp.top))
    return image, (min(left, size - 1), min(top, size - 1))


@functools.cache
def held(noun: str, motion: str) -> bool:
    """Pairs of a noun and a motion that no training clip shows."""
    return hash_unit(VERSION, "pair", noun, motion) < HELD_RATIO
