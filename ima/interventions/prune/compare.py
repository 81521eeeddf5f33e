"""How much two masks have in common, always beside what chance would give. Numpy only.

IoU of the kept and of the pruned sets. Chance: two random masks with these very densities in every matrix have
expected IoU sum(n a b) / sum(n (a + b - a b)) over the matrices, with a, b the shares kept; a / (2 - a) for equal ones.
Corrected: (IoU - chance) / (1 - chance), 0 for chance and 1 for equality. `without`: weights that are left out of the
comparison, such as those that magnitude alone would keep.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from ima.interventions.prune.mask import By, Mask, clear_tail, ones, place_of, same_model


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one matrix: weights compared, kept in a, in b, in both."""

    num: int
    a: int
    b: int
    both: int


@dataclasses.dataclass(frozen=True)
class Overlap:
    """NaN where nothing is kept (pruned) by either. `num`: weights compared."""

    iou: float
    chance: float
    iou_pruned: float
    chance_pruned: float
    num: int

    @property
    def corrected(self) -> float:
        return corrected(self.iou, self.chance)

    @property
    def corrected_pruned(self) -> float:
        return corrected(self.iou_pruned, self.chance_pruned)


def corrected(iou: float, chance: float) -> float:
    return (iou - chance) / (1 - chance) if chance < 1 else math.nan


def divided(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def count(a: Mask, b: Mask, path: str, without: Mask | None = None) -> Counts:
    left, right, num = a.bits[path], b.bits[path], math.prod(a.shapes[path])
    if without is not None:
        rest = clear_tail(~np.asarray(without.bits[path]), num)
        left, right, num = left & rest, right & rest, ones(rest)
    return Counts(num, ones(left), ones(right), ones(np.bitwise_and(left, right)))


def overlap_of(counts: Iterable[Counts]) -> Overlap:
    """Pooled over matrices: sets are united, chance is that of random masks with each matrix's own densities."""
    both = union = expected = expected_union = num = 0.0
    both_pruned = union_pruned = expected_pruned = expected_union_pruned = 0.0
    for c in counts:
        by_chance = c.a * c.b / c.num if c.num else 0.0
        both, union, num = both + c.both, union + c.a + c.b - c.both, num + c.num
        expected, expected_union = expected + by_chance, expected_union + c.a + c.b - by_chance
        pruned_a, pruned_b = c.num - c.a, c.num - c.b
        by_chance = pruned_a * pruned_b / c.num if c.num else 0.0
        same = c.num - c.a - c.b + c.both
        both_pruned, union_pruned = both_pruned + same, union_pruned + pruned_a + pruned_b - same
        expected_pruned += by_chance
        expected_union_pruned += pruned_a + pruned_b - by_chance
    return Overlap(
        divided(both, union),
        divided(expected, expected_union),
        divided(both_pruned, union_pruned),
        divided(expected_pruned, expected_union_pruned),
        int(num),
    )


def overlaps(
    a: Mask, b: Mask, by: Sequence[By] = ("whole",), without: Mask | None = None
) -> dict[By, dict[str, Overlap]]:
    """For each grouping: group -> overlap. Raises UserError for masks of different models."""
    same_model(a, b)
    if without is not None:
        same_model(a, without)
    counts = {path: count(a, b, path, without) for path in a.shapes}
    out: dict[By, dict[str, Overlap]] = {}
    for grouping in by:
        groups: dict[str, list[Counts]] = {}
        for path, found in counts.items():
            groups.setdefault(place_of(path).key(grouping), []).append(found)
        out[grouping] = {key: overlap_of(found) for key, found in groups.items()}
    return out


def overlap(a: Mask, b: Mask, without: Mask | None = None) -> Overlap:
    return overlaps(a, b, ("whole",), without)["whole"][""]


def density_by_chance(masks: Sequence[Mask]) -> float:
    """Density that the intersection of random masks would have, with each mask's own density in every matrix."""
    kept = 0.0
    for path, shape in masks[0].shapes.items():
        num = math.prod(shape)
        kept += num * math.prod(ones(mask.bits[path]) / num for mask in masks)
    return kept / masks[0].num_weights
