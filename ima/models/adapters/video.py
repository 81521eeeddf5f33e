"""An adapter for clips: perceptual tokens that keep place and time apart, few enough to be learnt from few clips.

`PoolAdapter` would average a clip's tokens in their order, frames and places mixed. Here cells of the picture get a
token each from two fixed functions of time (mean and trend), and a few tokens see how every cell of every frame
differs from its mean over time, through a projection to a few numbers: nothing that stands still is left in those.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.models.adapters.base import Adapter, Cell, square_cells


class VideoAdapter(Adapter):
    """K = 1 + grid * grid + num_motion tokens: the mean of all, the cells, the motion.

    num_frames: of the encoder, whose tokens must come frame by frame, each frame a square of cells. motion_grid: cells
    a side that motion is seen at; rank: numbers that each of them keeps. The rest as `PoolAdapter`.
    """

    RANGES = {
        "num_frames": (2, None),
        "grid": (1, None),
        "num_motion": (1, None),
        "motion_grid": (1, None),
        "rank": (1, None),
        "hidden": (1, None),
    }

    def __init__(
        self,
        dim: int,
        width: int,
        num_frames: int = 8,
        grid: int = 3,
        num_motion: int = 4,
        motion_grid: int = 5,
        rank: int = 16,
        hidden: int = 512,
    ) -> None:
        super().__init__(dim, width, 1 + grid * grid + num_motion)
        self.num_frames, self.grid, self.num_motion, self.motion_grid = num_frames, grid, num_motion, motion_grid
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(2 * dim, hidden)
        self.down = nn.Linear(dim, rank)
        self.motion = nn.Linear(num_frames * motion_grid * motion_grid * rank, hidden)
        self.spread = nn.Linear(hidden, num_motion * hidden)
        self.proj = nn.Linear(hidden, width)
        nn.init.zeros_(self.proj.bias)
        self.out_norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(1 + grid * grid + num_motion, width))
        self.register_buffer("trend_T", trend(num_frames), persistent=False)

    trend_T: Tensor

    def last(self) -> nn.Linear:
        return self.proj

    def rescale(self, factor: float) -> None:
        self.out_norm.weight.mul_(factor)

    def places(self, num_encoder: int, num_percepts: int) -> list[Cell | None]:
        """Cells are of all frames; motion has no place."""
        return [None, *square_cells(self.grid), *[None] * self.num_motion]

    def maps(self, f_BNE: Tensor) -> Tensor:
        """f_BNE -> (B, T, side, side, E). Raises UserError where N is no number of squares."""
        num, side = f_BNE.shape[1], math.isqrt(f_BNE.shape[1] // self.num_frames)
        if side * side * self.num_frames != num or side == 0:
            raise UserError(
                f"adapter.num_frames: {num} encoder tokens are not {self.num_frames} frames of a square grid each; "
                f"take the encoder's num_frames, or another adapter (pool, query)"
            )
        return f_BNE.unflatten(1, (self.num_frames, side, side))

    def what(self, x_BThwE: Tensor) -> Tensor:
        """(B, 1 + grid * grid, hidden): mean and trend of the whole and of the cells."""
        mean_BhwE = x_BThwE.mean(1)
        trend_BhwE = torch.einsum("bthwe,t->bhwe", x_BThwE, self.trend_T)
        both = torch.cat([mean_BhwE, trend_BhwE], dim=-1).permute(0, 3, 1, 2)
        cells = F.adaptive_avg_pool2d(both, self.grid).flatten(2).transpose(1, 2)
        return F.gelu(self.up(torch.cat([both.mean((2, 3))[:, None], cells], dim=1)))

    def how(self, x_BThwE: Tensor) -> Tensor:
        """(B, num_motion, hidden): what differs from the mean over time, from all cells of all frames."""
        z_BThwr = self.down(x_BThwE)
        z_BThwr = z_BThwr - z_BThwr.mean(1, keepdim=True)
        maps = F.adaptive_avg_pool2d(z_BThwr.flatten(0, 1).permute(0, 3, 1, 2), self.motion_grid)
        h_BF = F.gelu(self.motion(maps.unflatten(0, z_BThwr.shape[:2]).flatten(1)))
        return F.gelu(self.spread(h_BF)).unflatten(1, (self.num_motion, -1))

    def forward(self, f_BNE: Tensor) -> Tensor:
        x_BThwE = self.norm(self.maps(f_BNE))
        x = self.proj(torch.cat([self.what(x_BThwE), self.how(x_BThwE)], dim=1))
        return self.out_norm(x) + self.position


def trend(num_frames: int) -> Tensor:
    """Weights of frames that give a straight rise 1 and a constant 0; (T,)."""
    time = torch.linspace(-1, 1, num_frames)
    return time / time.square().sum()
