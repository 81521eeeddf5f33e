"""The units of a pairing at one layer, and the scores that pair their media with their texts (docs/alignment.md).

A unit enters with its mean P and its mean T.text; scores are functions of two clouds of U points whose pairing can be
permuted. Centred scores are of points without sinks, the others of all tokens. Everything is fp64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment import geometry
from ima.alignment.centred import TIE, Cloud
from ima.alignment.kept_means import Means
from ima.alignment.pairing import Pairing

NEIGHBOURS = 10
Score = Callable[["Units", Tensor], float]


@dataclasses.dataclass(frozen=True)
class Units:
    """p_UD, t_UD: of all tokens; centred_p_UD, centred_t_UD: without sinks, centred unit vectors. Row u of both sides
    belongs together until a permutation says otherwise."""

    p_UD: Tensor
    t_UD: Tensor
    centred_p_UD: Tensor
    centred_t_UD: Tensor

    @classmethod
    def of(cls, p_UD: Tensor, t_UD: Tensor) -> Units:
        """Of points alone; nothing is left out as a sink."""
        unit_U = torch.arange(len(p_UD))
        sides = [Cloud.of(x, unit_U, len(x)).units_UD for x in (p_UD, t_UD)]
        return cls(p_UD.double(), t_UD.double(), *sides)

    @classmethod
    def at(cls, media: Means, texts: Means, index: int, pairing: Pairing, index_b: int | None = None) -> Units:
        """At one of the bank's layers (texts at another one, `index_b`), of the units that have both sides."""
        unit_E, unit_X = torch.tensor(pairing.unit_of), torch.tensor(pairing.unit_of_text)
        share_X = torch.bincount(torch.tensor(pairing.text_of), minlength=pairing.num_texts)
        at_b = index if index_b is None else index_b
        sides = []
        for mean_ND, unit_N, share_N in (
            (media.all_ELD[:, index], unit_E, None),
            (texts.all_ELD[:, at_b], unit_X, share_X),
            (media.nosink_ELD[:, index], unit_E, None),
            (texts.nosink_ELD[:, at_b], unit_X, share_X),
        ):
            sides.append(unit_means(mean_ND, unit_N, pairing.num_units, share_N))
        there_U = ~torch.stack([side.isnan().any(1) for side in sides]).any(0)
        p_UD, t_UD, p_without_UD, t_without_UD = (side[there_U] for side in sides)
        number_U = torch.arange(int(there_U.sum()))
        centred = [Cloud.of(x, number_U, len(number_U)).units_UD for x in (p_without_UD, t_without_UD)]
        return cls(p_UD, t_UD, *centred)

    def __len__(self) -> int:
        return len(self.p_UD)


def unit_means(mean_ND: Tensor, unit_N: Tensor, num: int, share_N: Tensor | None = None) -> Tensor:
    """The mean of a unit's examples (share_N: how many each row stands for); NaN where it has none."""
    x_ND = mean_ND.double()
    weight_N = (~x_ND.isnan().any(1)).double() * (1.0 if share_N is None else share_N.double())
    sum_UD = torch.zeros(num, x_ND.shape[1], dtype=torch.float64)
    sum_UD.index_add_(0, unit_N, x_ND.nan_to_num(0.0) * weight_N[:, None])
    count_U = torch.zeros(num, dtype=torch.float64).index_add_(0, unit_N, weight_N)
    return sum_UD / count_U.where(count_U > 0, torch.nan)[:, None]


def nearest(similarity_UU: Tensor, num: int, itself: bool = False) -> Tensor:
    """share_UU: how much of each row's `num` places a column has: 1 above the last place's value, an even part of what
    is left for those equal to it. itself: whether the diagonal takes part."""
    x_UU = similarity_UU.clone()
    if not itself:
        x_UU.fill_diagonal_(-torch.inf)
    last_U1 = x_UU.topk(num, dim=1).values[:, -1:]
    above_UU = (x_UU > last_U1 + TIE).double()
    equal_UU = ((x_UU - last_U1).abs() <= TIE).double()
    return above_UU + equal_UU * (num - above_UU.sum(1, keepdim=True)) / equal_UU.sum(1, keepdim=True)


