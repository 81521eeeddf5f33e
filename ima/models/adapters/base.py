"""Mapping adapters: encoder tokens f_BNE in, perceptual tokens p_BKD out. As a rule the only thing that is trained.

All compute in fp32. `start_at_norm` rescales the last weights once, on real features, so that the output's mean token
norm equals that of the LLM's embeddings: an adapter that starts far from it learns nothing for a long time. It changes
values only, so parameter counts and checkpoint keys stay those of the published modules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ima.core.moved_imports import moved_attribute

__getattr__ = moved_attribute(__name__)  # the adapters stood here once


Cell = tuple[float, float, float, float]  # left, top, width, height, as shares of the picture


def square_cells(grid: int) -> list[Cell]:
    """Row by row."""
    return [(column / grid, row / grid, 1 / grid, 1 / grid) for row in range(grid) for column in range(grid)]


def strips(num: int) -> list[Cell]:
    """In order from left to right, over the whole height: of a sound its time."""
    return [(index / num, 0.0, 1 / num, 1.0) for index in range(num)]


class Adapter(nn.Module):
    """Base: `dim` E, `width` D, `num_tokens` K (None: as many as the encoder gives)."""

    def __init__(self, dim: int, width: int, num_tokens: int | None) -> None:
        super().__init__()
        self.dim, self.width, self.num_tokens = dim, width, num_tokens

    def last(self) -> nn.Linear:
        """The linear layer whose weights set the output's scale."""
        raise AssertionError("each adapter names its last linear layer")

    def places(self, num_encoder: int, num_percepts: int) -> list[Cell | None]:
        """Where on a picture (of a clip: on each frame) each perceptual token comes from, given how many tokens the
        encoder gives; None for a token of the whole, or of no place that is known."""
        return [None] * num_percepts

    @torch.no_grad()
    def start_at_norm(self, features_BNE: Tensor, norm: float) -> float:
        """Rescale so that the mean L2 norm of the output tokens on `features_BNE` is `norm`; returns the norm found
        before. Biases of the last layer are zero at the start, so one multiplication is exact where nothing follows."""
        found = float(self(features_BNE).norm(dim=-1).mean())
        self.rescale(norm / max(found, 1e-12))
        return found

    def rescale(self, factor: float) -> None:
        self.last().weight.mul_(factor)


class AdapterSet(nn.ModuleDict):
    """The adapters of a run that has several, by channel."""
