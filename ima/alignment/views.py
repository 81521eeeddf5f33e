"""Views: which positions of a sequence a statistic is of, by role, and in which variant (docs/alignment.md).

A role view is P (PERCEPT), T (PROMPT and ANSWER), T.answer or T.prompt; "P.scaled" is the view P in the variant
"scaled". Variants, always of P and T:
nosink     without the first position that is not PAD (BOS is SPECIAL and in no view)
nomassive  without tokens whose norm exceeds 10x the layer's median of a fixed earlier pass (`Scales`)
scaled     each dimension divided by its standard deviation in that pass; nothing is centred
centred    minus the role's mean over the OTHER examples of that pass; for matched similarity and retrieval only, since
           over all pairs it is zero by construction
update     what the block adds: the mean token after it minus the mean token before (block outputs only)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ima.core.types import Role

ROLE_VIEWS = ("P", "T", "T.answer", "T.prompt")
VARIANTS = ("nosink", "nomassive", "scaled", "centred", "update")
SCALED_VARIANTS = ("nomassive", "scaled", "centred")
MATCHED_ONLY = ("centred",)
VIEWS = (*ROLE_VIEWS, "P.nosink", "T.nosink")
PAIRS = (("P", "T"), ("P", "T.answer"), ("P", "T.prompt"), ("P.nosink", "T.nosink"))
NORM_VIEWS = ROLE_VIEWS
NUM_GROUPS = 32
MASSIVE = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The variants that are streamed in addition to `raw`. `views` starts with those that roles alone decide."""

    variants: tuple[str, ...] = ("nosink",)

    @cached_property
    def views(self) -> tuple[str, ...]:
        chosen = [variant for variant in VARIANTS if variant in self.variants]
        return (*ROLE_VIEWS, *(f"{role}.{variant}" for variant in chosen for role in ("P", "T")))

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        chosen = [variant for variant in VARIANTS if variant in self.variants]
        return (*PAIRS[:3], *((f"P.{variant}", f"T.{variant}") for variant in chosen))

    def at(self, variant: str) -> slice:
        """Where the views P and T of a variant are."""
        start = self.views.index(f"P.{variant}")
        return slice(start, start + 2)

    def pair_at(self, variant: str) -> int:
        """Where the pair of these two is."""
        return self.pairs.index((f"P.{variant}", f"T.{variant}"))

    @property
    def num_by_role(self) -> int:
        return len(VIEWS) if "nosink" in self.variants else len(ROLE_VIEWS)

    @property
    def needs_scales(self) -> bool:
        return any(variant in SCALED_VARIANTS for variant in self.variants)

    def without(self, variant: str) -> Plan:
        return Plan(tuple(name for name in self.variants if name != variant))


def split_view(view: str) -> tuple[str, str]:
    """("T.answer", "raw") of "T.answer", ("P", "scaled") of "P.scaled"."""
    role, _, variant = view.rpartition(".")
    return (role, variant) if variant in VARIANTS else (view, "raw")


def view_masks(roles_BS: Tensor) -> Tensor:
    """mask_BRS (bool): which positions each of VIEWS selects."""
    percept, prompt, answer = (roles_BS == role for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER))
    real = roles_BS != Role.PAD
    sink = real & (real.long().cumsum(1) == 1)
    text = prompt | answer
    return torch.stack([percept, text, answer, prompt, percept & ~sink, text & ~sink], dim=1)


def group_of(cluster: str) -> int:
    """Jackknife group of a cluster (a stamp, an image, a speaker; where nothing is told, the sample itself): a hash, so
    that it is the same in every run, order and rank, and that views of one thing are left out together."""
    return hashlib.sha256(cluster.encode()).digest()[0] % NUM_GROUPS


def draw_of(sample_id: str, seed: int, what: str) -> str:
    """A sample's place in the draw of a subset: the subset are the samples of the lowest places, so that it does not
    depend on order, batches or ranks."""
    return hashlib.sha256(f"{what}/{seed}/{sample_id}".encode()).hexdigest()


def lowest(sample_ids: Sequence[str], num: int, seed: int, what: str) -> list[str]:
    """`num` of the samples, or all where there are fewer, in the order of their places."""
    return sorted(set(sample_ids), key=lambda sample_id: (draw_of(sample_id, seed, what), sample_id))[:num]


def evenly(layers: Sequence[int], num: int) -> tuple[int, ...]:
    """`num` of the layers, the first and the last among them; all where there are fewer. One: the last."""
    if num >= len(layers):
        return tuple(layers)
    if num < 2:
        return tuple(layers[-num:] if num else ())
    return tuple(layers[round(index * (len(layers) - 1) / (num - 1))] for index in range(num))
