"""The guess without looking: the answer that training gives most often to the same question.

Where training never asks that question, the most frequent answer to questions of its type; else the most frequent
answer of all. What a model reaches beyond this it has from the medium, or from reading questions better than by heart.
"""

from __future__ import annotations

from collections.abc import Sequence

from ima.core.types import Sample
from ima.tasks.base import Prediction

Weights = dict[str, float]


def shares(sample: Sample) -> list[tuple[str, float]]:
    """How often training draws each reference; sums to 1. Empty where there is nothing to draw."""
    weights = sample.weights or (1.0,) * len(sample.references)
    total = sum(weights)
    if total <= 0:
        return []
    return [(text, weight / total) for text, weight in zip(sample.references, weights, strict=True)]


def most(weights: Weights) -> str:
    """The heaviest answer, the alphabetically first of equals."""
    return min(weights, key=lambda text: (-round(weights[text], 9), text))


def answer_of(sample: Sample) -> str:
    """The answer that training draws most often; "" where there is none."""
    weights: Weights = {}
    for text, share in shares(sample):
        weights[text] = weights.get(text, 0.0) + share
    return most(weights) if weights else ""


def guesses(train: Sequence[Sample], samples: Sequence[Sample]) -> list[Prediction]:
    table: dict[tuple[str, str], Weights] = {}
    for sample in train:
        for key in keys(sample):
            weights = table.setdefault(key, {})
            for text, share in shares(sample):
                weights[text] = weights.get(text, 0.0) + share
    best = {key: most(weights) for key, weights in table.items() if weights}
    return [Prediction(sample, next((best[key] for key in keys(sample) if key in best), "")) for sample in samples]


def keys(sample: Sample) -> list[tuple[str, str]]:
    """From narrow to wide: what training answers may be pooled by."""
    kind = sample.facts.get("type")
    narrow = ("question", " ".join(sample.question.lower().split()))
    return [narrow, *([("type", str(kind))] if kind is not None else []), ("all", "")]
