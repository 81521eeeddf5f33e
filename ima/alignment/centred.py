"""Centred similarity and retrieval of media and their text-only texts, across layers (docs/alignment.md).

A vector is made a unit vector, the mean of the OTHER units' unit vectors of its layer and role is subtracted, and it is
made a unit vector again. A unit's own vector is that of the mean of its examples. Everything is fp64.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.pairing import Pairing

TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class Cloud:
    """One side at one layer. x_ND: unit vectors of examples or texts, centred; units_UD: of units, centred; there_N,
    there_U: which exist (the others are zero)."""

    x_ND: Tensor
    units_UD: Tensor
    there_N: Tensor
    there_U: Tensor

    @classmethod
    def of(cls, mean_ND: Tensor, unit_N: Tensor, num_units: int, share_N: Tensor | None = None) -> Cloud:
        """mean_ND: mean tokens, NaN where there are none; share_N: how often each counts in its unit's mean (texts:
        for the examples that have it)."""
        x_ND = mean_ND.double()
        there_N = ~x_ND.isnan().any(1)
        weight_N = there_N.double() * (1.0 if share_N is None else share_N.double())
        x_ND = x_ND.nan_to_num(0.0)
        sum_UD = torch.zeros(num_units, x_ND.shape[1], dtype=torch.float64)
        sum_UD.index_add_(0, unit_N, x_ND * weight_N[:, None])
        there_U = torch.zeros(num_units, dtype=torch.float64).index_add_(0, unit_N, weight_N) > 0
        unit_UD = normalize(sum_UD, dim=1)  # the length of a sum does not matter
        others = float(there_U.sum()) - 1
        centre_UD = (unit_UD.sum(0) - unit_UD) / others if others > 0 else torch.full_like(unit_UD, torch.nan)
        units_UD = normalize(unit_UD - centre_UD, dim=1) * there_U[:, None]
        centred_ND = normalize(normalize(x_ND, dim=1) - centre_UD[unit_N], dim=1) * there_N[:, None]
        return cls(centred_ND, units_UD, there_N, there_U)


def texts_cloud(mean_XD: Tensor, pairing: Pairing) -> Cloud:
    share_X = torch.bincount(torch.tensor(pairing.text_of), minlength=pairing.num_texts)
    return Cloud.of(mean_XD, torch.tensor(pairing.unit_of_text), pairing.num_units, share_X)


def media_cloud(mean_ED: Tensor, pairing: Pairing) -> Cloud:
    return Cloud.of(mean_ED, torch.tensor(pairing.unit_of), pairing.num_units)


def cosine(media: Cloud, texts: Cloud) -> tuple[Tensor, Tensor]:
    """c_U: of each unit its own P and T.text, and which units have both."""
    return (media.units_UD * texts.units_UD).sum(1), media.there_U & texts.there_U


@dataclasses.dataclass(frozen=True)
class Found:
    """Retrieval of texts by media. hit_E: 1 where the nearest text is the example's own, a share of 1 where it ties
    with others, NaN where there is no P; share_EU: of the nearest text (ties: evenly) by unit, divided by the number
    of texts of that unit: what an example would score were it a unit's own."""

    hit_E: Tensor
    share_EU: Tensor


def retrieve(media: Cloud, texts: Cloud, pairing: Pairing) -> Found:
    similarity_EX = media.x_ND @ texts.x_ND.T
    similarity_EX = similarity_EX.masked_fill(~texts.there_N, -torch.inf)
    nearest_EX = (similarity_EX >= similarity_EX.amax(1, keepdim=True) - TIE).double()
    nearest_EX = nearest_EX / nearest_EX.sum(1, keepdim=True)
    nearest_EX[~media.there_N] = torch.nan
    hit_E = nearest_EX.gather(1, torch.tensor(pairing.text_of)[:, None])[:, 0]
    unit_X = torch.tensor(pairing.unit_of_text)
    num_U = torch.bincount(unit_X, minlength=pairing.num_units).double()
    share_EU = torch.zeros(len(nearest_EX), pairing.num_units, dtype=torch.float64)
    share_EU.index_add_(1, unit_X, nearest_EX)
    return Found(hit_E, share_EU / num_U)


def permuted(share_EU: Tensor, pairing: Pairing) -> Tensor:
    """R_B: retrieval where each unit's own text is that of the unit which a permutation gives it."""
    there_E = ~share_EU.isnan().any(1)
    unit_E = torch.tensor(pairing.unit_of)[there_E]
    given_BE = pairing.permutations_BU[:, unit_E]
    rows_E = torch.arange(len(unit_E))
    return share_EU[there_E][rows_E, given_BE].mean(1)
