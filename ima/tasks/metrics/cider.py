"""CIDEr-D: agreement of a caption with references in tf-idf weighted n-grams (Vedantam et al., 2015).

n = 1..4, clipped counts, a Gaussian penalty on length differences (sigma 6), times 10. The document frequencies are
an argument: they belong to the full reference split and change the score, so whoever scores says where they are from.
A caption of w words has no n-grams beyond n = w, so a two-word caption that equals its reference scores 5, not 10.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ima.tasks.metrics.ptb import tokenize

MAX_N = 4
SIGMA = 6.0
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Frequencies:
    """In how many examples an n-gram occurs in at least one reference, out of `num_examples`."""

    counts: Counter[Gram]
    num_examples: int

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> Frequencies:
        counts: Counter[Gram] = Counter()
        num = 0
        for texts in references:
            num += 1
            counts.update({gram for text in texts for gram in grams(tokenize(text))})
        return cls(counts, num)

    @property
    def undefined(self) -> str | None:
        """Why there is nothing to weigh words by; None where there is. Every weight would be 0, and so every score."""
        if self.num_examples < 2:
            return f"CIDEr-D weighs words over the split's references; {self.num_examples} example has no weights"
        if all(count >= self.num_examples for count in self.counts.values()):
            return "CIDEr-D weighs words by how few references have them; here all references have the same words"
        return None


def grams(tokens: Sequence[str]) -> Counter[Gram]:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, MAX_N + 1) for start in range(len(tokens) - n + 1)
    )


@dataclass(frozen=True)
class Weighted:
    """tf-idf vectors of one text, one per n, with their norms."""

    vectors: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


def weigh(text: str, frequencies: Frequencies) -> Weighted:
    tokens = tokenize(text)
    vectors: tuple[dict[Gram, float], ...] = tuple({} for _ in range(MAX_N))
    log_num = math.log(max(1, frequencies.num_examples))
    for gram, count in grams(tokens).items():
        vectors[len(gram) - 1][gram] = count * (log_num - math.log(max(1, frequencies.counts[gram])))
    norms = tuple(math.sqrt(sum(value * value for value in vector.values())) for vector in vectors)
    return Weighted(vectors, norms, len(tokens))


def similarity(candidate: Weighted, reference: Weighted) -> float:
    """Mean over n of the clipped cosine, damped by the difference in length."""
    damp = math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for mine, theirs, my_norm, their_norm in zip(
        candidate.vectors, reference.vectors, candidate.norms, reference.norms, strict=True
    ):
        if my_norm and their_norm:
            shared = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
            total += shared / (my_norm * their_norm)
    return damp * total / MAX_N


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]], frequencies: Frequencies) -> np.ndarray:
    """(N,) scores in 0..10: for every text the mean over its references; NaN where `frequencies` weigh nothing."""
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} texts but references for {len(references)}")
    if frequencies.undefined:
        return np.full(len(texts), np.nan)
    cache: dict[str, Weighted] = {}

    def weighted(text: str) -> Weighted:
        if text not in cache:
            cache[text] = weigh(text, frequencies)
        return cache[text]

    scores = []
    for text, truths in zip(texts, references, strict=True):
        mine = weigh(text, frequencies)
        scores.append(10 * sum(similarity(mine, weighted(truth)) for truth in truths) / max(1, len(truths)))
    return np.array(scores, dtype=np.float64)
