"""Comparisons of two clouds of points beyond the cosine of means (methods 10), on the reservoir.

x_ED and y_ED hold the P and T means of the same E examples, row by row; P_ND and T_MD all tokens. Everything in fp64.
A value that is not defined (too few examples, no spread) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.scores import jackknife_se
from ima.alignment.views import group_of

NEIGHBOURS = 10
SIGMAS = 3.0


def cka(x_ED: Tensor, y_ED: Tensor) -> float:
    """Linear CKA (Kornblith et al. 2019, arXiv 1905.00414). Near 1 by itself where there are more dimensions than
    examples; `cka_debiased` is not."""
    x, y = centred(x_ED), centred(y_ED)
    k, m = x @ x.T, y @ y.T
    return ratio((k * m).sum(), (k * k).sum() * (m * m).sum())


def cka_debiased(x_ED: Tensor, y_ED: Tensor) -> float:
    """The same from unbiased estimates of HSIC (Song et al. 2012; Nguyen et al. 2021, arXiv 2010.15327); may be below
    0. Needs four examples."""
    n = len(x_ED)
    if n < 4:
        return math.nan

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
        return (k * m).sum() + cross

    kernels = []
    for side in (x_ED, y_ED):
        kernel = centred(side) @ centred(side).T  # the estimate does not depend on the origin; rounding does
        kernels.append(kernel - kernel.diagonal().diag())
    k, m = kernels
    return ratio(hsic(k, m), hsic(k, k) * hsic(m, m))


def mutual_neighbours(x_ED: Tensor, y_ED: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of an example's k nearest others (cosine) that are the same on both sides (Huh et al. 2024, arXiv
    2405.07987); k is at most E - 1, by chance it is k / (E - 1)."""
    n = len(x_ED)
    k = min(k, n - 1)
    if k < 1:
        return math.nan
    masks = []
    for side in (x_ED, y_ED):
        unit = normalize(side.double(), dim=-1)
        similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
        masks.append(torch.zeros(n, n).scatter_(1, similarity.topk(k, dim=1).indices, 1.0))
    return float((masks[0] * masks[1]).sum() / (n * k))


def procrustes(x_ED: Tensor, y_ED: Tensor) -> float:
    """Squared distance after the best rotation, both clouds centred and of unit norm: 0 the same shape, 2 nothing in
    common."""
    x, y = centred(x_ED), centred(y_ED)
    scale = x.norm() * y.norm()
    if not scale > 0:
        return math.nan
    return float(2 - 2 * nuclear(x.T, y.T) / scale)


def retrieval(x_ED: Tensor, y_ED: Tensor) -> Tensor:
    """hit_E: 1 where P's nearest textual mean (cosine) is its own, a share of 1 where it ties with others, else 0."""
    similarity = normalize(x_ED.double(), dim=-1) @ normalize(y_ED.double(), dim=-1).T
    nearest = similarity >= similarity.amax(1, keepdim=True) - 1e-9
    return nearest.diagonal().double() / nearest.sum(1)


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


def with_error(
    score: Callable[[Tensor, Tensor], float], x_ED: Tensor, y_ED: Tensor, ids: Sequence[str]
) -> tuple[float, float]:
    """A score and its error, computed anew without each jackknife group."""
    groups = torch.tensor([group_of(name) for name in ids])
    value = score(x_ED, y_ED)
    if len(groups.unique()) < 2:
        return value, math.nan
    left = [score(x_ED[groups != group], y_ED[groups != group]) for group in groups.unique()]
    return value, float(jackknife_se(torch.tensor(left, dtype=torch.float64)))
