"""The reservoir keeps the same samples for any split; its scores equal their definitions by plain loops."""

import math

import numpy as np
import pytest
import torch
from alignment_states import NUM_LAYERS, A, P, examples, feed, tokens
from test_alignment_variants import average, cosine, scales_of

from ima.alignment import geometry
from ima.alignment.reference_pass import Scales
from ima.alignment.reservoir import Reservoir, Tokens
from ima.alignment.reservoir_rows import reservoir_rows, retrieval_at
from ima.alignment.scores import jackknife_se
from ima.alignment.token_pairs import SCORES, mean_of_pairs, pair_scores, within_and_across
from ima.alignment.tsne import tsne_rows
from ima.alignment.views import group_of, lowest
from ima.core.types import Site

LAYERS = (0, 2, 3)


@pytest.fixture(scope="module")
def made():
    return examples()


def reservoir_of(made, split=(20, False, 0), num=12) -> Reservoir:
    reservoir = Reservoir(num, LAYERS)
    feed(reservoir, made, *split)
    reservoir.reduce()
    return reservoir


@pytest.mark.parametrize("split", [(1, False, 0), (7, True, 0), (20, True, 3), (5, False, 4)])
def test_it_keeps_the_same_samples_and_states_for_any_split_order_and_padding(made, split):
    expected = lowest([name for name, _, _ in made], 12, 0, "reservoir")
    kept = reservoir_of(made[::-1], split).kept
    assert list(kept) == expected
    by_name = {name: (row, state) for name, row, state in made}
    for name in expected:
        row, state = by_name[name]
        chosen = sorted(tokens(row, "P") + tokens(row, "T"))
        torch.testing.assert_close(kept[name].states_LSD, state[list(LAYERS)][:, chosen], rtol=0, atol=0)


def test_two_halves_merge_into_the_whole_and_memory_does_not_grow(made):
    left, right = reservoir_of(made[:7]), reservoir_of(made[7:])
    left.merge(right.kept)
    assert list(left.kept) == list(reservoir_of(made).kept)
    many = reservoir_of([*made, *examples(60, 5)], (4, False, 0))
    assert len(many.kept) == 12 and not set(many.kept) <= {name for name, _, _ in made}


def brute_pairs(made, layer, name):
    """value[a][b] by loops over the cosines of single tokens."""
    reduce = {
        "median": lambda m: np.median(m),
        "max": lambda m: m.max(),
        "min": lambda m: m.min(),
        "mean": lambda m: m.mean(),
        "maxmean": lambda m: m.max(axis=1).mean(),
    }[name]
    table = {}
    for a, row_a, state_a in made:
        for b, row_b, state_b in made:
            matrix = [
                [cosine(state_a[layer, i].double(), state_b[layer, j].double()) for j in tokens(row_b, "T")]
                for i in tokens(row_a, "P")
            ]
            table[a, b] = float(reduce(np.array(matrix))) if matrix and matrix[0] else math.nan
    return table


@pytest.mark.parametrize("name", list(SCORES))
def test_token_pair_scores_equal_loops_over_single_cosines(made, name):
    few = made[:9]
    kept = Tokens(reservoir_of(few, num=20))
    values = pair_scores(kept.of(2, "P"), kept.of(2, "T"))[name]
    table = brute_pairs(few, 2, name)
    for i, a in enumerate(kept.ids):
        for j, b in enumerate(kept.ids):
            assert float(values[i, j]) == pytest.approx(table[a, b], abs=1e-5, nan_ok=True)
    found = within_and_across(values, kept.ids)
    for kind, chosen in (("matched", lambda a, b: a == b), ("across", lambda a, b: a != b)):
        expected = [value for (a, b), value in table.items() if chosen(a, b) and not math.isnan(value)]
        assert found[kind][0] == pytest.approx(average(expected), abs=1e-5) and found[kind][2] == len(expected)


def test_the_error_of_a_mean_of_pairs_leaves_a_group_out_of_rows_and_columns():
    ids = [f"x{index}" for index in range(12)]
    values = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    values[2, 3] = torch.nan
    _, found, _ = mean_of_pairs(values, ids)
    groups = sorted({group_of(name) for name in ids})
    left = []
    for group in groups:
        keep = [index for index, name in enumerate(ids) if group_of(name) != group]
        left.append(float(values[keep][:, keep].nanmean()))
    expected = math.sqrt((len(left) - 1) / len(left) * sum((v - average(left)) ** 2 for v in left))
    assert found == pytest.approx(expected, rel=1e-5)


