"""The standard error of a score leaves out each group that has something at the layer, and no other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ima.alignment.scores import Curve, average, cone, consecutive, similarity
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.token_pairs import mean_of_pairs
from ima.alignment.views import group_of
from ima.core.types import Role, Site

NUM_LAYERS, NUM_EXAMPLES, WIDTH = 4, 14, 8
ROLES_S = torch.tensor([Role.PERCEPT, Role.PERCEPT, Role.PROMPT, Role.ANSWER])
NAMES = [f"example {index}" for index in range(NUM_EXAMPLES)]
SITES = (Site.SA, Site.FC2)
CURVES = {
    "sim": lambda stats: similarity(stats, "P", "T")["sim"],
    "sim_p0": lambda stats: similarity(stats, "P", "T", layer_a=0)["sim"],
    "sim_matched": lambda stats: similarity(stats, "P", "T")["sim_matched"],
    "gap_read": lambda stats: similarity(stats, "P", "T")["gap_read"],
    "cone": lambda stats: cone(stats, "P"),
    "consecutive": lambda stats: consecutive(stats, 1, "P"),
}


def seen_at(site: Site, layer: int, index: int) -> Tensor:
    """Layer 1 lacks some examples, layer 2 the percepts of some and the text of others."""
    seen_S, late = torch.ones(len(ROLES_S), dtype=torch.bool), index + (site is Site.FC2)
    if layer == 1 and late % 3 == 0:
        seen_S[:] = False
    if layer == 2 and late % 4 < 2:
        seen_S[: 2 if late % 4 else 4] = False
    if layer == 2 and late % 4 == 2:
        seen_S[2:] = False
    return seen_S


def streamed(chosen: list[int]) -> AlignmentStats:
    generator = torch.Generator().manual_seed(0)
    x_LEBSD = torch.randn(NUM_LAYERS, NUM_EXAMPLES, len(ROLES_S), WIDTH, generator=generator) + 0.5
    stats = AlignmentStats(NUM_LAYERS)
    stats.begin(ROLES_S.expand(len(chosen), -1), [NAMES[index] for index in chosen])
    for layer in range(NUM_LAYERS):
        for site in SITES:
            seen_BS = torch.stack([seen_at(site, layer, index) for index in chosen])
            stats.see(layer, site, x_LEBSD[layer, chosen], seen_BS)
    stats.end()
    return stats


def without(group: int) -> AlignmentStats:
    return streamed([index for index, name in enumerate(NAMES) if group_of(name) != group])


def by_hand(left_out: list[float]) -> float:
    mean = sum(left_out) / len(left_out)
    return math.sqrt((len(left_out) - 1) / len(left_out) * sum((value - mean) ** 2 for value in left_out))


def groups_with(score: str, site: Site, layer: int) -> list[int]:
    """The groups of the examples that the score has something of at this layer."""
    found = set()
    for index, name in enumerate(NAMES):
        seen_S, later_S, first_S = (seen_at(site, at, index) for at in (layer, layer + 1, 0))
        p, t = bool(seen_S[:2].any()), bool(seen_S[2:].any())
        there = {
            "sim": p or t,
            "sim_p0": bool(first_S[:2].any()) or t,
            "sim_matched": p and t,
            "gap_read": p or t,
            "cone": p,
            "consecutive": p and bool(later_S[:2].any()),
        }[score]
        found |= {group_of(name)} if there else set()
    return sorted(found)


@pytest.mark.parametrize("score", CURVES)
def test_the_error_of_a_layer_leaves_out_the_groups_that_have_something_there(score: str) -> None:
    curve, rest = CURVES[score](streamed(list(range(NUM_EXAMPLES))).sites[Site.SA]), {}
    every = sorted(set(map(group_of, NAMES)))
    for group in every:
        rest[group] = CURVES[score](without(group).sites[Site.SA])
    numbers = []
    for layer in range(len(curve.value_L)):
        groups = groups_with(score, Site.SA, layer)
        numbers.append(len(groups))
        expected = by_hand([float(rest[group].value_L[layer]) for group in groups])
        assert float(curve.se_L[layer]) == pytest.approx(expected, rel=1e-4), layer
    assert min(numbers) < len(every) or score == "sim_p0", "some groups have nothing somewhere"
    inner = sorted({group for layer in range(1, len(curve.value_L)) for group in groups_with(score, Site.SA, layer)})
    pooled = by_hand([float(rest[group].value_L[1:].mean()) for group in inner])
    assert curve.mean(1)[1] == pytest.approx(pooled, rel=1e-4)


def test_the_error_of_sites_that_lack_different_groups() -> None:
    def pooled(stats: AlignmentStats) -> Curve:
        return average([CURVES["sim_matched"](stats.sites[site]) for site in SITES])

    every = sorted(set(map(group_of, NAMES)))
    curve, rest = pooled(streamed(list(range(NUM_EXAMPLES)))), {group: pooled(without(group)) for group in every}
    for layer in range(NUM_LAYERS):
        groups = sorted({group for site in SITES for group in groups_with("sim_matched", site, layer)})
        expected = by_hand([float(rest[group].value_L[layer]) for group in groups])
        assert float(curve.se_L[layer]) == pytest.approx(expected, rel=1e-4)


def test_the_error_of_a_mean_of_pairs_leaves_out_the_groups_that_have_a_pair() -> None:
    value_EE = torch.randn(NUM_EXAMPLES, NUM_EXAMPLES, generator=torch.Generator().manual_seed(1))
    value_EE[:5], value_EE[:, :5] = torch.nan, torch.nan
    left_out = []
    for group in sorted({group_of(name) for name in NAMES[5:]}):
        kept = [index for index, name in enumerate(NAMES) if group_of(name) != group]
        left_out.append(float(value_EE[kept][:, kept].nanmean()))
    assert len(left_out) < len(set(map(group_of, NAMES)))
    assert mean_of_pairs(value_EE, NAMES)[1] == pytest.approx(by_hand(left_out), rel=1e-4)
