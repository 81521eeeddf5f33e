"""Comparisons of two clouds of points beyond the cosine of means, on the reservoir.

x_ED and y_ED hold the P and T means of the same E examples, row by row; P_ND and T_MD all tokens. Everything in fp64.
A value that is not defined (too few examples, no spread) is NaN.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.scores import jackknife_se
from ima.alignment.views import group_of

NEIGHBOURS = 10
SIGMAS = 3.0


@dataclasses.dataclass(frozen=True)
class KernelScore:
    """A score of two clouds that needs only the products of their points: leaving examples out is then a part of two
    small matrices. kernel: k_EE of a cloud; of: the score of two kernels."""

    kernel: Callable[[Tensor], Tensor]
    of: Callable[[Tensor, Tensor], float]

    def __call__(self, x_ED: Tensor, y_ED: Tensor) -> float:
        return self.of(self.kernel(x_ED), self.kernel(y_ED))

    def with_error(self, x_ED: Tensor, y_ED: Tensor, ids: Sequence[str]) -> tuple[float, float]:
        """The score and its error, computed anew without each jackknife group."""
        k_EE, m_EE = self.kernel(x_ED), self.kernel(y_ED)
        groups = [group_of(name) for name in ids]
        value = self.of(k_EE, m_EE)
        if len(set(groups)) < 2:
            return value, math.nan
        left = []
        for group in sorted(set(groups)):
            kept = torch.tensor([index for index, other in enumerate(groups) if other != group])
            left.append(self.of(k_EE[kept][:, kept], m_EE[kept][:, kept]))
        return value, float(jackknife_se(torch.tensor(left, dtype=torch.float64)))


def linear_kernel(x_ED: Tensor) -> Tensor:
    """Products of the centred points: their origin does not matter to CKA, but to rounding."""
    x = centred(x_ED)
    return x @ x.T


def cosine_kernel(x_ED: Tensor) -> Tensor:
    unit = normalize(x_ED.double(), dim=-1)
    return unit @ unit.T


def centred_kernel(k_EE: Tensor) -> Tensor:
    """As if the points had been centred; exactly zero where these have no spread."""
    row_E = k_EE.mean(0)
    made = k_EE - row_E - row_E[:, None] + row_E.mean()
    return made if made.trace() > 1e-13 * k_EE.trace() else torch.zeros_like(made)


def cka_of(k_EE: Tensor, m_EE: Tensor) -> float:
    k, m = centred_kernel(k_EE), centred_kernel(m_EE)
    return ratio((k * m).sum(), (k * k).sum() * (m * m).sum())


def cka_debiased_of(k_EE: Tensor, m_EE: Tensor) -> float:
    n = len(k_EE)
    if n < 4:
        return math.nan

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
        return (k * m).sum() + cross

    k, m = (kernel - kernel.diagonal().diag() for kernel in map(centred_kernel, (k_EE, m_EE)))
    return ratio(hsic(k, m), hsic(k, k) * hsic(m, m))


def mutual_of(k_EE: Tensor, m_EE: Tensor) -> float:
    n = len(k_EE)
    num = min(NEIGHBOURS, n - 1)
    if num < 1:
        return math.nan
    masks = []
    for kernel in (k_EE, m_EE):
        others = kernel.clone().fill_diagonal_(-torch.inf)
        masks.append(torch.zeros(n, n).scatter_(1, others.topk(num, dim=1).indices, 1.0))
    return float((masks[0] * masks[1]).sum() / (n * num))


# Linear CKA (Kornblith et al. 2019, arXiv 1905.00414). Near 1 by itself where there are more dimensions than examples;
# the debiased one is not.
cka = KernelScore(linear_kernel, cka_of)
# The same from unbiased estimates of HSIC (Song et al. 2012; Nguyen et al. 2021, arXiv 2010.15327); may be below 0.
# Needs four examples.
cka_debiased = KernelScore(linear_kernel, cka_debiased_of)
# Share of an example's NEIGHBOURS nearest others (cosine) that are the same on both sides (Huh et al. 2024, arXiv
# 2405.07987); by chance it is NEIGHBOURS / (E - 1).
mutual_neighbours = KernelScore(cosine_kernel, mutual_of)


def procrustes(x_ED: Tensor, y_ED: Tensor) -> float:
    """Squared distance after the best rotation, both clouds centred and of unit norm: 0 the same shape, 2 nothing in
    common."""
    x, y = centred(x_ED), centred(y_ED)
    scale = x.norm() * y.norm()
    if not scale > 0:
        return math.nan
    return float(2 - 2 * nuclear(x.T, y.T) / scale)


def retrieval(x_ED: Tensor, y_ED: Tensor, same_EE: Tensor | None = None) -> Tensor:
    """hit_E: 1 where P's nearest textual mean (cosine) is its own, a share of 1 where it ties with others, else 0.
    same_EE: which texts are the same (`same_texts`); they tie, although rounding makes one of them the nearest."""
    similarity = normalize(x_ED.double(), dim=-1) @ normalize(y_ED.double(), dim=-1).T
    nearest = similarity >= similarity.amax(1, keepdim=True) - 1e-9
    if same_EE is not None:
        nearest |= same_EE[similarity.argmax(1)]
    return nearest.diagonal().double() / nearest.sum(1)


def same_texts(y_ED: Tensor, dtype: torch.dtype) -> Tensor:
    """same_EE: whether the means of two texts differ by no more than rounding in `dtype`, the dtype of the states.

    The same text in another batch gives states that differ in their last bits. Rounding is relative to each dimension:
    a few have values a thousand times as large as the others. So the distance of two texts is the root mean square
    over dimensions of their difference, divided by the root mean square of that dimension over the texts (but at least
    by the median of these). It is rounding up to the machine epsilon of `dtype`, or 32 times that of fp32, in which
    every dtype adds up its products.
    """
    y_ED = y_ED.double()
    size_D = y_ED.square().mean(0).sqrt()
    scaled_ED = y_ED / size_D.clamp_min(max(float(size_D.median()), torch.finfo(torch.float64).tiny))
    distance_EE = torch.cdist(scaled_ED, scaled_ED) / math.sqrt(y_ED.shape[1])
    return distance_EE <= max(torch.finfo(dtype).eps, 32 * torch.finfo(torch.float32).eps)


def mir_layer(p_ND: Tensor, t_MD: Tensor) -> float:
    """One layer's part of the Modality Integration Rate (Huang et al. 2024, arXiv 2410.07167): the Frechet distance of
    the P tokens from the T tokens, both divided by the mean norm of the T tokens, without the tokens whose norm is more
    than three standard deviations off their side's mean. MIR = log10 of the sum over layers 1..L."""
    if len(p_ND) < 2 or len(t_MD) < 2 or not (size := t_MD.double().norm(dim=-1).mean()) > 0:
        return math.nan
    return frechet(within_sigmas(p_ND.double() / size), within_sigmas(t_MD.double() / size))


