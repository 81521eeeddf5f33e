"""Video encoder: any image encoder on each of a few frames, with codes that say when a frame was.

The image encoder's map is averaged to a small grid; tokens come frame by frame, row by row. The codes are fixed
sinusoids, CONCATENATED to the features rather than added: features keep their values and scale whatever the image
encoder, and a linear adapter can weigh time apart from what is seen. `time="mean"` is the order-blind control.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ima.core.errors import UserError
from ima.core.media import Clip, spaced
from ima.models.encoders.base import Encoder, fingerprint_of
from ima.models.encoders.image import ImagePreprocess

CODE_WIDTH = 16
FRAMES_AT_ONCE = 64  # bounds the memory of a pass, whatever the batch
TIMES = ("positions", "mean")


@dataclasses.dataclass(frozen=True)
class FramesPreprocess:
    """Clip -> x_TCHW: the middles of `num_frames` equal parts of the clip, each as the image encoder wants it."""

    image: ImagePreprocess
    num_frames: int

    def __call__(self, medium: Clip) -> Tensor:
        chosen = spaced(medium.num_frames, self.num_frames)
        return torch.stack([self.image(frame) for frame in medium.frames(chosen)])


class VideoFrames(Encoder):
    """N = num_frames * grid * grid tokens of width E + 16, or E + 0 where time is "mean" with the codes set to zero.

    image: an image encoder, a node of its own. grid: cells a side that a frame's map is averaged to. size: edge of a
    frame in pixels where it differs from the image encoder's own (convolutions and DINOv2 take other sizes).
    time: "positions", or "mean": every frame's tokens are the mean over frames, without codes; same shape, so that the
    same adapter can be trained on both.
    """

    modality = "video"
    RANGES = {"num_frames": (1, 256), "grid": (1, 64), "size": (16, None)}

    def __init__(
        self,
        image: Any,
        num_frames: int = 8,
        grid: int = 4,
        size: int | None = None,
        time: Literal["positions", "mean"] = "positions",
    ) -> None:
        super().__init__()
        if not isinstance(image, Encoder) or image.modality != "image":
            raise UserError(f"encoder.image: {type(image).__name__} is no image encoder; give one with its _target_")
        for key, value in (("num_frames", num_frames), ("grid", grid), ("size", 16 if size is None else size)):
            if value < 1:
                raise UserError(f"encoder.{key}: {value} is too small; at least 1")
        if time not in TIMES:
            raise UserError(f"encoder.time: {time!r} is unknown; {' or '.join(TIMES)}")
        self.image, self.num_frames, self.grid, self.time = image, num_frames, grid, time
        # Convolutions on a CPU are much faster in this layout; features differ in the sixth digit.
        self.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        one: Any = image.preprocess
        if size is not None:
            if not isinstance(one, ImagePreprocess):
                raise UserError(f"encoder.size: {type(image).__name__} has a size of its own; leave out size")
            one = dataclasses.replace(one, height=size, width=size)
        self.preprocess = FramesPreprocess(one, num_frames)
        self.register_buffer("code_TC", time_code(num_frames) * (time == "positions"), persistent=False)
        self.deterministic = image.deterministic
        self.freeze()
        self.num_tokens, self.dim = num_frames * grid * grid, image.dim + CODE_WIDTH
        self.fingerprint = fingerprint_of(
            None, kind="video_frames", image=image.fingerprint, num_frames=num_frames, grid=grid, size=size, time=time,
            layout="channels_last", code=CODE_WIDTH,
        )  # fmt: skip
        self.check_map(one)

    code_TC: Tensor

    def check_map(self, one: ImagePreprocess) -> None:
        """One blank frame, so that a size or a map that does not do is told at once."""
        try:
            num = self.image(torch.zeros(1, 3, one.height, one.width)).shape[1]
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"encoder.size={one.height}: {type(self.image).__name__} refuses it ({reason})") from error
        square_of(num, type(self.image).__name__)

    def encode(self, x_B: Tensor) -> Tensor:
        """x_BTCHW -> f_BNE. A frame that equals the one before it is not looked at again."""
        num = x_B.shape[0]
        new_BT = torch.ones(x_B.shape[:2], dtype=torch.bool, device=x_B.device)
        new_BT[:, 1:] = (x_B[:, 1:] != x_B[:, :-1]).flatten(2).any(2)
        frames = x_B[new_BT].contiguous(memory_format=torch.channels_last)
        cells = torch.cat([self.cells(part) for part in frames.split(FRAMES_AT_ONCE)])
        f_BTgE = cells[new_BT.flatten().cumsum(0) - 1].unflatten(0, (num, self.num_frames))
        if self.time == "mean":
            f_BTgE = f_BTgE.mean(1, keepdim=True).expand_as(f_BTgE)
        code = self.code_TC[None, :, None, :].expand(num, -1, f_BTgE.shape[2], -1)
        return torch.cat([f_BTgE, code], dim=-1).flatten(1, 2)

    def cells(self, x_MCHW: Tensor) -> Tensor:
        """M pictures -> (M, grid * grid, E); a leading CLS token is left out."""
        f_MNE = self.image(x_MCHW)
        side, cls = square_of(f_MNE.shape[1], type(self.image).__name__)
        map_MEhw = f_MNE[:, cls:].transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(map_MEhw, self.grid).flatten(2).transpose(1, 2)


def square_of(num: int, name: str) -> tuple[int, int]:
    """(side, number of leading tokens to leave out) of a map of `num` tokens."""
    for cls in (0, 1, 5):  # none, CLS, CLS with four registers
        side = math.isqrt(max(num - cls, 0))
        if side and side * side == num - cls:
            return side, cls
    raise UserError(f"encoder.image: the {num} tokens of {name} form no square map; VideoFrames needs one")


def time_code(num_frames: int, width: int = CODE_WIDTH) -> Tensor:
    """(num_frames, width): sines and cosines of periods from four clips down to an eighth of one; values in -1..1."""
    when = (torch.arange(num_frames, dtype=torch.float32) + 0.5) / num_frames
    turns = 2.0 ** torch.linspace(-2, 3, width // 2)
    angle = 2 * math.pi * when[:, None] * turns[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)
