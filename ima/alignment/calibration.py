"""Null calibration: what a pairing score would be were the units' texts given to each other (docs/alignment.md).

The pairing of whole units is permuted, the same permutations for all layers and scores. Of each score: the null's mean
and deviation, z, and p = (1 + number of permutations as good or better) / (B + 1), where ties with what was found are
broken at random, seeded. A maximum over layers is that of z, against each permutation's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ima.alignment.kept_means import Means, TextBank
from ima.alignment.pairing import MIN_UNITS, NUM_PERMUTATIONS
from ima.alignment.rows import Base
from ima.alignment.units import SCORES, SMALLER_IS_BETTER, Units
from ima.core.types import Row, Site

TIE = 1e-12
NUM_PROCRUSTES_LAYERS = 9  # a singular value decomposition for each permutation


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """better: 1, or -1 where smaller is better. null_B: the score under each permutation."""

    value: float
    null_B: Tensor
    better: int = 1

    @property
    def mean(self) -> float:
        return float(self.null_B.mean())

    @property
    def sd(self) -> float:
        return float(self.null_B.std()) if len(self.null_B) > 1 else math.nan

    @property
    def z(self) -> float:
        return self.better * (self.value - self.mean) / self.sd if self.sd > TIE else math.nan

    @property
    def z_B(self) -> Tensor:
        made: Tensor = self.better * (self.null_B - self.mean) / (self.sd if self.sd > TIE else math.nan)
        return made

    def p(self, seed: int = 0) -> float:
        if self.value != self.value:
            return math.nan
        above_B = self.better * (self.null_B - self.value)
        drawn_B = torch.rand(len(above_B) + 1, generator=torch.Generator().manual_seed(seed))
        beaten = (above_B > TIE) | ((above_B.abs() <= TIE) & (drawn_B[1:] >= drawn_B[0]))
        return float((1 + beaten.sum()) / (len(above_B) + 1))


def permutations(num: int, times: int = NUM_PERMUTATIONS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num, generator=generator) for _ in range(times)])


def calibrated(units: Units, score: str, given_BU: Tensor) -> Calibrated:
    found = SCORES[score](units)
    null_B = torch.tensor([found(given_U) for given_U in given_BU], dtype=torch.float64)
    return Calibrated(found(torch.arange(len(units))), null_B, -1 if score in SMALLER_IS_BETTER else 1)


def best_layer(found: Sequence[Calibrated]) -> tuple[float, float]:
    """(largest z over the layers, its p against each permutation's largest); layers without a z take no part."""
    known = [one for one in found if one.z == one.z]
    if not known:
        return math.nan, math.nan
    largest = max(one.z for one in known)
    null_B = torch.stack([one.z_B for one in known]).amax(0)
    return largest, Calibrated(largest, null_B).p()


def null_rows(
    bank: TextBank, media: Means, base: Base, layers: Sequence[int], features: Tensor | None = None
) -> Iterator[Row]:
    """layers: at which procrustes is looked at. features: of the encoder, a mean of each example [E, N], for the same
    scores before the adapter (variant `encoder`, T.text at each layer)."""
    fields = base | {"site": Site.RESID_POST.value, "role_a": "P", "role_b": "T.text"}
    pairing = bank.pairing
    sides = {"calibrated": media}
    if features is not None:
        repeated_ELD = features.float()[:, None].expand(-1, len(bank.layers), -1)
        sides["encoder"] = Means(repeated_ELD, repeated_ELD)
    for variant, side in sides.items():
        for score in SCORES:
            if variant == "encoder" and score.startswith("unit_"):
                continue  # a cosine of two spaces means nothing
            named = fields | {"variant": variant}
            if pairing.num_units < MIN_UNITS:
                note = f"{pairing.num_units} units; at least {MIN_UNITS}"
                yield Row(score=score, value=math.nan, note=note, n=pairing.num_units, **named)
                continue
            inner: list[Calibrated] = []
            for index, layer in enumerate(bank.layers):
                if score == "procrustes" and layer not in layers:
                    continue
                units = Units.at(side, bank.texts, index, pairing)
                if len(units) < MIN_UNITS:
                    note = f"{len(units)} units with both sides; at least {MIN_UNITS}"
                    yield Row(
                        score=score, value=math.nan, note=note, n=len(units), layer_a=layer, layer_b=layer, **named
                    )
                    continue
                found = calibrated(units, score, permutations(len(units)))
                at = named | {"layer_a": layer, "layer_b": layer, "n": len(units)}
                yield Row(score=score, value=found.value, **at)
                yield Row(score=f"{score}_null", value=found.mean, se=found.sd, note="se: deviation of the null", **at)
                same = None if found.z == found.z else "the null does not vary"
                yield Row(score=f"{score}_z", value=found.z, note=same, **at)
                yield Row(score=f"{score}_p", value=found.p(), **at)
                inner += [found] if layer > 0 else []
            z, p = best_layer(inner)
            none = None if z == z else "no layer from 1 on has a z"
            yield Row(score=f"{score}_z_best", value=z, n=pairing.num_units, note=none, **named)
            yield Row(score=f"{score}_p_best", value=p, n=pairing.num_units, note=none, **named)
