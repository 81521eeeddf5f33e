"""Ridge regression out of fold, in fp64, for probes and the connector report.

Features are standardised on the training part; a dimension that does not vary there is left out. The penalty is chosen
among PENALTIES (times the number of training examples) by inner folds, by squared error; examples of one cluster are
never on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def predictions(train_ND: Tensor, y_NC: Tensor, test_MD: Tensor, penalties: Sequence[float]) -> Tensor:
    """y_PMC: predictions of the test part under each penalty."""
    x_ND, z_MD = standardised(train_ND, test_MD)
    mean_C = y_NC.mean(0)
    values_N, vectors_NN = torch.linalg.eigh(x_ND @ x_ND.T)
    projected_NC = vectors_NN.T @ (y_NC - mean_C)
    kernel_MN = (z_MD @ x_ND.T) @ vectors_NN
    made = [
        kernel_MN @ (projected_NC / (values_N.clamp_min(0) + penalty * len(x_ND))[:, None]) for penalty in penalties
    ]
    return torch.stack(made) + mean_C


def penalty_for(x_ND: Tensor, y_NC: Tensor, clusters: Sequence[str]) -> float:
    folds = torch.tensor(folds_of(clusters, NUM_INNER, what="inner"))
    error_P = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for fold in range(NUM_INNER):
        test_N = folds == fold
        if bool(test_N.any()) and int((~test_N).sum()) > 1:
            made_PMC = predictions(x_ND[~test_N], y_NC[~test_N], x_ND[test_N], PENALTIES)
            error_P += (made_PMC - y_NC[test_N]).square().sum((1, 2))
    return PENALTIES[int(error_P.argmin())]


def out_of_fold(
    x_ND: Tensor, y_NC: Tensor, clusters: Sequence[str], folds: Sequence[int], more_NX: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(predictions of y, those of further targets with the same penalties), each example by a fit without its fold."""
    x_ND, y_NC = x_ND.double(), y_NC.double()
    made_NC = torch.full_like(y_NC, torch.nan)
    rest_NX = None if more_NX is None else torch.full_like(more_NX, torch.nan, dtype=torch.float64)
    fold_N = torch.tensor(list(folds))
    for fold in sorted(set(folds)):
        test_N = fold_N == fold
        if int((~test_N).sum()) < 2:
            continue
        names = [name for name, test in zip(clusters, test_N.tolist(), strict=True) if not test]
        penalty = penalty_for(x_ND[~test_N], y_NC[~test_N], names)
        targets = [y_NC] if more_NX is None else [y_NC, more_NX.double()]
        found = predictions(x_ND[~test_N], torch.cat(targets, dim=1)[~test_N], x_ND[test_N], (penalty,))[0]
        made_NC[test_N] = found[:, : y_NC.shape[1]]
        if rest_NX is not None:
            rest_NX[test_N] = found[:, y_NC.shape[1] :]
    return made_NC, rest_NX
