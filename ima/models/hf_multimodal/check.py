"""Percepts proved: other media must move exactly the positions that are called percepts, at the input of block 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ima.core.errors import UserError
from ima.core.media import Frames, Medium, Sound
from ima.core.types import Role


def example(modality: str) -> Medium:
    draw = np.random.default_rng(0)
    pictures = tuple(Image.fromarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(4))
    if modality == "audio":
        return Sound(draw.normal(0, 0.1, 16_000).astype(np.float32), 16_000)
    return Frames(pictures) if modality == "video" else pictures[0]


def perturbed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Noise in pixels and features only; exact zeros are padding, which some models find by its value."""
    generator = torch.Generator().manual_seed(0)

    def moved(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator).to(value)
        if value.is_floating_point():
            return value + 0.7 * noise * (value != 0)
        return torch.where(value != 0, value ^ (noise > 0).to(value.dtype) * 64, value)

    return {
        name: moved(value) if "pixel_values" in name or name.endswith("features") else value
        for name, value in inputs.items()
    }


def moved_positions(one_BSD: Tensor, other_BSD: Tensor) -> Tensor:
    """(B, S)"""
    return (one_BSD - other_BSD).abs().amax(-1) > 0


def check_percepts(lmm: Any, batch_of: Any) -> None:
    """batch_of: (prompt, media, modality) -> a batch of one. Raises UserError where other media move other positions
    than the percepts."""
    for modality in lmm.layout.modalities:
        batch = batch_of("What is this?", [example(modality)], modality)
        x_BSD, roles_BS, _ = lmm.splice(batch)
        batch.inputs, batch.parts = perturbed(batch.inputs), [perturbed(part) for part in batch.parts]
        moved_BS = moved_positions(x_BSD, lmm.splice(batch)[0])
        wrong = int((moved_BS != (roles_BS == Role.PERCEPT)).sum())
        if wrong:
            raise UserError(
                f"path: {lmm.llm.name}: type {lmm.kind.model_type!r} is not in the table and the general rule does "
                f"not fit it ({wrong} positions of a {modality} are not where they should be)"
            )