def clouds(num=40, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return x, torch.randn(num, dim, generator=generator, dtype=torch.float64)


def rotation(dim, seed=3):
    made = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(made).Q


def test_what_only_turned_moved_and_grew_is_the_same_shape():
    x, noise = clouds()
    y = 3.0 * x @ rotation(6) + 7.0
    assert geometry.cka(x, y) == pytest.approx(1) and geometry.cka_debiased(x, y) == pytest.approx(1)
    assert geometry.procrustes(x, y) == pytest.approx(0, abs=1e-9)
    assert geometry.mutual_neighbours(x - x.mean(0), (x - x.mean(0)) @ rotation(6)) == pytest.approx(1)
    assert geometry.procrustes(x, noise) > 0.5 and geometry.cka(x, noise) < 0.5


def test_cka_equals_centred_gram_matrices_and_debiased_does_not_grow_with_dimensions():
    x, y = clouds()
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
    assert geometry.cka(x, y) == pytest.approx(float(expected), abs=1e-12)
    wide_x, wide_y = clouds(60, 1200)
    assert geometry.cka(wide_x, wide_y) > 0.8 and abs(geometry.cka_debiased(wide_x, wide_y)) < 0.1


def test_the_debiased_estimate_is_the_mean_over_distinct_quadruples():
    import itertools

    x, y = clouds(6, 3)

    def hsic(a, b):
        k, m = a @ a.T, b @ b.T
        terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(a)), 4)]
        return float(torch.stack(terms).mean())

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert geometry.cka_debiased(x + 5, y) == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_equals_the_matrix_square_root_also_with_fewer_points_than_dimensions():
    from scipy.linalg import sqrtm

    for num in (40, 7):
        x, y = clouds(num, 10)[0], 2 * clouds(num + 3, 10, 1)[0] + 1
        cx, cy = (np.cov(side.numpy(), rowvar=False) for side in (x, y))
        root = np.real(sqrtm(cx @ cy + 1e-14 * np.eye(10)))
        expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(cx + cy - 2 * root)
        assert geometry.frechet(x, y) == pytest.approx(expected, rel=1e-4)
    assert geometry.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_mir_divides_by_the_text_norm_and_leaves_outliers_out():
    x, y = clouds(60, 5)
    plain = geometry.mir_layer(x, y)
    assert geometry.mir_layer(10 * x, 10 * y) == pytest.approx(plain)
    outlier = torch.cat([x, 1e3 * torch.ones(1, 5, dtype=torch.float64)])
    assert geometry.mir_layer(outlier, y) == pytest.approx(plain, rel=0.05)


def test_retrieval_shares_a_tie_and_centring_finds_what_a_common_part_hides():
    y = torch.eye(4)
    assert geometry.retrieval(y, y).tolist() == [1, 1, 1, 1]
    tied = torch.cat([y[:1], y[:1], y[2:]])
    assert geometry.retrieval(tied, tied).tolist() == [0.5, 0.5, 1, 1]
    assert geometry.retrieval(y[[1, 0, 3, 2]], y).tolist() == [0, 0, 0, 0]


def last_bits(x, generator, num_bits=1):
    """The same values in the same dtype, each moved by at most `num_bits` units in its last place."""
    step = torch.int32 if x.dtype == torch.float32 else torch.int16
    moved = torch.randint(-num_bits, num_bits + 1, x.shape, generator=generator, dtype=step)
    return (x.view(step) + moved).view(x.dtype)


def retrieved(texts_ESD, variant="raw"):
    """The score at one layer; P is random, one token each."""
    generator = torch.Generator().manual_seed(5)
    num, length, width = texts_ESD.shape
    x = torch.cat([torch.randn(num, 1, width, generator=generator).to(texts_ESD.dtype), texts_ESD], 1)
    roles, names = torch.tensor([[P] + [A] * length]).expand(num, -1), [f"text {index}" for index in range(num)]
    reservoir, scales = Reservoir(num, (0,)), Scales(names)
    for sink in (reservoir, scales):
        sink.begin(roles, names)
        sink.see(0, Site.RESID_POST, x)
        sink.end()
    return retrieval_at(Tokens(reservoir, scales), 0, variant)[0]


