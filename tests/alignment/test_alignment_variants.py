"""Variants, cones and scales equal their definitions by brute force in fp64, for any split, padding and order."""

import pytest
import torch
from alignment_states import NUM_LAYERS, WIDTH, examples, feed, tokens

from ima.alignment.reference_pass import Scales
from ima.alignment.rows import alignment_rows
from ima.alignment.scores import cone, similarity
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import MASSIVE, VARIANTS, Plan, lowest
from ima.core.types import Site

SPLITS = [(1, False, 0), (7, True, 0), (20, True, 3), (5, False, 4)]
POST = Site.RESID_POST


@pytest.fixture(scope="module")
def made():
    return examples()


def subset_of(made):
    ids = set(lowest([name for name, _, _ in made], 9, 0, "scales"))
    return [example for example in made if example[0] in ids]


def scales_of(made, split=(20, False, 0)) -> Scales:
    subset = subset_of(made)
    scales = Scales([name for name, _, _ in subset])
    feed(scales, subset, *split)
    scales.reduce()
    return scales


def stream(made, split=(20, False, 0), scales=None, sites=(POST,)) -> AlignmentStats:
    stats = AlignmentStats(NUM_LAYERS, plan=Plan(VARIANTS), scales=scales or scales_of(made))
    feed(stats, made, *split, sites=sites)
    return stats


def brute_scales(made, layer):
    """Median norm, deviation per dimension, mean tokens per role and example, of the subset."""
    subset = subset_of(made)
    every = torch.cat([state[layer, tokens(row, "P") + tokens(row, "T")] for _, row, state in subset]).double()
    means = {
        role: {n: s[layer, tokens(row, role)].double().mean(0) for n, row, s in subset if tokens(row, role)}
        for role in ("P", "T")
    }
    norms = every.norm(dim=1).sort().values
    return norms[-(-len(norms) // 2) - 1], every.std(0, correction=0), means


def brute_means(made, layer, role, variant):
    median, deviation, subset_means = brute_scales(made, layer)
    found = {}
    for name, row, state in made:
        chosen = tokens(row, role)
        x = state[:, chosen].double()
        if variant == "nosink":
            x = x[:, [index for index, place in enumerate(chosen) if place > 0]]
        if variant == "nomassive":
            x = x[:, x[layer].norm(dim=1) <= MASSIVE * median]
        if not x.shape[1]:
            continue
        mean = x[layer].mean(0)
        if variant == "scaled":
            mean = torch.where(deviation > 1e-6, mean / deviation, 0.0)
        if variant == "centred":
            mean = mean - torch.stack([m for other, m in subset_means[role].items() if other != name]).mean(0)
        if variant == "update":
            if layer == 0:
                continue
            mean = mean - x[layer - 1].mean(0)
        found[name] = mean
    return found


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm())) if a.norm() > 0 and b.norm() > 0 else 0.0


