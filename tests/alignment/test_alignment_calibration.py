"""Pairing scores against permuted units: brute force, ties, and p under a true null."""

import itertools
import math

import pytest
import torch

from ima.alignment.calibration import Calibrated, best_layer, calibrated, permutations
from ima.alignment.geometry import cka_debiased, procrustes
from ima.alignment.units import DISCRETE, SCORES, Units, num_neighbours

NUM, DIM = 14, 9


def points(seed=0, num=NUM, shared=0.6, dim=DIM, dim_t=DIM):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    t = torch.randn(num, dim_t, generator=generator, dtype=torch.float64)
    if dim == dim_t:
        t += shared * p
    return p + 1.0, t - 0.5


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def brute_force(p, t, given):
    """Every score by loops over units; t[given[u]] is u's text."""
    own, num = [t[u] for u in given], len(p)
    matched = [cosine(p[u], own[u]) for u in range(num)]
    across = [cosine(p[u], own[v]) for u, v in itertools.permutations(range(num), 2)]
    found = {"unit_gap": sum(matched) / num - sum(across) / len(across)}
    units_p, units_t = ([x / x.norm() for x in side] for side in (p, t))

    def centred(side, u):
        made = side[u] - torch.stack([side[v] for v in range(num) if v != u]).mean(0)
        return made / made.norm()

    c = [[float(centred(units_p, u) @ centred(units_t, given[v])) for v in range(num)] for u in range(num)]
    found["unit_cosine"] = sum(c[u][u] for u in range(num)) / num
    ranks = [1 + sum(c[u][v] > c[u][u] + 1e-9 for v in range(num)) for u in range(num)]
    found["unit_retrieval"] = sum(rank == 1 for rank in ranks) / num
    found["unit_mrr"] = sum(1 / rank for rank in ranks) / num
    found["cka_debiased"] = cka_debiased(p, torch.stack(own))
    found["procrustes"] = procrustes(p, torch.stack(own))
    k = num_neighbours(num)

    def neighbours(side, u, num_wanted):
        return sorted((v for v in range(num) if v != u), key=lambda v: -cosine(side[u], side[v]))[:num_wanted]

    found["mutual_knn"] = sum(
        len(set(neighbours(p, u, k)) & set(neighbours(own, u, k))) / k for u in range(num)
    ) / num  # fmt: skip
    found["cycle_knn"] = sum(u in neighbours(own, neighbours(p, u, 1)[0], k) for u in range(num)) / num
    found["cycle_knn_reverse"] = sum(u in neighbours(p, neighbours(own, u, 1)[0], k) for u in range(num)) / num
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_each_score_and_its_null_equal_their_definitions(seed):
    p, t = points(seed)
    units, drawn = Units.of(p, t), permutations(NUM, 4)
    for given in (torch.arange(NUM), *drawn):
        expected = brute_force(p, t, given.tolist())
        assert {score: make(units)(given) for score, make in SCORES.items()} == pytest.approx(expected, abs=1e-8)
    assert expected.keys() == SCORES.keys()


def test_procrustes_and_neighbours_need_no_common_space():
    p, t = points(dim=5, dim_t=11)
    units = Units(p, t, p, t)
    given = torch.arange(NUM)
    wide = torch.nn.functional.pad(p, (0, 6))
    assert SCORES["procrustes"](units)(given) == pytest.approx(procrustes(wide, t), abs=1e-9)
    assert 0 <= SCORES["cycle_knn"](units)(given) <= 1


def test_equal_similarities_share_their_places_evenly():
    p = torch.eye(9, dtype=torch.float64)  # all others are equally far: each has 2 of 8 places
    units = Units.of(p, p)
    given = torch.arange(9)
    assert num_neighbours(9) == 2
    assert SCORES["mutual_knn"](units)(given) == pytest.approx(8 * 0.25**2 / 2)
    assert SCORES["cycle_knn"](units)(given) == pytest.approx(8 * (1 / 8) * 0.25)


def test_p_counts_what_is_as_good_with_ties_broken_at_random():
    null = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert Calibrated(0.35, null).p() == pytest.approx(2 / 5)
    assert Calibrated(0.35, null, better=-1).p() == pytest.approx(4 / 5)
    tied = Calibrated(0.5, torch.full((99,), 0.5, dtype=torch.float64))
    drawn = [tied.p(seed) for seed in range(300)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.505, abs=0.05)
    assert math.isnan(tied.z)


def test_the_best_of_layers_is_compared_with_the_best_of_each_permutation():
    null = torch.randn(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = [Calibrated(2.0, null[0]), Calibrated(3.0, null[1])]
    z, p = best_layer(layers)
    assert z == pytest.approx(layers[1].z)
    largest = torch.maximum(layers[0].z_B, layers[1].z_B)
    assert p == pytest.approx(float((1 + (largest >= z).sum()) / 201))


def made_null(seed, planted=0.0, num_units=12):
    """Examples with duplicates: each unit has one to three views of one medium and one text; under the null the texts
    belong to whole units by chance."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    media, texts = randn(num_units, 24), randn(num_units, 24)
    texts = planted * media + (1 - planted**2) ** 0.5 * texts
    views = torch.randint(1, 4, (num_units,), generator=generator).tolist()
    examples = [(u, media[u] + 0.3 * randn(24)) for u in range(num_units) for _ in range(views[u])]
    return examples, texts


def unit_points(examples, texts):
    numbers = sorted({u for u, _ in examples})
    return torch.stack([torch.stack([x for v, x in examples if v == u]).mean(0) for u in numbers]), texts


@pytest.mark.parametrize("score", ["unit_gap", "cka_debiased", "unit_retrieval", "mutual_knn"])
def test_p_is_uniform_where_texts_belong_to_units_by_chance(score):
    """Continuous: Kolmogorov-Smirnov at .01. Discrete: no more small p than their size allows."""
    drawn = permutations(12, 60)
    found = [calibrated(Units.of(*unit_points(*made_null(seed))), score, drawn).p(seed) for seed in range(120)]
    ordered = sorted(found)
    distance = max(max((i + 1) / 120 - p, p - i / 120) for i, p in enumerate(ordered))
    if score not in DISCRETE:
        assert distance < 1.63 / 120**0.5 + 1 / 61
        return
    for alpha in (0.05, 0.1):
        share = sum(p <= alpha for p in found) / 120
        assert share <= alpha + 2 * (alpha * (1 - alpha) / 120) ** 0.5


def test_permuting_single_examples_rejects_a_true_null():
    """The slow twin: duplicates are taken for independent examples, and neighbours then agree by construction."""
    drawn = {}
    rejected = 0
    for seed in range(40):
        examples, texts = made_null(seed)
        p, t = torch.stack([x for _, x in examples]), texts[[u for u, _ in examples]]
        given = drawn.setdefault(len(p), permutations(len(p), 40))
        rejected += calibrated(Units.of(p, t), "cka_debiased", given).p() <= 0.05
    assert rejected > 12


@pytest.mark.parametrize("score", ["unit_gap", "cka_debiased", "unit_cosine"])
def test_a_planted_pairing_is_found(score):
    drawn = permutations(42, 60)
    found = [
        calibrated(Units.of(*unit_points(*made_null(seed, 0.5, 42))), score, drawn).p() <= 0.05 for seed in range(12)
    ]
    assert sum(found) >= 11