def within_sigmas(x_ND: Tensor) -> Tensor:
    norms = x_ND.norm(dim=-1)
    return x_ND[(norms - norms.mean()).abs() <= SIGMAS * norms.std()]


def frechet(x_ND: Tensor, y_MD: Tensor) -> float:
    """|mean x - mean y|^2 + tr(Cx) + tr(Cy) - 2 tr((Cx Cy)^1/2), the last being the nuclear norm of X Y^T."""
    if len(x_ND) < 2 or len(y_MD) < 2:
        return math.nan
    x, y = centred(x_ND) / math.sqrt(len(x_ND) - 1), centred(y_MD) / math.sqrt(len(y_MD) - 1)
    apart = (x_ND.double().mean(0) - y_MD.double().mean(0)).square().sum()
    return float(apart + x.square().sum() + y.square().sum() - 2 * nuclear(x, y))


def nuclear(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Sum of the singular values of a b^T, through triangular factors where a side is longer than D."""
    a, b = (torch.linalg.qr(side, mode="r").R if len(side) > side.shape[1] else side for side in (a_ND, b_MD))
    return torch.linalg.svdvals(a @ b.T).sum()


def centred(x_ED: Tensor) -> Tensor:
    """A cloud without spread is exactly zero, not what rounding leaves of it."""
    x = x_ED.double()
    spread = x - x.mean(0)
    return spread if spread.norm() > 1e-12 * x.norm() else torch.zeros_like(x)


def ratio(product: Tensor, squares: Tensor) -> float:
    return float(product / squares.sqrt()) if squares > 0 else math.nan
