"""The headline pair as rows: centred retrieval of text-only T by layer with its chance, and growth over layer 0.

retrieval, centred_cosine, gap   per layer, P against T.text; `_mean`: over layers from 1 on; gap is not centred
retrieval_chance                 1 / number of distinct texts
retrieval_growth                 best layer from 1 on minus layer 0; a best layer is positive by chance, so beside it
                                 _null (its mean under permuted units), _over_null (minus that) and _p
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ima.alignment.centred import cosine, media_cloud, permuted, retrieve, texts_cloud
from ima.alignment.kept_means import Means, TextBank
from ima.alignment.pairing import MIN_UNITS, Pairing
from ima.alignment.rows import Base
from ima.alignment.scores import jackknife_se, mean_with_error
from ima.alignment.views import NUM_GROUPS, group_of
from ima.core.resampling import cluster_sums, divided
from ima.core.types import Row, Site

NUM_BOOTSTRAP = 500
Value = tuple[float, float, int]
POOLED = ("retrieval_mean", "retrieval_chance", "retrieval_growth", "retrieval_growth_null")
POOLED_MORE = ("retrieval_growth_over_null", "retrieval_growth_p", "centred_cosine_mean", "gap_mean")


@dataclasses.dataclass(frozen=True)
class Headline:
    """hit_LE: of each layer and example; cosine_LU: of each unit; null_LB: retrieval under each permutation;
    gap: value, error and n by layer."""

    hit_LE: Tensor
    cosine_LU: Tensor
    null_LB: Tensor
    gap: list[Value]

    @classmethod
    def of(cls, bank: TextBank, media: Means) -> Headline:
        hits, cosines, nulls, gaps = [], [], [], []
        pairing = bank.pairing
        for index in range(len(bank.layers)):
            percepts = media_cloud(media.nosink_ELD[:, index], pairing)
            texts = texts_cloud(bank.texts.nosink_ELD[:, index], pairing)
            found = retrieve(percepts, texts, pairing)
            value_U, both_U = cosine(percepts, texts)
            hits.append(found.hit_E)
            cosines.append(value_U.where(both_U, torch.nan))
            nulls.append(permuted(found.share_EU, pairing))
            text_ED = bank.texts.all_ELD[pairing.text_of, index]
            gaps.append(gap(media.all_ELD[:, index], text_ED, pairing.clusters))
        return cls(torch.stack(hits), torch.stack(cosines), torch.stack(nulls), gaps)

    def growth(self, layers: list[int]) -> tuple[float, float, Tensor]:
        """Value, null of each permutation; NaN without layer 0 or another one."""
        if 0 not in layers or len(layers) < 2:
            return math.nan, math.nan, torch.full((1,), torch.nan)
        first = layers.index(0)
        rest = [index for index in range(len(layers)) if index != first]
        rates_L = self.hit_LE.nanmean(1)
        null_B = self.null_LB[rest].amax(0) - self.null_LB[first]
        return float(rates_L[rest].max() - rates_L[first]), float(null_B.mean()), null_B


def gap(p_ED: Tensor, t_ED: Tensor, clusters: list[str]) -> Value:
    """Mean cosine of an example with its own text minus that with the texts of other examples; jackknife error."""
    there_E = ~(p_ED.isnan().any(1) | t_ED.isnan().any(1))
    p, t = (normalize(x[there_E].double(), dim=1) for x in (p_ED, t_ED))
    names = [name for name, there in zip(clusters, there_E.tolist(), strict=True) if there]
    if len(names) < 2:
        return math.nan, math.nan, len(names)
    groups = torch.tensor([group_of(name) for name in names])
    onehot_GE = one_hot(groups, NUM_GROUPS).T.double()
    sums = [onehot_GE @ x for x in (p, t)]
    totals = [x.sum(0) for x in (p, t)]
    own_G, num_G = onehot_GE @ (p * t).sum(1), onehot_GE.sum(1)

    def value(own: Tensor, every: Tensor, num: Tensor) -> Tensor:
        return own / num - (every - own) / (num * (num - 1))

    every_G = ((totals[0] - sums[0]) * (totals[1] - sums[1])).sum(1)
    left_G = value(own_G.sum() - own_G, every_G, len(names) - num_G)
    whole = value(own_G.sum(), totals[0] @ totals[1], torch.tensor(float(len(names))))
    return float(whole), float(jackknife_se(left_G[num_G > 0])), len(names)


def growth_error(hit_LE: Tensor, layers: list[int], clusters: list[str]) -> float:
    """Standard deviation of growth over resampled clusters."""
    there_E = ~hit_LE.isnan().any(0)
    if 0 not in layers or not bool(there_E.any()):
        return math.nan
    hits = hit_LE[:, there_E].T.numpy()
    names = [name for name, there in zip(clusters, there_E.tolist(), strict=True) if there]
    sums = cluster_sums(np.concatenate([hits, np.ones((len(hits), 1))], axis=1), names)
    if len(sums) < 2:
        return math.nan
    counts = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=NUM_BOOTSTRAP)
    drawn = counts @ sums
    rates = divided(drawn[:, :-1], drawn[:, -1:])
    first = layers.index(0)
    grown = np.delete(rates, first, axis=1).max(1) - rates[:, first]
    return float(grown.std(ddof=1))


def headline_rows(bank: TextBank, media: Means, base: Base) -> Iterator[Row]:
    fields = base | {"site": Site.RESID_POST.value, "role_a": "P", "role_b": "T.text"}
    pairing = bank.pairing
    if pairing.num_units < MIN_UNITS:
        yield from nothing(bank, fields)
        return
    head = Headline.of(bank, media)
    among = f"among {pairing.num_texts} texts of {pairing.num_units} units"

    def row(score: str, value: Value, layer: int | None = None) -> Row:
        variant = "raw" if score.startswith("gap") else "centred"
        note = among if value[0] == value[0] else "no perceptual tokens"
        number, se, n = value
        return Row(
            score=score, value=number, se=se, n=n, note=note, variant=variant, layer_a=layer, layer_b=layer, **fields
        )

    names_U = unit_names(pairing)
    for index, layer in enumerate(bank.layers):
        yield row("retrieval", mean_with_error(head.hit_LE[index], pairing.clusters), layer)
        yield row("centred_cosine", mean_with_error(head.cosine_LU[index], names_U), layer)
        yield row("gap", head.gap[index], layer)
    inner = [index for index, layer in enumerate(bank.layers) if layer > 0]
    num = len(pairing.ids)
    yield row("retrieval_chance", (1 / pairing.num_texts, 0.0, num))
    if inner:
        yield row("retrieval_mean", mean_with_error(head.hit_LE[inner].mean(0), pairing.clusters))
        yield row("centred_cosine_mean", mean_with_error(head.cosine_LU[inner].mean(0), names_U))
        gaps = [head.gap[index][0] for index in inner]
        yield row("gap_mean", (sum(gaps) / len(gaps), math.nan, head.gap[inner[0]][2]))
    value, null, null_B = head.growth(bank.layers)
    yield row("retrieval_growth", (value, growth_error(head.hit_LE, bank.layers, pairing.clusters), num))
    yield row("retrieval_growth_null", (null, math.nan, num))
    yield row("retrieval_growth_over_null", (value - null, math.nan, num))
    yield row("retrieval_growth_p", (p_value(value, null_B), math.nan, num))


def p_value(value: float, null_B: Tensor) -> float:
    """Share of permutations as good as what was found or better, itself one of them."""
    if value != value:
        return math.nan
    return float((1 + (null_B >= value - 1e-12).sum()) / (len(null_B) + 1))


def unit_names(pairing: Pairing) -> list[str]:
    """A name for each unit that says its jackknife group: the cluster of its first example."""
    names: dict[int, str] = {}
    for unit, cluster in zip(pairing.unit_of, pairing.clusters, strict=True):
        names.setdefault(unit, cluster)
    return list(names.values())


def nothing(bank: TextBank, fields: Base) -> Iterator[Row]:
    note = f"{bank.pairing.num_units} units of examples that share no text and no cluster; at least {MIN_UNITS}"
    per_layer = [(score, layer) for layer in bank.layers for score in ("retrieval", "centred_cosine", "gap")]
    for score, layer in [*per_layer, *((score, None) for score in POOLED + POOLED_MORE)]:
        variant = "raw" if score.startswith("gap") else "centred"
        yield Row(
            score=score, value=math.nan, note=note, variant=variant, layer_a=layer, layer_b=layer,
            n=len(bank.pairing.ids), **fields,
        )  # fmt: skip
