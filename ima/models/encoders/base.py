"""What an encoder is: a frozen network that turns one medium (a picture, a sound) into N feature vectors.

Hides from everything else how media are preprocessed, which layer is read and how weights are loaded. An encoder is
always in eval mode, never takes part in autocast or autograd, and names by its fingerprint everything that its
features depend on, so that they can be cached.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from ima.core.errors import UserError


class Encoder(nn.Module):
    """Base of all encoders; a subclass loads its weights, sets the attributes, then calls `freeze()`.

    modality       "image", "audio" or "video"
    dim            E, width of a feature vector
    num_tokens     N, feature vectors per medium
    fingerprint    hash over weights, layer and preprocessing: equal fingerprints mean equal features
    deterministic  whether the same medium always gives the same features (only then they may be cached)
    reads_medium   False where features do not depend on the medium: then none is rendered
    preprocess     one medium -> tensor, on the CPU; cheap to send to another process (it holds no weights)
    """

    modality: str
    dim: int
    num_tokens: int
    fingerprint: str
    deterministic: bool = True
    reads_medium: bool = True
    preprocess: Callable[[Any], Tensor]

    @abstractmethod
    def encode(self, x_B: Tensor) -> Tensor:
        """Stacked outputs of `preprocess` (B, ...) -> features (B, N, E)."""

    @torch.no_grad()
    def forward(self, x_B: Tensor) -> Tensor:
        """As `encode`, always float32, whatever autocast is in force: cached and fresh features must agree."""
        with torch.autocast(x_B.device.type, enabled=False), exact_convolutions():
            return self.encode(x_B).float()

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a frozen encoder inside a module that trains must not update batch statistics."""
        return super().train(False)


def check_features(encoder: Encoder, features_BNE: Tensor, num_media: int | None = None) -> Tensor:
    """The features, if they are what the encoder promises: (B, N, E), float32, finite, no gradient.

    Raises UserError naming the encoder, what came and what was promised.
    """
    name = type(encoder).__name__
    shape = tuple(features_BNE.shape)
    promised = (shape[0] if num_media is None and shape else num_media, encoder.num_tokens, encoder.dim)
    if shape != promised:
        raise UserError(f"encoder {name}: features have shape {shape}, (B, num_tokens, dim) = {promised} was promised")
    if features_BNE.dtype != torch.float32:
        raise UserError(f"encoder {name}: features are {features_BNE.dtype}, float32 was promised")
    if features_BNE.requires_grad:
        raise UserError(f"encoder {name}: features carry a gradient; an encoder is frozen, compute them under no_grad")
    if not torch.isfinite(features_BNE).all():
        bad = int((~torch.isfinite(features_BNE)).flatten(1).any(1).sum())
        raise UserError(f"encoder {name}: features of {bad} of {shape[0]} media are not finite; look at its input")
    return features_BNE


def fingerprint_of(weights: nn.Module | None, **facts: Any) -> str:
    """Hash over named facts (layer, preprocessing, ...) and every parameter and buffer of `weights`."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.state_dict().items()) if weights is not None else ():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in fp32 on a GPU too, where torch rounds their inputs to TF32 unless it is told otherwise: features
    were up to 4e-3 off those of a CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU random state is `seed` inside and what it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
