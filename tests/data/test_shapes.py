"""The procedural fall-back keeps the promises of a source."""

from __future__ import annotations

import hashlib

import numpy as np

from ima.data.shapes import COLOURS, Shapes, pairs_of
from ima.data.source import Source
from ima.tasks.metrics.judge import judge
from ima.tasks.metrics.vocabulary import load_nouns


def test_it_is_a_source_and_says_what_it_is() -> None:
    assert isinstance(Shapes(), Source)
    assert "procedural" in Shapes().name


def test_same_pixels_in_any_order_and_new_ones_in_every_track() -> None:
    source = Shapes(num_train=30, num_test=20, size=64)
    samples = [sample for split in source.splits for sample in source.samples(split)]
    digest = [hashlib.sha256(source.medium(sample).tobytes()).hexdigest() for sample in samples]
    again = [hashlib.sha256(Shapes(size=64).medium(sample).tobytes()).hexdigest() for sample in reversed(samples)]
    assert digest == again[::-1]
    assert len(set(digest)) == len(digest) == len({sample.id for sample in samples})


def test_new_pairs_are_never_trained_and_all_parts_are() -> None:
    train, new, tuned = pairs_of("train"), pairs_of("T1"), pairs_of("V1")
    assert not set(train) & (set(new) | set(tuned)) and not set(new) & set(tuned)
    assert len(train) + len(new) + len(tuned) == 96
    assert {noun for noun, _ in train} == set(load_nouns("shapes"))
    assert {colour for _, colour in train} == set(COLOURS)
    clusters = {sample.cluster for sample in Shapes(num_train=150).samples("train")}
    assert not clusters & {sample.cluster for sample in Shapes(num_test=60).samples("T1")}


def test_references_are_true_and_the_box_holds_the_colour() -> None:
    source = Shapes(num_train=24, num_test=24, size=128)
    for split in source.splits:
        for sample in source.samples(split):
            for reference in sample.references:
                judged = judge(sample.facts, reference)
                assert judged is not None and judged.right
                slots = judged.slots["position"]
                assert slots[0] == slots[1]
            left, top, right, bottom = sample.facts["objects"][0]["boxes"][0]
            inside = np.asarray(source.medium(sample), dtype=int)[top:bottom, left:right]
            near = np.abs(inside - COLOURS[sample.facts["colour"]]).max(-1) < 12
            assert near.mean() > 0.15, sample.id
