"""How many perceptual tokens name what their medium shows, and how many would by chance (docs/alignment.md).

A token names a noun where one of its k nearest distinct words does; a word that is as near as the k-th counts too, so
that no order of words matters. Chance of a medium: the share of the tokens of media of OTHER nouns that name its own
nouns, exact. Both and their difference are ratios of sums over media, so that clusters can be drawn anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ima.core.resampling import Interval, cluster_sums, divided, percentile

TIE = 1e-6
NUM_BOOTSTRAP = 500
Nouns = frozenset[str]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is looked for: sets of nouns, and of which words each is made. word_P, set_P: pairs (a word, a set that it
    names something of)."""

    sets: list[Nouns]
    word_P: Tensor
    set_P: Tensor

    @classmethod
    def of(cls, sets: Sequence[Nouns], named: Sequence[Nouns]) -> Wanted:
        """named: of each word the nouns that it names."""
        pairs = [
            (word, number)
            for word, nouns in enumerate(named)
            if nouns
            for number, wanted in enumerate(sets)
            if nouns & wanted
        ]
        word_P, set_P = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        return cls(list(sets), word_P, set_P)

    def hits(self, similarity_NW: Tensor, k: int) -> Tensor:
        """hit_NS: whether a word among each token's k nearest names something of each set."""
        last_N1 = similarity_NW.topk(min(k, similarity_NW.shape[1]), dim=1).values[:, -1:]
        best_NS = similarity_NW.new_full((len(similarity_NW), len(self.sets)), -torch.inf)
        if len(self.word_P):
            index_NP = self.set_P.expand(len(similarity_NW), -1)
            best_NS.scatter_reduce_(1, index_NP, similarity_NW[:, self.word_P], "amax")
        return best_NS >= last_N1 - TIE


def by_word(similarity_NC: Tensor, word_C: Tensor, num_words: int) -> Tensor:
    """similarity_NW: of each word that of its nearest context; word_C is in the order of the words."""
    lengths_W = torch.bincount(word_C, minlength=num_words)
    made: Tensor = torch.segment_reduce(similarity_NC.T.contiguous(), "max", lengths=lengths_W, axis=0)
    return made.T


@dataclasses.dataclass(frozen=True)
class Shares:
    """share_MS: of each medium the share of its tokens that name something of each set; own_M: its own set; other_MS:
    the sets that have nothing in common with what it shows."""

    share_MS: Tensor
    own_M: Tensor
    other_MS: Tensor
    clusters: list[str]

    def __len__(self) -> int:
        return len(self.own_M)

    @property
    def value_M(self) -> Tensor:
        """Of each medium the share of its tokens that name what it shows."""
        return self.share_MS.gather(1, self.own_M[:, None])[:, 0]

    def sums(self) -> np.ndarray:
        """(M, 1 + 3 S): what each medium adds to share, media of a set, chances of a set, media that these are of."""
        own_MS = torch.zeros_like(self.share_MS).scatter_(1, self.own_M[:, None], 1.0)
        other_MS = self.other_MS.double()
        parts = [self.value_M[:, None], own_MS, self.share_MS * other_MS, other_MS]
        return torch.cat(parts, dim=1).numpy()

    def share(self, sums: np.ndarray) -> np.ndarray:
        num_sets = self.share_MS.shape[1]
        return divided(sums[..., 0], sums[..., 1 : 1 + num_sets].sum(-1))

    def chance(self, sums: np.ndarray) -> np.ndarray:
        """Mean over media, those without a medium of other nouns left out."""
        _, num, hits, of = np.split(sums, np.cumsum([1, *[self.share_MS.shape[1]] * 2]), axis=-1)
        chance, there = divided(hits, of), num * (of > 0)
        return divided((there * np.nan_to_num(chance)).sum(-1), there.sum(-1))

    def chance_value(self) -> float:
        return float(self.chance(self.sums().sum(0)))

    def difference(self) -> Interval:
        """Share minus chance; its percentile interval over clusters."""
        sums = cluster_sums(self.sums(), self.clusters)
        return percentile(sums, lambda x: self.share(x) - self.chance(x), 0.95, NUM_BOOTSTRAP, 0)

    def error(self) -> float:
        """Standard deviation of the share over resampled clusters."""
        parts = np.stack([self.value_M.numpy(), np.ones(len(self))], axis=1)
        sums = cluster_sums(parts, self.clusters)
        if len(sums) < 2:
            return float("nan")
        shares = np.full(len(sums), 1 / len(sums))
        drawn = np.random.default_rng(0).multinomial(len(sums), shares, size=NUM_BOOTSTRAP) @ sums
        return float(np.std(drawn[:, 0] / drawn[:, 1], ddof=1))


def others(wanted: Wanted, shown: Sequence[Nouns]) -> Tensor:
    """other_MS: sets that share no noun with what a medium shows."""
    return torch.tensor([[not (one & mine) for one in wanted.sets] for mine in shown]).reshape(len(shown), -1)
