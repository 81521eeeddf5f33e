"""The noise encoder: the control that knows nothing of the medium. What is learnt with it comes from the text alone.

Its features are drawn, not computed: every sample has its own random stream, so they do not depend on who else is in
the batch, on the number of processes or on the order. (The other control, random weights, is `pretrained=False`.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.models.encoders.base import Encoder, fingerprint_of


class NoiseEncoder(Encoder):
    """N(0, 1) features: fresh for every (sample, epoch) in training, fixed per sample in evaluation."""

    RANGES = {"dim": (1, None), "num_tokens": (1, None)}
    deterministic = False
    reads_medium = False

    def __init__(self, modality: str = "image", dim: int = 1280, num_tokens: int = 49, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or num_tokens < 1:
            raise UserError(f"encoder.dim={dim}, encoder.num_tokens={num_tokens}: both must be at least 1")
        self.modality, self.dim, self.num_tokens, self.seed = modality, dim, num_tokens, seed
        self.fingerprint = fingerprint_of(None, kind="noise", dim=dim, num_tokens=num_tokens, seed=seed)
        self.preprocess = refuse
        self.freeze()

    def features(self, sample_ids: Sequence[str], epoch: int | None = None) -> Tensor:
        """f_BNE on the CPU; epoch None is evaluation."""
        f_BNE = torch.empty(len(sample_ids), self.num_tokens, self.dim)
        for f_NE, sample_id in zip(f_BNE, sample_ids, strict=True):
            when = "evaluation" if epoch is None else f"epoch {epoch}"
            digest = hashlib.blake2b(f"{self.seed}\0{sample_id}\0{when}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            f_NE.normal_(generator=generator)
        return f_BNE

    def encode(self, x_B: Tensor) -> Tensor:
        return refuse(x_B)


def refuse(medium: Any) -> Tensor:
    raise TypeError("the noise encoder reads no medium (reads_medium is False): call features(sample_ids, epoch)")
