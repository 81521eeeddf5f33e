"""The connector report: what the adapter keeps of its encoder, and where it puts it.

connector_norm, connector_norm_words   median norm of P at layer 0, mean norm of the vocabulary's embeddings
effective_rank                         exp(-sum p log p) of the mean tokens, p the shares of squared singular values;
                                       variant `encoder` before the adapter, `raw` after it
neighbour_overlap, _chance             share of 10 nearest media (cosine, centred) that are the same before and after
variance_kept                          held-out R^2 of the encoder's first principal components, from P at layer 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.ridge import NUM_FOLDS, folds_of, out_of_fold
from ima.alignment.rows import Base
from ima.alignment.units import nearest
from ima.core.types import Row

NEIGHBOURS = 10
MAX_COMPONENTS = 20
LEAST = 20


def effective_rank(x_ND: Tensor) -> float:
    centred_ND = x_ND.double() - x_ND.double().mean(0)
    squares = torch.linalg.svdvals(centred_ND).square()
    if not squares.sum() > 0:
        return math.nan
    p = squares / squares.sum()
    return float(torch.special.entr(p).sum().exp())


def neighbour_overlap(x_ND: Tensor, y_ND: Tensor) -> float:
    num = min(NEIGHBOURS, len(x_ND) - 1)
    shares = []
    for side in (x_ND, y_ND):
        unit = normalize(side.double() - side.double().mean(0), dim=1)
        shares.append(nearest(unit @ unit.T, num))
    return float((shares[0] * shares[1]).sum() / (len(x_ND) * num))


def variance_kept(features_ND: Tensor, p_ND: Tensor, clusters: Sequence[str]) -> tuple[float, int]:
    """(held-out R^2 over all components together, number of components)."""
    num = min(MAX_COMPONENTS, len(features_ND) // 10)
    centred_ND = features_ND.double() - features_ND.double().mean(0)
    _, _, vectors_DD = torch.linalg.svd(centred_ND, full_matrices=False)
    y_NC = centred_ND @ vectors_DD[:num].T
    made_NC, _ = out_of_fold(p_ND, y_NC, clusters, folds_of(clusters, NUM_FOLDS))
    return float(1 - (made_NC - y_NC).square().sum() / (y_NC - y_NC.mean(0)).square().sum()), num


def connector_rows(
    p_ED: Tensor, features_EN: Tensor | None, clusters: Sequence[str], norms: tuple[float, float], base: Base
) -> Iterator[Row]:
    """p_ED: mean tokens of P at layer 0; norms: of P tokens there, of words."""
    fields = base | {"role_a": "P", "site": "resid_post"}
    there_E = ~p_ED.isnan().any(1)
    n = int(there_E.sum())
    for score, value in zip(("connector_norm", "connector_norm_words"), norms, strict=True):
        yield Row(score=score, value=value, layer_a=0, variant="raw", **fields)
    if n < LEAST:
        note = f"{n} media; at least {LEAST}"
        for score in ("effective_rank", "neighbour_overlap", "variance_kept"):
            yield Row(score=score, value=math.nan, note=note, n=n, variant="raw", layer_a=0, **fields)
        return
    p_ND = p_ED[there_E]
    yield Row(score="effective_rank", value=effective_rank(p_ND), n=n, variant="raw", layer_a=0, **fields)
    if features_EN is None:
        return
    features_ND = features_EN[there_E]
    mine = [name for name, there in zip(clusters, there_E.tolist(), strict=True) if there]
    yield Row(score="effective_rank", value=effective_rank(features_ND), n=n, variant="encoder", layer_a=0, **fields)
    at = fields | {"variant": "raw", "layer_a": 0, "n": n}
    yield Row(score="neighbour_overlap", value=neighbour_overlap(features_ND, p_ND), **at)
    yield Row(score="neighbour_overlap_chance", value=NEIGHBOURS / (n - 1), **at)
    value, num = variance_kept(features_ND, p_ND, mine)
    yield Row(score="variance_kept", value=value, note=f"{num} principal components of the encoder", **at)
