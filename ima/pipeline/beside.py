"""What is known of samples beside their states: clusters, nouns and categories, the encoder's own mean tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ima.alignment.groups import Beside
from ima.core.types import Sample
from ima.data.collate import Percepts

LABELS = ("noun", "category")


def cluster_of(sample: Sample) -> str:
    """What errors are grouped by: samples of one cluster are not independent."""
    return sample.cluster or sample.id


@torch.no_grad()
def beside_of(samples: Sequence[Sample], percepts: Percepts, module: Any, channel: str, batch_size: int) -> Beside:
    """module: of which a live encoder is taken. No features where a sample shows several media or none."""
    labels = {name: [str(sample.facts.get(name) or "") for sample in samples] for name in LABELS}
    encoder, parts = getattr(module, "encoder", None), []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        if any(len(sample.media_samples) != 1 for sample in part):
            return Beside(None, labels)
        found = percepts([sample.media_samples[0] for sample in part], None)
        features = found.get("features_BNE")
        if features is None and "media" in found and encoder is not None:
            features = (encoder[channel] if channel else encoder)(found["media"].to(module.device))
        if features is None:
            return Beside(None, labels)
        parts.append(features.float().mean(1).cpu())
    return Beside(torch.cat(parts) if parts else None, labels)
