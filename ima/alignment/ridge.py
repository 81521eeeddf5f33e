"""Ridge regression out of fold, in fp64, for probes and the connector report.

Features are standardised on the training part; a dimension that does not vary there is left out. The penalty is chosen
among PENALTIES (times the number of training examples) by the squared error of inner folds of the training part, with
its standardisation and mean; examples of one cluster are never on both sides. Each training part is decomposed once:
what a fit without an inner fold would say of that fold follows from the fit with it, (I - H)^-1 times its residuals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ima.alignment.views import draw_of

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NUM_FOLDS = 5
NUM_INNER = 4


def folds_of(clusters: Sequence[str], num: int, classes: Sequence[str] | None = None, what: str = "folds") -> list[int]:
    """The fold of each example: clusters in a seeded order, dealt round; of each class apart, so that a class with two
    clusters is in two folds."""
    of_cluster: dict[tuple[str, str], int] = {}
    classes = [""] * len(clusters) if classes is None else classes
    ordered = sorted(
        {(c, k) for c, k in zip(classes, clusters, strict=True)}, key=lambda x: (x[0], draw_of(x[1], 0, what))
    )
    for place, key in enumerate(ordered):
        of_cluster[key] = place % num
    return [of_cluster[key] for key in zip(classes, clusters, strict=True)]


def standardised(train_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    mean_D, sd_D = train_ND.mean(0), train_ND.std(0, correction=0)
    varies_D = sd_D > 1e-9 * train_ND.abs().amax(0).clamp_min(1e-300)
    scale_D = torch.where(varies_D, 1 / sd_D.where(varies_D, 1.0), 0.0)
    return (train_ND - mean_D) * scale_D, (test_MD - mean_D) * scale_D


@dataclasses.dataclass(frozen=True)
class Fit:
    """Ridge on one training part of N examples, for M others: K = V diag(values_N) V^T, kernel_MN = K_test V. inner: of
    each inner fold its examples and their rows of V."""

    values_N: Tensor
    vectors_NN: Tensor
    kernel_MN: Tensor
    inner: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, train_ND: Tensor, test_MD: Tensor, clusters: Sequence[str]) -> Fit:
        x_ND, z_MD = standardised(train_ND, test_MD)
        values_N, vectors_NN = torch.linalg.eigh(x_ND @ x_ND.T)
        fold_N = torch.tensor(folds_of(clusters, NUM_INNER, what="inner"))
        places = [(fold_N == fold).nonzero()[:, 0] for fold in fold_N.unique()]
        inner = [(place_F, vectors_NN[place_F]) for place_F in places]
        return cls(values_N.clamp_min(0), vectors_NN, (z_MD @ x_ND.T) @ vectors_NN, inner)

    def predictions(self, y_NC: Tensor, penalty: float) -> Tensor:
        """y_MC of the others."""
        mean_C = y_NC.mean(0)
        projected_NC = self.vectors_NN.T @ (y_NC - mean_C)
        return self.kernel_MN @ (projected_NC / (self.values_N + penalty * len(y_NC))[:, None]) + mean_C

    def penalty(self, y_NC: Tensor) -> float:
        if len(self.inner) < 2:
            return PENALTIES[0]
        y_NC = y_NC - y_NC.mean(0)
        projected_NC = self.vectors_NN.T @ y_NC
        errors = []
        for penalty in PENALTIES:
            shrunk_N = self.values_N / (self.values_N + penalty * len(y_NC))
            left_NC = y_NC - self.vectors_NN @ (shrunk_N[:, None] * projected_NC)
            error = 0.0
            for place_F, mine_FN in self.inner:
                less_FF = torch.eye(len(place_F), dtype=y_NC.dtype) - (mine_FN * shrunk_N) @ mine_FN.T
                error += float(torch.linalg.solve(less_FF, left_NC[place_F]).square().sum())
            errors.append(error)
        return PENALTIES[errors.index(min(errors))]


def fits(x_ND: Tensor, clusters: Sequence[str], folds: Sequence[int]) -> Iterator[tuple[Tensor, Fit]]:
    """Of each fold: test_N, and the fit on the others; none where fewer than two are left."""
    fold_N, x_ND = torch.tensor(list(folds)), x_ND.double()
    for fold in sorted(set(folds)):
        test_N = fold_N == fold
        if int((~test_N).sum()) < 2:
            continue
        names = [name for name, test in zip(clusters, test_N.tolist(), strict=True) if not test]
        yield test_N, Fit.of(x_ND[~test_N], x_ND[test_N], names)


def out_of_fold(
    x_ND: Tensor, y_NC: Tensor, clusters: Sequence[str], folds: Sequence[int], more_NX: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(predictions of y, those of further targets with the same penalties), each example by a fit without its fold."""
    y_NC = y_NC.double()
    made_NC = torch.full_like(y_NC, torch.nan)
    rest_NX = None if more_NX is None else torch.full_like(more_NX, torch.nan, dtype=torch.float64)
    for test_N, fit in fits(x_ND, clusters, folds):
        penalty = fit.penalty(y_NC[~test_N])
        made_NC[test_N] = fit.predictions(y_NC[~test_N], penalty)
        if more_NX is not None and rest_NX is not None:
            rest_NX[test_N] = fit.predictions(more_NX[~test_N].double(), penalty)
    return made_NC, rest_NX
