"""Probes equal ridge regressions written out fold by fold, find what is planted, and leave clusters whole."""

import numpy as np
import pytest
import torch

from ima.alignment.probes import permuted, probed, selectivity, targets, usable
from ima.alignment.ridge import NUM_FOLDS, NUM_INNER, PENALTIES, folds_of, out_of_fold


def made(num=48, width=7, strength=1.0, seed=0, classes=4):
    """(x, labels, clusters): each cluster has two views and one class; the class is a direction of x."""
    generator = torch.Generator().manual_seed(seed)
    labels = [f"n{index // 2 % classes}" for index in range(num)]
    clusters = [f"c{index // 2}" for index in range(num)]
    centres = torch.randn(classes, width, generator=generator)
    x = torch.stack([strength * centres[int(label[1:])] for label in labels])
    x = x + torch.randn(num, width, generator=generator)
    x[:, 2] = 3.0  # does not vary
    return x, labels, clusters


def brute(x, y, clusters, folds):
    """Normal equations in numpy: penalties by inner folds, one regression for each penalty, fold and inner fold."""
    x, y, folds = x.double().numpy(), y.double().numpy(), np.array(folds)
    out, penalties = np.zeros_like(y), []
    for fold in sorted(set(folds)):
        train, test = folds != fold, folds == fold
        mean, sd = x[train].mean(0), x[train].std(0)
        keep = sd > 1e-9
        z = (x[:, keep] - mean[keep]) / sd[keep]
        middle, num = y[train].mean(0), train.sum()

        def solved(rows, penalty, z=z, middle=middle, num=num):
            gram = z[rows].T @ z[rows] + penalty * num * np.eye(z.shape[1])
            return np.linalg.solve(gram, z[rows].T @ (y[rows] - middle))

        places = np.flatnonzero(train)
        inner = np.array(folds_of([clusters[i] for i in places], NUM_INNER, what="inner"))
        errors = []
        for penalty in PENALTIES:
            error = 0.0
            for part in set(inner):
                weights = solved(places[inner != part], penalty)
                error += ((z[places[inner == part]] @ weights - (y[places[inner == part]] - middle)) ** 2).sum()
            errors.append(error)
        penalties.append(PENALTIES[int(np.argmin(errors))])
        out[test] = z[test] @ solved(places, penalties[-1]) + middle
    return out, penalties


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_predictions_equal_regressions_that_are_made_anew_for_every_penalty_and_inner_fold(strength):
    x, labels, clusters = made(strength=strength)
    folds = folds_of(clusters, NUM_FOLDS, labels)
    found, _ = out_of_fold(x, targets(labels), clusters, folds)
    wanted, penalties = brute(x, targets(labels), clusters, folds)
    assert np.allclose(found.numpy(), wanted, atol=1e-9)
    assert len(set(penalties)) >= 1 and (strength > 0 or max(penalties) >= 1.0)


def test_further_targets_are_predicted_with_the_penalties_of_the_first():
    x, labels, clusters = made()
    folds = folds_of(clusters, NUM_FOLDS, labels)
    y = targets(labels)
    _, rest = out_of_fold(x, y, clusters, folds, torch.cat([y, 2 * y - 1], dim=1))
    found, _ = out_of_fold(x, y, clusters, folds)
    assert torch.allclose(rest[:, :4], found) and torch.allclose(rest[:, 4:], 2 * found - 1)


def test_clusters_are_never_on_both_sides_and_every_class_is_trained_on():
    _, labels, clusters = made(num=20, classes=5)
    folds = folds_of(clusters, NUM_FOLDS, labels)
    of_cluster = {}
    for cluster, fold in zip(clusters, folds, strict=True):
        assert of_cluster.setdefault(cluster, fold) == fold
    for label in set(labels):
        mine = {fold for fold, other in zip(folds, labels, strict=True) if other == label}
        assert len(mine) == 2  # two clusters a class: each is trained on without the other


def test_what_is_planted_is_found_far_above_the_null_and_nothing_else_is():
    rows = {}
    for name, strength in (("planted", 3.0), ("nothing", 0.0)):
        x, labels, clusters = made(num=120, strength=strength, seed=3)
        rows[name] = {row.score: row for row in probed("noun", x, labels, clusters, {"run": "r"})}
    planted, nothing = rows["planted"], rows["nothing"]
    assert planted["probe_noun"].value > 0.9 and abs(planted["probe_noun_null"].value - 0.25) < 0.1
    assert abs(nothing["probe_noun"].value - nothing["probe_noun_null"].value) < 3 * nothing["probe_noun_null"].se


def test_permuted_labels_stay_whole_by_cluster_and_classes_keep_their_size():
    _, labels, clusters = made()
    given = permuted(labels, clusters, 5)
    assert sorted(given) == sorted(labels) and given != labels
    assert all(a == b for a, b, c, d in zip(given, given[1:], clusters, clusters[1:], strict=False) if c == d)


def test_selectivity_is_high_where_the_class_is_a_direction_and_low_where_only_the_cluster_is_known():
    x, labels, clusters = made(num=96, strength=4.0, width=6)
    generator = torch.Generator().manual_seed(1)
    names = torch.randn(48, 200, generator=generator).repeat_interleave(2, dim=0)  # each cluster has a place of its own
    by_heart = names + 0.1 * torch.randn(96, 200, generator=generator)
    assert selectivity(x.double(), labels, clusters) > 0.4
    assert abs(selectivity(by_heart.double(), labels, clusters)) < 0.1


def test_classes_of_one_cluster_and_examples_without_a_state_take_no_part():
    x, labels, clusters = made(num=24)
    labels[0] = labels[1] = "alone"
    x[5] = torch.nan
    kept = usable(x, labels, clusters)
    assert not {0, 1, 5} & set(kept) and len(kept) == 21
