"""SparseGPT (arXiv 2301.00774): which weights of one matrix go, and what the others become so that its outputs on the
calibration tokens change least.

Columns are taken in blocks of 128. In a block the weights with the lowest w^2 / (inverse Hessian)_jj^2 are chosen; then
column by column the error of what is pruned is moved onto the columns to its right. The Hessian is the Gram matrix of
the inputs, with one hundredth of its mean diagonal added. Not here: how inputs are collected (`sums.GramWatch`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.interventions.prune.select import NOT_FINITE, keep, keep_pattern, num_pruned

COLUMNS = 128
DAMPING = 0.01


def inverse_factor(gram_II: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """(upper Cholesky factor of the inverse of the damped Hessian (in, in) fp64, features that are never used (in,)).
    Raises UserError where the calibration does not give a Hessian."""
    hessian = gram_II.double().clone()
    unused_I = hessian.diagonal() == 0
    hessian.diagonal()[unused_I] = 1
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    try:
        lower = torch.linalg.cholesky(hessian)
        return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True), unused_I
    except torch.linalg.LinAlgError as error:
        raise UserError(f"calibration: the inputs of a matrix give no Hessian ({error}); use more examples") from error


@torch.no_grad()
def prune_matrix(
    weight_OI: Tensor, gram_II: Tensor, ratio: float, pattern: str = "unstructured", columns: int = COLUMNS
) -> tuple[Tensor, Tensor]:
    """(kept (out, in) bool, new weights (out, in) in the dtype of `weight_OI`, zero where they are not kept).

    gram_II: sum over calibration tokens of x x^T. In every block of columns floor(ratio x its weights) go; of n:m the n
    lowest of each m neighbours, judged when their turn comes. Raises UserError where something is not finite.
    """
    factor_II, unused_I = inverse_factor(gram_II.to(weight_OI.device))
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    factor_II = factor_II.to(dtype)
    work_IO = weight_OI.detach().to(dtype).T.contiguous()  # columns of the matrix are rows here: they lie together
    work_IO[unused_I] = 0
    kept_IO = torch.ones_like(work_IO, dtype=torch.bool)
    group = 0 if pattern == "unstructured" else int(pattern.split(":")[1])
    if group:
        columns = max(group, columns // group * group)
    for start in range(0, len(work_IO), columns):
        stop = min(start + columns, len(work_IO))
        part_CO, kept_CO = work_IO[start:stop], kept_IO[start:stop]
        factor_CC = factor_II[start:stop, start:stop]
        diagonal_C1 = factor_CC.diagonal()[:, None]
        error_CO = torch.empty_like(part_CO)
        if not group:
            score_OC = (part_CO / diagonal_C1).square().T
            kept_CO[:] = keep(score_OC.reshape(1, -1), num_pruned(score_OC.numel(), ratio)).view_as(score_OC).T
        for column in range(stop - start):
            if group and column % group == 0:
                ahead = slice(column, column + group)
                kept_CO[ahead] = keep_pattern((part_CO[ahead] / diagonal_C1[ahead]).square().T, pattern).T
            error_CO[column] = (part_CO[column] * ~kept_CO[column]) / factor_CC[column, column]
            part_CO[column] *= kept_CO[column]
            part_CO[column + 1 :].addr_(factor_CC[column, column + 1 :], error_CO[column], alpha=-1)
        work_IO[stop:].addmm_(factor_II[start:stop, stop:].T, error_CO, alpha=-1)
    if not bool(torch.isfinite(work_IO).all()):
        raise UserError(NOT_FINITE)
    return kept_IO.T.contiguous(), work_IO.T.contiguous().to(weight_OI.dtype)
