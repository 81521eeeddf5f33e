"""What a source shows and an encoder sees or hears: a picture, a sound, a clip.

A picture is a PIL image. Sounds are mono float32; clips give their frames on demand, so that a long video is never
decoded whole. Nothing here reads files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

MODALITIES = ("image", "video", "audio")


@dataclasses.dataclass(frozen=True)
class Sound:
    """wave: (num_samples,) float32, mono, about -1 to 1. rate: samples a second."""

    wave: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


@runtime_checkable
class Clip(Protocol):
    """num_frames frames at fps a second; `frames` decodes the asked ones only, in the order asked."""

    @property
    def num_frames(self) -> int: ...

    @property
    def fps(self) -> float: ...

    def frames(self, indices: Sequence[int]) -> list[Image.Image]: ...


@dataclasses.dataclass(frozen=True)
class Frames:
    """A clip whose frames are there already."""

    images: tuple[Image.Image, ...]
    fps: float = 8.0

    @property
    def num_frames(self) -> int:
        return len(self.images)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        return [self.images[index] for index in indices]


Medium = Image.Image | Sound | Clip


def spaced(num_frames: int, num: int) -> list[int]:
    """Indices of the middles of `num` equal segments; short clips repeat frames. Deterministic, unlike random draws."""
    return [min(num_frames - 1, int((index + 0.5) * num_frames / num)) for index in range(num)]