def num_neighbours(num_units: int) -> int:
    return max(1, min(NEIGHBOURS, num_units // 4))


class Gap:
    """Mean cosine of own pairs minus that of all others."""

    better = 1

    def __init__(self, units: Units) -> None:
        self.cosine_UU = normalize(units.p_UD, dim=1) @ normalize(units.t_UD, dim=1).T

    def __call__(self, given_U: Tensor) -> float:
        num = len(given_U)
        own = self.cosine_UU[torch.arange(num), given_U].sum()
        return float(own / num - (self.cosine_UU.sum() - own) / (num * (num - 1)))


class CentredCosine:
    better = 1

    def __init__(self, units: Units) -> None:
        self.cosine_UU = units.centred_p_UD @ units.centred_t_UD.T

    def __call__(self, given_U: Tensor) -> float:
        return float(self.cosine_UU[torch.arange(len(given_U)), given_U].mean())


class Retrieval(CentredCosine):
    """Share of units whose nearest text is their own."""

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        self.share_UU = nearest(self.cosine_UU, 1, itself=True)

    def __call__(self, given_U: Tensor) -> float:
        return float(self.share_UU[torch.arange(len(given_U)), given_U].mean())


class ReciprocalRank(Retrieval):
    """Mean of 1 / rank of the own text; among equal ones it has their mean place."""

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        x = self.cosine_UU
        above = (x[:, None, :] > x[:, :, None] + TIE).sum(2)
        equal = ((x[:, None, :] - x[:, :, None]).abs() <= TIE).sum(2)
        self.share_UU = 1 / (above.double() + (equal.double() + 1) / 2)


class Kernels:
    """Scores of the products of points within each side."""

    better = 1

    def __init__(self, units: Units, kernel: Callable[[Tensor], Tensor] = geometry.cosine_kernel) -> None:
        self.k_UU, self.m_UU = kernel(units.p_UD), kernel(units.t_UD)

    def permuted(self, given_U: Tensor) -> Tensor:
        return self.m_UU[given_U][:, given_U]


class Cka(Kernels):
    """Debiased linear CKA."""

    def __init__(self, units: Units) -> None:
        super().__init__(units, geometry.linear_kernel)
        self.k_UU, self.m_UU = (
            kernel - kernel.diagonal().diag() for kernel in map(geometry.centred_kernel, (self.k_UU, self.m_UU))
        )
        # A permutation changes neither side's own value, only the product of the two.
        self.squares = self.hsic(self.k_UU, self.k_UU) * self.hsic(self.m_UU, self.m_UU)

    @staticmethod
    def hsic(k_UU: Tensor, m_UU: Tensor) -> Tensor:
        num = len(k_UU)
        cross = k_UU.sum() * m_UU.sum() / ((num - 1) * (num - 2)) - 2 * (k_UU.sum(0) @ m_UU.sum(0)) / (num - 2)
        return (k_UU * m_UU).sum() + cross

    def __call__(self, given_U: Tensor) -> float:
        return geometry.ratio(self.hsic(self.k_UU, self.permuted(given_U)), self.squares)


class MutualNeighbours(Kernels):
    """Share of a unit's nearest others that are the same on both sides."""

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        self.num = num_neighbours(len(units))
        self.k_UU, self.m_UU = nearest(self.k_UU, self.num), nearest(self.m_UU, self.num)

    def __call__(self, given_U: Tensor) -> float:
        return float((self.k_UU * self.permuted(given_U)).sum() / (len(given_U) * self.num))


class Cycle(Kernels):
    """Share of units that are among the text neighbours of their nearest medium (reverse: the other way round)."""

    def __init__(self, units: Units, reverse: bool = False) -> None:
        super().__init__(units)
        self.reverse = reverse
        num, one = num_neighbours(len(units)), 1
        self.k_UU = nearest(self.k_UU, num if reverse else one)
        self.m_UU = nearest(self.m_UU, one if reverse else num)

    def __call__(self, given_U: Tensor) -> float:
        m_UU = self.permuted(given_U)
        there, back = (m_UU, self.k_UU) if self.reverse else (self.k_UU, m_UU)
        return float((there * back.T).sum() / len(given_U))


class Procrustes:
    """Squared distance after the best rotation; smaller is better."""

    better = -1

    def __init__(self, units: Units) -> None:
        x_UD, y_UD = geometry.centred(units.p_UD), geometry.centred(units.t_UD)
        self.scale = float(x_UD.norm() * y_UD.norm())
        # |X^T P Y|_* depends on the products within a side alone: their roots have U columns, however wide X is.
        self.x_UU, self.y_UU = root(x_UD @ x_UD.T), root(y_UD @ y_UD.T)

    def __call__(self, given_U: Tensor) -> float:
        if not self.scale > 0:
            return float("nan")
        return float(2 - 2 * torch.linalg.svdvals(self.x_UU.T @ self.y_UU[given_U]).sum() / self.scale)


def root(k_UU: Tensor) -> Tensor:
    """r_UU with r r^T = k."""
    values_U, vectors_UU = torch.linalg.eigh(k_UU)
    return vectors_UU * values_U.where(values_U > 1e-12 * values_U.amax(), 0.0).sqrt()


def reverse_cycle(units: Units) -> Cycle:
    return Cycle(units, reverse=True)


SCORES: dict[str, Callable[[Units], Callable[[Tensor], float]]] = {
    "unit_gap": Gap,
    "unit_cosine": CentredCosine,
    "unit_retrieval": Retrieval,
    "unit_mrr": ReciprocalRank,
    "cka_debiased": Cka,
    "mutual_knn": MutualNeighbours,
    "cycle_knn": Cycle,
    "cycle_knn_reverse": reverse_cycle,
    "procrustes": Procrustes,
}
SMALLER_IS_BETTER = ("procrustes",)
DISCRETE = ("unit_retrieval", "unit_mrr", "mutual_knn", "cycle_knn", "cycle_knn_reverse")
