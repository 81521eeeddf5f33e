"""Adapters that map each token, or each average of tokens, by itself: linear, a two-layer perceptron, pooling."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.models.adapters.base import Adapter, Cell, square_cells, strips


def side_of(num: int) -> tuple[int, int]:
    """(side, first) of encoder tokens that form a square from `first` on: behind a CLS token from 1. (0, 0): none."""
    for first in (0, 1):
        side = math.isqrt(max(num - first, 0))
        if side > 0 and side * side == num - first:
            return side, first
    return 0, 0


class TokenAdapter(Adapter):
    """Base of those that map each token by itself. norm: a LayerNorm comes last, so that the output stays at the scale
    of the LLM's embeddings through training, not only at its start."""

    def __init__(self, dim: int, width: int, norm: bool) -> None:
        super().__init__(dim, width, None)
        self.out_norm: nn.Module = nn.LayerNorm(width) if norm else nn.Identity()

    def rescale(self, factor: float) -> None:
        if isinstance(self.out_norm, nn.LayerNorm):
            self.out_norm.weight.mul_(factor)
        else:
            super().rescale(factor)

    def places(self, num_encoder: int, num_percepts: int) -> list[Cell | None]:
        """A square picture, perhaps behind a CLS token; else no places."""
        side, first = side_of(num_encoder)
        return [None] * num_percepts if side == 0 else [*[None] * first, *square_cells(side)]


class LinearAdapter(TokenAdapter):
    """One linear map per token."""

    def __init__(self, dim: int, width: int, norm: bool = False) -> None:
        super().__init__(dim, width, norm)
        self.proj = nn.Linear(dim, width)
        nn.init.zeros_(self.proj.bias)

    def last(self) -> nn.Linear:
        return self.proj

    def forward(self, f_BNE: Tensor) -> Tensor:
        return self.out_norm(self.proj(f_BNE))


class MlpAdapter(TokenAdapter):
    """Two layers with GELU on each token (LLaVA-1.5, arXiv 2310.03744)."""

    def __init__(self, dim: int, width: int, norm: bool = False) -> None:
        super().__init__(dim, width, norm)
        self.up = nn.Linear(dim, width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.bias)

    def last(self) -> nn.Linear:
        return self.proj

    def forward(self, f_BNE: Tensor) -> Tensor:
        return self.out_norm(self.proj(F.gelu(self.up(f_BNE))))


class PoolAdapter(Adapter):
    """The mean token and a grid of average-pooled patches, each through a norm and an MLP, plus learned positions.

    K = 1 + grid * grid tokens. layout "grid": the encoder's tokens (without a leading CLS) are a square picture, row by
    row; "sequence": they are pooled to the same number in order (sounds); "auto": a grid where they form a square.
    """

    RANGES = {"grid": (1, None), "hidden": (1, None)}

    def __init__(
        self,
        dim: int,
        width: int,
        grid: int = 3,
        hidden: int = 1024,
        layout: Literal["auto", "grid", "sequence"] = "auto",
    ) -> None:
        super().__init__(dim, width, 1 + grid * grid)
        self.grid, self.layout = grid, layout
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.proj = nn.Linear(hidden, width)
        nn.init.zeros_(self.proj.bias)
        self.out_norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(1 + grid * grid, width))

    def last(self) -> nn.Linear:
        return self.proj

    def rescale(self, factor: float) -> None:
        self.out_norm.weight.mul_(factor)

    def places(self, num_encoder: int, num_percepts: int) -> list[Cell | None]:
        grid = self.layout != "sequence" and side_of(num_encoder)[0] > 0
        return [None, *(square_cells(self.grid) if grid else strips(self.grid * self.grid))]

    def pool(self, f_BNE: Tensor) -> Tensor:
        num = f_BNE.shape[1]
        side, first = side_of(num)
        if self.layout == "grid" and side == 0:
            raise UserError(f"adapter.layout: {num} encoder tokens form no square; use sequence or another encoder")
        if side > 0 and self.layout != "sequence":
            map_BEhw = f_BNE[:, first:].transpose(1, 2).unflatten(2, (side, side))
            cells = F.adaptive_avg_pool2d(map_BEhw, self.grid).flatten(2).transpose(1, 2)
        else:
            cells = F.adaptive_avg_pool1d(f_BNE.transpose(1, 2), self.grid * self.grid).transpose(1, 2)
        return torch.cat([f_BNE.mean(1, keepdim=True), cells], dim=1)

    def forward(self, f_BNE: Tensor) -> Tensor:
        x = self.proj(F.gelu(self.up(self.norm(self.pool(f_BNE)))))
        return self.out_norm(x) + self.position
