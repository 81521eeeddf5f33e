"""Cross-layer maps: P of layer a with T of layer b, and which text layer fits a media layer best (docs/alignment.md).

sim_map        mean cosine of all pairs, T of the same pass; its diagonal is `sim`
gap_map        own text alone minus others, not centred: largest where states are least alike, so no best layer of it
centred_map    c(a, b), mean over units of the centred cosine with the own text alone
retrieval_map  R(a, b), share of media that find their own text alone
best_text_layer   of each a the b of the largest c(a, b), only where its z exceeds 3, with the central 90 % of a
                  bootstrap over clusters (`_low`, `_high`); leap: best b - a at a = 1
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.calibration import Calibrated, permutations
from ima.alignment.centred import Cloud, media_cloud, retrieve, texts_cloud
from ima.alignment.kept_means import Means, TextBank
from ima.alignment.pairing import MIN_UNITS, Pairing
from ima.alignment.rows import NOTHING, Base
from ima.alignment.streaming.site_stats import SiteStats
from ima.core.types import Row, Site

NUM_BOOTSTRAP = 500
LEVEL = 0.9
LEAST_Z = 3.0


def map_rows(bank: TextBank, media: Means, stats: SiteStats, base: Base) -> Iterator[Row]:
    fields = base | {"site": Site.RESID_POST.value, "role_a": "P"}
    yield from table("sim_map", sim_map(stats, bank.layers), bank.layers, fields | {"role_b": "T", "variant": "raw"})
    pairing, alone = bank.pairing, fields | {"role_b": "T.text"}
    if pairing.num_units < MIN_UNITS:
        note = f"{pairing.num_units} units; at least {MIN_UNITS}"
        for score in ("gap_map", "centred_map", "retrieval_map", "best_text_layer", "leap"):
            yield Row(score=score, value=math.nan, note=note, n=pairing.num_units, **alone)
        return
    media_clouds = [media_cloud(media.nosink_ELD[:, index], pairing) for index in range(len(bank.layers))]
    text_clouds = [texts_cloud(bank.texts.nosink_ELD[:, index], pairing) for index in range(len(bank.layers))]
    found = torch.tensor([[float(retrieve(p, t, pairing).hit_E.nanmean()) for t in text_clouds] for p in media_clouds])
    yield from table("retrieval_map", found, bank.layers, alone | {"variant": "centred"})
    own, gaps = centred_maps(media_clouds, text_clouds), gap_map(bank, media)
    yield from table("centred_map", own.nanmean(2), bank.layers, alone | {"variant": "centred"})
    yield from table("gap_map", gaps, bank.layers, alone | {"variant": "raw"})
    yield from best_rows(own, media_clouds, text_clouds, bank, alone | {"variant": "centred"})


def table(score: str, value_LL: Tensor, layers: list[int], fields: Base) -> Iterator[Row]:
    for a, values in zip(layers, value_LL.tolist(), strict=True):
        for b, value in zip(layers, values, strict=True):
            note = None if value == value else NOTHING
            yield Row(score=score, value=value, layer_a=a, layer_b=b, note=note, **fields)


def sim_map(stats: SiteStats, layers: list[int]) -> Tensor:
    """Mean over all pairs of cos(m_P,a , m_T,b), from the streamed sums of unit vectors."""
    means = []
    for view in ("P", "T"):
        index = stats.plan.views.index(view)
        count_L = stats.count_LGR[:, :, index].double().sum(1).cpu()
        sum_LD = stats.unit_sum_LGRD[:, :, index].double().sum(1).cpu()
        means.append((sum_LD / count_L.where(count_L > 0, torch.nan)[:, None])[layers])
    return means[0] @ means[1].T


def centred_maps(media: list[Cloud], texts: list[Cloud]) -> Tensor:
    """own_LLU: the centred cosine of each unit with its own text; NaN where it lacks a side."""
    p_LUD, t_LUD = (torch.stack([cloud.units_UD for cloud in side]) for side in (media, texts))
    there_LU, text_LU = (torch.stack([cloud.there_U for cloud in side]) for side in (media, texts))
    own_LLU = torch.einsum("aud,bud->abu", p_LUD, t_LUD)
    return own_LLU.where(there_LU[:, None] & text_LU[None], torch.nan)


def gap_map(bank: TextBank, media: Means) -> Tensor:
    """Own text alone minus the texts of other examples, not centred."""
    p_ELD, t_ELD = media.all_ELD.double(), bank.texts.all_ELD[bank.pairing.text_of].double()
    there_E = ~(p_ELD.isnan().flatten(1).any(1) | t_ELD.isnan().flatten(1).any(1))
    p, t = normalize(p_ELD[there_E], dim=-1), normalize(t_ELD[there_E], dim=-1)
    num = len(p)
    own = torch.einsum("ead,ebd->ab", p, t)
    return own / num - (p.sum(0) @ t.sum(0).T - own) / (num * (num - 1)) if num > 1 else torch.full_like(own, torch.nan)


def best_rows(
    own_LLU: Tensor, media: list[Cloud], texts: list[Cloud], bank: TextBank, fields: Base
) -> Iterator[Row]:  # fmt: skip
    pairing, layers = bank.pairing, bank.layers
    inner = [index for index, layer in enumerate(layers) if layer > 0]
    weights = resampled_units(pairing)
    for a in inner:
        c_L = own_LLU[a].nanmean(1)
        best = max(inner, key=lambda b: float(c_L[b].nan_to_num(-math.inf)))
        z = z_of(media[a], texts[best])
        named = fields | {"layer_a": layers[a], "n": pairing.num_units}
        yield Row(score="best_text_layer_z", value=z, **named)
        if not z > LEAST_Z:
            note = f"z {z:.1f} of the best layer is not above {LEAST_Z:g}"
            yield Row(score="best_text_layer", value=math.nan, note=note, **named)
            if layers[a] == 1:
                yield Row(score="leap", value=math.nan, note=note, n=pairing.num_units, **fields)
            continue
        there = own_LLU[a][inner].nan_to_num(0.0).numpy(), (~own_LLU[a][inner].isnan()).double().numpy()
        rates = (weights @ there[0].T) / np.maximum(weights @ there[1].T, 1e-12)
        drawn = np.array([layers[inner[index]] for index in rates.argmax(1)])
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        yield Row(score="best_text_layer", value=layers[best], **named)
        yield Row(score="best_text_layer_low", value=float(low), **named)
        yield Row(score="best_text_layer_high", value=float(high), **named)
        if layers[a] == 1:
            yield Row(score="leap", value=layers[best] - 1, n=pairing.num_units, **fields)


def z_of(media: Cloud, texts: Cloud) -> float:
    both_U = media.there_U & texts.there_U
    cosine_UU = media.units_UD[both_U] @ texts.units_UD[both_U].T
    number_U = torch.arange(len(cosine_UU))
    null_B = torch.stack([cosine_UU[number_U, given_U].mean() for given_U in permutations(len(cosine_UU))])
    return Calibrated(float(cosine_UU.diagonal().mean()), null_B).z


def resampled_units(pairing: Pairing) -> np.ndarray:
    """weight_BU: how often each unit counts when clusters are drawn again (a unit of several: the mean of theirs)."""
    clusters = list(dict.fromkeys(pairing.clusters))
    member = np.zeros((len(clusters), pairing.num_units))
    for cluster, unit in zip(pairing.clusters, pairing.unit_of, strict=True):
        member[clusters.index(cluster), unit] = 1
    shares = np.full(len(clusters), 1 / len(clusters))
    counts = np.random.default_rng(0).multinomial(len(clusters), shares, size=NUM_BOOTSTRAP)
    weights: np.ndarray = counts @ (member / member.sum(0))
    return weights
