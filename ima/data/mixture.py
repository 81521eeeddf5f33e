"""Which samples of which entries come when: the order of a mixture as a pure function of (seed, epoch).

An epoch of a mixture is as long as its entries together. With equal weights and temperature 1 it shows every sample
once; else each entry gets its share of the epoch and walks through its samples pass by pass, also across epochs, so
that none comes a second time before all came once. A mixture of one entry is the plain shuffled epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ima.core.errors import UserError

Batches = Literal["mixed", "homogeneous"]
WINDOW = 16  # batches within which samples are put together by length


class Mixture:
    """sizes: samples of each entry; samples are numbered through all entries. weights: of the entries' shares, which
    go with size ** (1 / temperature). batches: "homogeneous" ones hold samples of one entry. lengths: of all samples,
    where those of similar length are to share a batch."""

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        batches: Batches = "mixed",
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.sizes, self.weights = tuple(sizes), tuple(weights or [1.0] * len(sizes))
        self.kind, self.lengths = batches, None if lengths is None else np.asarray(lengths)
        if temperature <= 0:
            raise UserError(f"loader.temperature: {temperature} is too small; it must be above 0")
        if min(self.weights) < 0 or sum(self.weights) == 0:
            raise UserError(f"mixture: weights {list(self.weights)}; none may be below 0, not all be 0")
        shares = [w * n ** (1 / temperature) for w, n in zip(self.weights, self.sizes, strict=True)]
        self.quotas = apportion(sum(self.sizes), shares)
        self.starts = [sum(self.sizes[:index]) for index in range(len(self.sizes))]

    @property
    def num_samples(self) -> int:
        return sum(self.sizes)

    def items(self, seed: int, epoch: int) -> np.ndarray:
        """(num_samples, 3): entry, sample number and pass of what the epoch shows, in no order yet."""
        parts = [self._stretch(seed, index, epoch * quota, quota) for index, quota in enumerate(self.quotas)]
        return np.concatenate(parts)

    def batches(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Global batches of (sample number, pass): `num_batches` of them, however many ranks share each."""
        items = self.items(seed, epoch)
        order = items[np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(items))]
        groups = [np.arange(len(order))]  # places in the order
        if self.kind == "homogeneous":
            groups = [np.flatnonzero(order[:, 0] == entry) for entry in range(len(self.sizes))]
        found: list[tuple[int, np.ndarray]] = []
        for places in groups:
            cut = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
            ends = [int(batch[-1]) for batch in cut]  # where in the order a batch is complete
            if self.lengths is not None:
                cut = self._by_length(cut, self.lengths[order[:, 1]], seed, epoch)
            found += zip(ends, cut, strict=True)
        return [order[batch, 1:] for _, batch in sorted(found, key=lambda pair: pair[0])]

    def num_batches(self, batch_size: int) -> int:
        groups = self.quotas if self.kind == "homogeneous" else [self.num_samples]
        return sum(math.ceil(num / batch_size) for num in groups)

    def _stretch(self, seed: int, entry: int, start: int, num: int) -> np.ndarray:
        """Positions start .. start + num of the entry's endless walk."""
        size, parts = self.sizes[entry], []
        place = start
        while place < start + num:
            turn, offset = divmod(place, size)
            stop = min(size, offset + start + num - place)
            chosen = np.arange(size)
            if stop - offset < size:
                key = hashlib.sha256(f"mixture|{seed}|{entry}|{turn}".encode()).digest()[:16]
                walk = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
                chosen = np.sort(walk.permutation(size)[offset:stop])
            columns = np.full_like(chosen, entry), chosen + self.starts[entry], np.full_like(chosen, turn)
            parts.append(np.stack(columns, axis=1))
            place += stop - offset
        return np.concatenate(parts) if parts else np.zeros((0, 3), dtype=np.int64)

    def _by_length(self, batches: list[np.ndarray], lengths: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
        """Samples exchanged within windows of batches, so that lengths in a batch are alike; the order of a window's
        batches is drawn."""
        draw = np.random.Generator(np.random.Philox(key=[seed, 2**32 + epoch]))
        out: list[np.ndarray] = []
        for start in range(0, len(batches), WINDOW):
            window = batches[start : start + WINDOW]
            together = np.concatenate(window)
            together = together[np.argsort(lengths[together], kind="stable")]
            sorted_window = np.split(together, np.cumsum([len(batch) for batch in window])[:-1])
            out += [sorted_window[index] for index in draw.permutation(len(sorted_window))]
        return out


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `shares` that add up to `total` (largest remainders)."""
    exact = [round(total * share / sum(shares), 9) for share in shares]
    out = [math.floor(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda index: (out[index] - exact[index], index))
    for index in by_rest[: total - sum(out)]:
        out[index] += 1
    return out
