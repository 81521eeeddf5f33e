"""The fall-back without real pictures: one coloured shape somewhere on a procedural background.

Not a benchmark: it shows that everything runs where Debian's stamps cannot be had, and its name says what it is.
12 shapes x 8 colours; a quarter of the (shape, colour) pairs is kept for T1, some for validation (V1), the rest trains.
"""

from __future__ import annotations

import functools
import hashlib
import math

import PIL
from PIL import Image, ImageDraw

from ima.core.errors import UserError
from ima.core.errors import nearest as nearest_name
from ima.core.keyed_random import Draws, hash_unit
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.layout import ANCHORS, nearest
from ima.data.stampworld.render import Placed, compose, pose
from ima.data.stampworld.words import PLACE_PHRASES
from ima.tasks.metrics.vocabulary import load_nouns, with_article

VERSION = "shapes-1"
COLOURS = {
    "red": (214, 40, 40),
    "green": (34, 139, 34),
    "blue": (30, 80, 220),
    "yellow": (250, 215, 20),
    "orange": (245, 130, 25),
    "purple": (128, 40, 160),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
DRAWN = 192  # pixels of the drawing that is scaled down
SHARES = (("T1", 0.25), ("V1", 0.33))  # upper ends of the hash intervals; the rest trains


class Shapes(Source):
    """num_train, num_test: pictures of the training split and of each of val, T0, T1. There is no T2."""

    modality = "image"
    splits = ("train", "val", "T0", "T1")
    RANGES = {"num_train": (1, None), "num_test": (1, None), "size": (32, None)}

    def __init__(self, num_train: int = 1000, num_test: int = 240, seed: int = 0, size: int = 224) -> None:
        for key, value, low in (("num_train", num_train, 1), ("num_test", num_test, 1), ("size", size, 32)):
            if value < low:
                raise UserError(f"{key}: {value} is too small; at least {low}")
        self.name = "shapes (procedural)"
        self.num_train, self.num_test, self.seed, self.size = num_train, num_test, seed, size

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((VERSION, self.size, self.seed, PIL.__version__)).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """Pairs in turn, so that any prefix is balanced. val: track V0 (trained pairs) and V1 (new ones), half each."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest_name(split, self.splits)}")
        if split == "val":
            half = self.num_test // 2
            return self._of("val", "V0", half) + self._of("val", "V1", self.num_test - half)
        return self._of(split, split, self.num_train if split == "train" else self.num_test)

    def medium(self, sample: Sample) -> Image.Image:
        """RGB, size x size."""
        draws, placed, _ = self._place(sample.track, sample.facts["noun"], sample.facts["colour"], sample.facts["view"])
        return compose(draws, self.size, "train" if sample.split == "train" else "test", [placed])

    def _of(self, split: str, track: str, num: int) -> list[Sample]:
        pairs = pairs_of({"V0": "train", "T0": "train"}.get(track, track))
        return [self._sample(split, track, *pairs[index % len(pairs)], index // len(pairs)) for index in range(num)]

    def _place(self, track: str, noun: str, colour: str, view: int) -> tuple[Draws, Placed, str]:
        draws = Draws(VERSION, track, noun, colour, view, self.seed if track == "train" else 0)
        anchor = draws.choice(list(ANCHORS))
        edge = round(draws.between(56, 104) / 224 * self.size)
        image = pose(draw_shape(noun, colour), edge, draws.between(-10, 10))
        corner = [
            max(0, min(round(ANCHORS[anchor][axis] * self.size - image.size[axis] / 2 + draws.between(-10, 10)),
                       self.size - image.size[axis]))
            for axis in (0, 1)
        ]  # fmt: skip
        placed = Placed(image, *corner)
        return draws, placed, nearest([placed.box], self.size)

    def _sample(self, split: str, track: str, noun: str, colour: str, view: int) -> Sample:
        _, placed, place = self._place(track, noun, colour, view)
        phrase, where = with_article(f"{colour} {noun}"), PLACE_PHRASES[place]
        shared = (phrase, f"{phrase} {where}")
        train = (*shared, f"a picture of {phrase}", f"{with_article(noun)} that is {colour}")
        test = (*shared, f"there is {phrase} {where}", f"we can see {phrase}")
        return Sample(
            id=f"shapes/{track}/{noun}/{colour}/{view}",
            split=split,
            track=track,
            modality=self.modality,
            references=train if split == "train" else test,
            cluster=f"{noun}/{colour}",
            facts={
                "noun": noun,
                "nouns": (noun,),
                "category": "shape",
                "colour": colour,
                "view": view,
                "objects": [{"noun": noun, "num": 1, "place": place, "category": "shape", "boxes": (placed.box,)}],
                "kinds": ("template",) * 4,
                "vocabulary": "shapes",
            },
        )


@functools.cache
def pairs_of(part: str) -> tuple[tuple[str, str], ...]:
    """The (shape, colour) pairs of train, V1 or T1, in hash order; every shape and every colour occurs in train."""
    out = []
    for noun in load_nouns("shapes"):
        for colour in COLOURS:
            unit = hash_unit(VERSION, "pair", noun, colour)
            found = next((name for name, end in SHARES if unit < end), "train")
            if found == part:
                out.append((noun, colour))
    return tuple(sorted(out, key=lambda pair: hash_unit(VERSION, "order", *pair)))


@functools.cache
def draw_shape(noun: str, colour: str) -> Image.Image:
    """RGBA, the shape in its colour on nothing."""
    image = Image.new("RGBA", (DRAWN, DRAWN), (*COLOURS[colour], 0))
    pen, fill, full = ImageDraw.Draw(image), (*COLOURS[colour], 255), DRAWN - 1
    if noun == "circle":
        pen.ellipse((0, 0, full, full), fill=fill)
    elif noun == "oval":
        pen.ellipse((0, DRAWN * 0.25, full, DRAWN * 0.75), fill=fill)
    elif noun == "ring":
        pen.ellipse((0, 0, full, full), outline=fill, width=DRAWN // 6)
    else:
        pen.polygon([(x * full, y * full) for x, y in corners(noun)], fill=fill)
    box = image.getchannel("A").getbbox()
    return image.crop(box) if box else image


def corners(noun: str) -> list[tuple[float, float]]:
    """Corners in the unit square, y downwards."""
    third = 1 / 3
    fixed = {
        "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
        "rectangle": [(0.0, 0.3), (1.0, 0.3), (1.0, 0.7), (0.0, 0.7)],
        "triangle": [(0.5, 0.05), (1.0, 0.92), (0.0, 0.92)],
        "diamond": [(0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)],
        "cross": [
            *((third, 0.0), (2 * third, 0.0), (2 * third, third), (1.0, third), (1.0, 2 * third)),
            *((2 * third, 2 * third), (2 * third, 1.0), (third, 1.0), (third, 2 * third), (0.0, 2 * third)),
            *((0.0, third), (third, third)),
        ],
        "arrow": [(0.0, 0.36), (0.55, 0.36), (0.55, 0.12), (1.0, 0.5), (0.55, 0.88), (0.55, 0.64), (0.0, 0.64)],
    }
    if noun in fixed:
        return fixed[noun]
    radii = {"pentagon": [0.5] * 5, "hexagon": [0.5] * 6, "star": [0.5, 0.2] * 5}[noun]
    turns = [2 * math.pi * index / len(radii) for index in range(len(radii))]
    return [(0.5 + r * math.sin(turn), 0.5 - r * math.cos(turn)) for r, turn in zip(radii, turns, strict=True)]
