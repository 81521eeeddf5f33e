"""BLEU-1..4 and ROUGE-L: agreement of a caption with references in n-grams and in the longest common subsequence.

BLEU is a score of the corpus (counts are summed before they are divided) with the closest reference length; ROUGE-L
takes precision and recall from whichever reference is best for each, beta 1.2. Both as captioning benchmarks have
them, small constants included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ima.tasks.metrics.cider import MAX_N, grams
from ima.tasks.metrics.ptb import glued, tokenize

SMALL, TINY = 1e-9, 1e-15  # keep fractions of nothing defined
BETA = 1.2


def bleu_parts(text: str, references: Sequence[str]) -> np.ndarray:
    """(10,) what one caption adds: n-grams found for n = 1..4, n-grams said, its length, the closest reference's."""
    tokens, truths = tokenize(text), [tokenize(truth) for truth in references]
    most: Counter[tuple[str, ...]] = Counter()
    for truth in truths:
        most |= grams(truth)
    found = np.zeros(MAX_N)
    for gram, count in (grams(tokens) & most).items():
        found[len(gram) - 1] += count
    said = [max(0, len(tokens) - n) for n in range(MAX_N)]
    closest = min((len(truth) for truth in truths), key=lambda length: (abs(length - len(tokens)), length))
    return np.array([*found, *said, len(tokens), closest], dtype=np.float64)


def bleu_of(parts: np.ndarray, n: int) -> np.ndarray:
    """BLEU-n of sums of parts (..., 10): geometric mean of the precisions, times the penalty for being short."""
    precisions = (parts[..., :n] + TINY) / (parts[..., MAX_N : MAX_N + n] + SMALL)
    length_ratio = (parts[..., -2] + TINY) / (parts[..., -1] + SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / length_ratio))
    return np.asarray(precisions.prod(-1) ** (1 / n) * penalty)


def rouge_l(text: str, references: Sequence[str]) -> float:
    """F-measure in 0..1 of the longest common subsequence; 0 where nothing is common."""
    tokens = glued(text) or ("",)
    precision = recall = 0.0
    for reference in references:
        truth = glued(reference) or ("",)
        common = longest_common(tokens, truth)
        precision, recall = max(precision, common / len(tokens)), max(recall, common / len(truth))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for index, other in enumerate(second):
            row.append(above[index] + 1 if word == other else max(row[-1], above[index + 1]))
        above = row
    return above[-1]
