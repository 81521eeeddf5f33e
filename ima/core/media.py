"""What a source shows and an encoder sees or hears: a picture, a sound, a clip.

A picture is a PIL image. Sounds are mono float32; clips give their frames on demand, so that a long video is never
decoded whole. Nothing here reads files. `to_rgb` is the one way from any kind of picture to what an encoder sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

MODALITIES = ("image", "video", "audio")
RATES = (1_000, 768_000)  # samples a second that a sound may have
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
FULL = {8: 255.0, 16: 65535.0, 32: 2.0**31 - 1}  # the brightest value of pictures with so many bits


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


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits from a picture of any mode; what is transparent becomes white. Raises ValueError for pixels that
    are not finite.

    Pictures of more than 8 bits are scaled, not clipped: 16 bits by their range, 32 bits and floats by the narrowest of
    0..1 (floats), 8, 16 and 32 bits that holds their brightest pixel.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return eight_bits(image).convert("RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 8 bits from grey of 16 or 32 bits or floats."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    if image.mode == "I" and values.size and values.min() < 0 and sample_format(image) == 1:
        values = np.where(values < 0, values + 2.0**32, values) / 2  # whole numbers without a sign, read with one
    brightest = float(values.max(initial=0.0))
    if image.mode.startswith("I;16"):
        full = FULL[16]
    elif image.mode == "F" and brightest <= 1:
        full = 1.0
    else:
        full = next((full for full in FULL.values() if brightest <= full), brightest)
    return Image.fromarray(np.round(np.clip(values / full, 0, 1) * 255).astype(np.uint8))


def sample_format(image: Image.Image) -> int:
    """Of a TIFF: 1 for whole numbers without a sign, 2 with one, 3 for floats; 0 where it is not known."""
    found = dict(getattr(image, "tag_v2", {})).get(339, 0)
    return int(found[0] if isinstance(found, tuple) else found)


def spaced(num_frames: int, num: int) -> list[int]:
    """Indices of the middles of `num` equal segments; short clips repeat frames. Deterministic, unlike random draws."""
    return [min(num_frames - 1, int((index + 0.5) * num_frames / num)) for index in range(num)]
