"""Stamps on procedural backgrounds: the same key always gives the same pixels.

Six kinds of background, shared by all nouns so that none gives a noun away; hue, horizon and period come from ranges
that training and test do not share. A background on which a stamp would vanish is drawn again. Hides all Pillow and
numpy arithmetic; what stands where is decided by the callers.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ima.core.keyed_random import Draws

KINDS = ("plain", "gradient", "horizon", "striped", "checked", "cloudy")
MIN_CONTRAST = 12.0
NUM_TRIES = 8


# Training and test draw from different halves of every range: 12 sectors of hue (even | odd), and intervals.
@dataclass(frozen=True)
class Ranges:
    """hue: which of every two sectors. horizon: share of the height. period: pixels. grid: cells of the clouds."""

    hue: int
    horizon: tuple[float, float]
    period: tuple[float, float]
    grid: tuple[int, int]


RANGES = {
    "train": Ranges(0, (0.45, 0.60), (24.0, 40.0), (3, 5)),
    "test": Ranges(1, (0.62, 0.75), (44.0, 64.0), (6, 8)),
}


@dataclass(frozen=True)
class Placed:
    """A stamp where it stands: the top left corner of its RGBA picture, in pixels."""

    image: Image.Image
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of what is visible."""
        found = self.image.getchannel("A").point([255 if a > 8 else 0 for a in range(256)]).getbbox()
        x0, y0, x1, y1 = found or (0, 0, *self.image.size)
        return self.left + x0, self.top + y0, self.left + x1, self.top + y1


def pose(image: Image.Image, edge: int, angle: float = 0.0, mirror: bool = False) -> Image.Image:
    """Scale the longer edge to at most `edge` pixels (never more than four-fold up), turn by `angle` degrees."""
    scale = min(edge / max(image.size), 4.0)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        if max(image.size) > edge:
            factor = edge / max(image.size)
            image = image.resize(
                (max(1, int(image.width * factor)), max(1, int(image.height * factor))), Image.Resampling.LANCZOS
            )
    return image


def compose(draws: Draws, size: int, side: str, placed: Sequence[Placed], kind: str | None = None) -> Image.Image:
    """The picture (RGB, size x size). `side` is "train" or "test"; `kind` None draws one of KINDS."""
    return paste(ground_for(draws, size, side, placed, kind), placed)


def ground_for(draws: Draws, size: int, side: str, placed: Sequence[Placed], kind: str | None = None) -> np.ndarray:
    """A background, (size, size, 3) uint8, on which all of `placed` can be seen; else the best of some tries."""
    best: tuple[float, np.ndarray] | None = None
    for attempt in range(NUM_TRIES):
        ground = background(draws, size, side, kind or draws.choice(KINDS), attempt % 3 == 2 or draws.chance(0.15))
        contrast = min((contrast_of(ground, stamp) for stamp in placed), default=255.0)
        if best is None or contrast > best[0]:
            best = contrast, ground
        if contrast >= MIN_CONTRAST:
            break
    assert best is not None
    return best[1]


def paste(ground: np.ndarray, placed: Sequence[Placed]) -> Image.Image:
    canvas = Image.fromarray(ground).convert("RGBA")
    for stamp in placed:
        canvas.alpha_composite(stamp.image, (stamp.left, stamp.top))
    return canvas.convert("RGB")


def contrast_of(ground: np.ndarray, stamp: Placed) -> float:
    """Mean absolute difference (0..255) between stamp and background, over the visible part of the stamp."""
    step = 4 if min(stamp.image.size) >= 16 else 1
    rgba = np.asarray(stamp.image, dtype=np.float32)[::step, ::step]
    rows = slice(stamp.top, stamp.top + stamp.image.height, step)
    under = ground[rows, stamp.left : stamp.left + stamp.image.width : step]
    alpha = rgba[..., 3] / 255.0
    difference = np.abs(rgba[..., :3] - under).mean(-1) * alpha
    return float(difference.sum() / max((alpha > 0.03).sum(), 1))


def colour(draws: Draws, side: str, dark: bool) -> np.ndarray:
    """A muted colour whose hue lies in a sector of that side, shape (3,), 0..255."""
    hue = (2 * draws.below(6) + RANGES[side].hue + draws.between(0.1, 0.9)) / 12
    value = draws.between(0.12, 0.35) if dark else draws.between(0.72, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, draws.between(0.12, 0.5), value), dtype=np.float32) * 255


@functools.cache
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column number of every pixel, float32 (size, 1) and (1, size)."""
    line = np.arange(size, dtype=np.float32)
    return line[:, None], line[None, :]


def background(draws: Draws, size: int, side: str, kind: str, dark: bool = False) -> np.ndarray:
    """(size, size, 3) uint8."""
    first, second = colour(draws, side, dark), colour(draws, side, dark)
    row, column = grid(size)
    ranges = RANGES[side]
    if kind == "plain":
        return np.broadcast_to(first.astype(np.uint8), (size, size, 3)).copy()
    if kind == "gradient":
        share = (row if draws.chance(0.5) else column) / (size - 1) + np.zeros((size, size), np.float32)
    elif kind == "horizon":
        line = draws.between(*ranges.horizon) * size
        below = np.clip(row - line + 0.5, 0, 1)
        shade = 0.25 * np.where(row < line, row / size, (size - row) / size)
        share = np.clip(below * (1 - shade) + (1 - below) * shade, 0, 1) + np.zeros((size, size), np.float32)
    elif kind == "striped":
        turn = draws.choice((0.0, 1.0, 0.5))
        length = draws.between(*ranges.period) / (2.0 if turn == 0.5 else 1.0)
        wave = np.sin((row * turn + column * (1 - turn)) * (2 * np.pi / length))
        share = 0.6 * np.clip(wave * 6 + 0.5, 0, 1)
    elif kind == "checked":
        period = draws.between(*ranges.period)
        share = 0.5 * ((np.floor(row / period) + np.floor(column / period)) % 2)
    else:
        low, high = ranges.grid
        num = low + draws.below(high - low + 1)
        soft = Image.fromarray((draws.field(num, num) * 255).astype(np.uint8))
        share = np.asarray(soft.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    share = share[..., None].astype(np.float32)
    return (first + (second - first) * share).clip(0, 255).astype(np.uint8)