def average(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", SPLITS)
def test_each_variant_equals_the_double_loop(made, variant, split):
    curves = similarity(stream(made, split).sites[POST], f"P.{variant}", f"T.{variant}")
    for layer in range(NUM_LAYERS):
        a, b = (brute_means(made, layer, role, variant) for role in ("P", "T"))
        matched = average(cosine(a[name], b[name]) for name in a if name in b)
        assert float(curves["sim_matched"].value_L[layer]) == pytest.approx(matched, abs=1e-5, nan_ok=True)
        if variant == "centred":
            assert set(curves) == {"sim_matched"}
            continue
        every = average(cosine(x, y) for x in a.values() for y in b.values())
        others = average(cosine(a[x], b[y]) for x in a for y in b if x != y)
        assert float(curves["sim"].value_L[layer]) == pytest.approx(every, abs=1e-5, nan_ok=True)
        assert float(curves["gap_read"].value_L[layer]) == pytest.approx(matched - others, abs=1e-5, nan_ok=True)
        assert int(curves["sim"].n_L[layer]) == min(len(a), len(b))


@pytest.mark.parametrize("view", ["P", "T", "P.nomassive", "T.scaled", "P.update"])
def test_a_cone_is_the_mean_over_distinct_pairs(made, view):
    curve = cone(stream(made, (6, True, 1)).sites[POST], view)
    for layer in range(NUM_LAYERS):
        role, _, variant = view.partition(".")
        means = list(brute_means(made, layer, role, variant or "raw").values())
        pairs = [cosine(x, y) for i, x in enumerate(means) for j, y in enumerate(means) if i != j]
        assert float(curve.value_L[layer]) == pytest.approx(average(pairs), abs=1e-5, nan_ok=True)


def test_an_example_whose_tokens_are_all_massive_leaves_the_count_of_that_layer(made):
    raw, kept = (similarity(stream(made).sites[POST], f"P{v}", f"T{v}")["sim"] for v in ("", ".nomassive"))
    assert int(raw.n_L[2]) > int(kept.n_L[2]) and int(raw.n_L[0]) == int(kept.n_L[0])
    assert abs(float(raw.value_L[2] - kept.value_L[2])) > 1e-3


@pytest.mark.parametrize("split", SPLITS)
def test_scales_do_not_depend_on_batches(made, split):
    one, other = scales_of(made), scales_of(made[::-1], split)
    for key, sums in one.sums.items():
        for mine, theirs in zip(sums.tensors(), other.sums[key].tensors(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-9)
    for layer in range(NUM_LAYERS):
        median, deviation, _ = brute_scales(made, layer)
        scale = one.of(layer, POST)
        assert scale.massive == pytest.approx(float(MASSIVE * median), rel=0.01)
        constant = torch.arange(WIDTH) == 5
        assert (scale.inverse_D[constant] == 0).all(), "a dimension that never varies is left out"
        torch.testing.assert_close(scale.inverse_D[~constant].double(), 1 / deviation[~constant], rtol=1e-5, atol=0)


def test_one_example_has_neither_cone_nor_gap_nor_centre(made):
    stats = AlignmentStats(NUM_LAYERS, plan=Plan(VARIANTS), scales=(scales := Scales([made[1][0]])))
    feed(scales, made[1:2], 1)
    feed(stats, made[1:2], 1)
    rows = list(alignment_rows(stats, {"run": "r"}))
    empty = [row for row in rows if row.score in ("cone", "gap_read") or row.variant == "centred"]
    assert empty and all(row.value != row.value and row.note for row in empty)
    assert all(row.value == row.value for row in rows if row.score == "sim" and row.variant == "scaled")


def test_variants_go_to_rows_once_each_and_updates_only_of_block_outputs(made):
    scales = Scales([name for name, _, _ in subset_of(made)])
    feed(scales, subset_of(made), 4, sites=(POST, Site.SA, Site.FC2))
    rows = list(alignment_rows(stream(made, scales=scales, sites=(POST, Site.SA, Site.FC2)), {"run": "r"}))
    keys = [(r.score, r.site, r.variant, r.role_a, r.role_b, r.layer_a, r.layer_b) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {row.variant for row in rows} == {"raw", *VARIANTS}
    assert {row.site for row in rows if row.variant == "update"} == {"resid_post"}
    assert {row.score for row in rows if row.variant == "centred"} == {"sim_matched", "ima_matched"}
    outside = next(r for r in rows if r.score == "ima_outside" and r.variant == "raw")
    parts = [r.value for r in rows if r.score == "ima" and r.variant == "raw" and r.role_b == "T" and r.site == "sa"]
    assert outside.value == pytest.approx(parts[0]), "both sites were shown the same states"


def test_the_default_plan_streams_no_more_than_before():
    assert Plan().views == ("P", "T", "T.answer", "T.prompt", "P.nosink", "T.nosink") and not Plan().needs_scales
