"""Which examples are paired with which texts, and which of them are one unit (docs/alignment.md).

A unit is a connected component of examples that share a text or a cluster (a stamp, an image, a speaker). Scores that
pair media with texts are calibrated by permuting whole units: examples of one unit cannot be told apart by their text.
A seeded draw of whole units, at most so many examples, is kept; it does not depend on order, batches or ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ima.alignment.views import draw_of

MIN_UNITS = 8
NUM_PERMUTATIONS = 200
TextKey = tuple[tuple[int, ...], tuple[int, ...]]  # token ids and their roles


@dataclasses.dataclass(frozen=True)
class Pairing:
    """E examples, X distinct texts, U units. text_of, unit_of: of each example; unit_of_text: of each text;
    representatives: of each text an example that has it, as an index into `ids`."""

    ids: list[str]
    clusters: list[str]
    text_of: list[int]
    unit_of: list[int]
    unit_of_text: list[int]
    representatives: list[int]

    @classmethod
    def of(
        cls, ids: Sequence[str], clusters: Sequence[str], texts: Sequence[TextKey], num: int, seed: int = 0
    ) -> Pairing:
        """The units with the lowest place in the draw, as long as they fit into `num` examples."""
        unit_of = components(texts, clusters)
        members: dict[int, list[int]] = {}
        for index, unit in enumerate(unit_of):
            members.setdefault(unit, []).append(index)

        def place(index: int) -> tuple[str, str]:
            return draw_of(ids[index], seed, "pairs"), ids[index]

        chosen: list[list[int]] = []
        for mine in sorted((sorted(each, key=place) for each in members.values()), key=lambda each: place(each[0])):
            if sum(map(len, chosen)) + len(mine) <= num:
                chosen.append(mine)
        kept = [index for unit in chosen for index in unit]
        keys = list(dict.fromkeys(texts[index] for index in kept))
        at = {key: number for number, key in enumerate(keys)}
        text_of = [at[texts[index]] for index in kept]
        units = [number for number, unit in enumerate(chosen) for _ in unit]
        first = [text_of.index(number) for number in range(len(keys))]
        unit_of_text = [units[index] for index in first]
        return cls([ids[i] for i in kept], [clusters[i] for i in kept], text_of, units, unit_of_text, first)

    @property
    def num_texts(self) -> int:
        return len(self.representatives)

    @property
    def num_units(self) -> int:
        return max(self.unit_of, default=-1) + 1

    @cached_property
    def permutations_BU(self) -> Tensor:
        """Which unit's text each unit is given: the same for all layers and scores."""
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randperm(self.num_units, generator=generator) for _ in range(NUM_PERMUTATIONS)]
        return torch.stack(drawn) if drawn else torch.zeros(0, 0, dtype=torch.long)


def components(texts: Sequence[object], clusters: Sequence[object]) -> list[int]:
    """Of each example the number of its unit, in order of first appearance."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, object], int] = {}
    for index, (text, cluster) in enumerate(zip(texts, clusters, strict=True)):
        for key in (("text", text), ("cluster", cluster)):
            parent[root(index)] = root(first.setdefault(key, index))
    number: dict[int, int] = {}
    return [number.setdefault(root(index), len(number)) for index in range(len(texts))]
