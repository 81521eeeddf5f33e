"""Random numbers as a pure function of a text key: no global generator, no order, no library version.

`Draws("a|b|3")` always yields the same sequence: scalars straight from SHA-256 in counter mode, whole arrays from
the raw bits of a Philox generator keyed the same way (raw bits are stable between numpy versions, distributions
are not promised to be).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def hash_unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts only."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Draws:
    """A stream of draws that belongs to its key."""

    def __init__(self, *parts: object) -> None:
        self._key = "|".join(map(str, parts)).encode()
        self._counter = 0
        self._ready: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._ready:
            digest = hashlib.sha256(self._key + b"#" + str(self._counter).encode()).digest()
            self._counter += 1
            self._ready = [word / 2**64 for word in struct.unpack(">4Q", digest)]
        return self._ready.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def below(self, num: int) -> int:
        """A whole number in 0 .. num - 1."""
        return int(self.unit() * num)

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One item, with probability proportional to its weight (weights >= 0, not all 0)."""
        left = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.below(last + 1)
            out[last], out[other] = out[other], out[last]
        return out

    def field(self, height: int, width: int) -> np.ndarray:
        """A (height, width) float32 array, uniform in [0, 1)."""
        seed = int.from_bytes(hashlib.sha256(self._key + b"#field" + str(self._counter).encode()).digest()[:8], "big")
        self._counter += 1
        bits = np.random.Philox(key=seed).random_raw(height * width)
        return ((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24)).reshape(height, width)