def text(generator, dtype, length=3, width=64):
    """States with a common part and two dimensions of massive values."""
    common = torch.randn(width, generator=torch.Generator().manual_seed(6))
    common[:2] = 800.0
    return (common + torch.randn(length, width, generator=generator)).to(dtype)


@pytest.mark.parametrize("variant", ["raw", "scaled", "centred"])
@pytest.mark.parametrize(("dtype", "num_bits"), [(torch.float32, 8), (torch.bfloat16, 1), (torch.float16, 1)])
def test_equal_texts_tie_also_where_their_states_differ_in_the_last_bits(dtype, num_bits, variant):
    generator = torch.Generator().manual_seed(4)
    one, other = text(generator, dtype), text(generator, dtype)
    equal = torch.stack([last_bits(one, generator, num_bits) for _ in range(16)])
    assert retrieved(torch.stack([one] * 16), variant) == pytest.approx(1 / 16)
    assert retrieved(equal, variant) == pytest.approx(1 / 16)
    halves = torch.stack([last_bits((one, other)[index % 2], generator, num_bits) for index in range(16)])
    exact = torch.stack([(one, other)[index % 2] for index in range(16)])
    assert retrieved(halves, variant) == pytest.approx(retrieved(exact, variant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_that_differ_do_not_tie_for_their_massive_dimensions(dtype):
    generator = torch.Generator().manual_seed(4)
    means = torch.stack([text(generator, dtype).float().mean(0) for _ in range(16)])
    assert torch.equal(geometry.same_texts(means, dtype), torch.eye(16, dtype=torch.bool))
    assert geometry.retrieval(means, means, geometry.same_texts(means, dtype)).tolist() == [1.0] * 16


def test_undefined_values_are_nan_with_a_reason(made):
    one = Tokens(reservoir_of(made[1:2]), scales_of(made))
    rows = list(reservoir_rows(one, {"run": "r"}))
    empty = {row.score for row in rows if row.value != row.value}
    assert {"cka_read", "mutual_knn_read", "procrustes_read", "retrieval_read", "medsim_across"} <= empty
    assert all(row.note for row in rows)
    assert all(row.value == row.value for row in rows if (row.score, row.variant) == ("medsim_matched", "raw"))
    none = Tokens(Reservoir(4, LAYERS))
    assert all(row.value != row.value for row in reservoir_rows(none, {"run": "r"}))
    constant = torch.ones(6, 3)
    assert math.isnan(geometry.cka(constant, clouds(6, 3)[0])) and math.isnan(geometry.procrustes(constant, constant))


def test_centred_means_leave_the_example_itself_out(made):
    scales = scales_of(made)
    p, _, ids = Tokens(reservoir_of(made), scales).means(2, "centred")
    by_name = {name: state[2, tokens(row, "P")].double().mean(0) for name, row, state in made if tokens(row, "P")}
    for mean, name in zip(p, ids, strict=True):
        others = [by_name[other] for other in by_name if other in scales.sample_ids and other != name]
        torch.testing.assert_close(mean.double(), by_name[name] - torch.stack(others).mean(0), atol=1e-4, rtol=1e-5)


def test_tsne_is_seeded_and_its_rows_meet_in_points(made):
    kept = Tokens(reservoir_of(made))
    one, two = (list(tsne_rows(kept, (2,), 0, {"run": "r"})) for _ in range(2))
    assert [row.value for row in one] == [row.value for row in two]
    points = {(row.variant, row.n): row.note for row in one if row.score == "tsne_x"}
    assert points == {(row.variant, row.n): row.note for row in one if row.score == "tsne_y"}
    num_means = sum(variant == "mean" for variant, _ in points)
    assert num_means == 2 * len(kept.means(2)[2]) and NUM_LAYERS == 4


@pytest.mark.parametrize("score", [geometry.cka, geometry.cka_debiased, geometry.mutual_neighbours])
def test_the_error_of_a_kernel_score_is_that_of_scoring_the_rest_anew(score: geometry.KernelScore) -> None:
    x, y = (side + 3 for side in clouds(30, 5))
    ids = [f"sample {index}" for index in range(30)]
    groups = torch.tensor([group_of(name) for name in ids])
    left = torch.tensor([score(x[groups != group], y[groups != group]) for group in groups.unique()])
    assert score.with_error(x, y, ids) == pytest.approx((score(x, y), float(jackknife_se(left.double()))), rel=1e-6)
