"""Clips from the real package: no track shares a stamp, a seed or a layout with training; what moves can be seen."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ima.core.types import Sample
from ima.data.stampworld.video import StampVideo
from ima.data.stampworld.video_qa import StampVideoQa

pytestmark = [pytest.mark.real, pytest.mark.stamps]


def layouts(samples: list[Sample]) -> set[tuple[str, tuple[float, ...]]]:
    """What is said, of whom, and where everything stands in the middle."""
    return {
        (
            sample.references[0],
            *(round(number, 3) for item in sample.facts["objects"] for number in item["poses"][4][:4]),
        )
        for sample in samples
    }


@pytest.mark.parametrize("kind", [StampVideo, StampVideoQa])
@pytest.mark.parametrize("nouns", ["demo", "all"])
def test_no_stamp_noun_or_layout_leaks_from_training_to_the_tests(kind: type[StampVideo], nouns: str) -> None:
    source = kind(nouns=nouns)
    drawn = {split: source.samples(split) for split in source.splits}  # seconds each time
    objects = {split: [item for sample in drawn[split] for item in sample.facts["objects"]] for split in drawn}
    clusters = {split: {item["cluster"] for item in objects[split]} for split in ("train", "T1", "T2")}
    assert all(not clusters[a] & clusters[b] for a, b in combinations(clusters, 2))
    digests = {split: {source._stamps[item["stamp"]].digest for item in objects[split]} for split in clusters}
    assert all(not digests[a] & digests[b] for a, b in combinations(digests, 2))
    if nouns == "demo":  # of all nouns, eight hundred clips miss a few
        assert {item["noun"] for item in objects["T0"]} <= {item["noun"] for item in objects["train"]}
    assert not {item["noun"] for item in objects["T2"]} & {item["noun"] for item in objects["train"]}
    found = {split: layouts(samples) for split, samples in drawn.items()}
    assert all(not found[a] & found[b] for a, b in combinations(found, 2))
    assert not {s.medium_key for s in drawn["train"]} & {s.medium_key for s in drawn["T0"]}
    assert len({sample.cluster for sample in drawn["T0"]}) >= 60


def test_whatever_acts_changes_the_picture_and_what_stands_still_does_not() -> None:
    source = StampVideo(num_t0=40, num_movers=1, num_static=0)
    for sample in source.samples("T0"):
        frames = [np.asarray(frame, dtype=int) for frame in source.medium(sample).images]
        change = float((np.abs(frames[0] - frames[-1]).max(-1) > 8).mean())
        assert (change > 0.005) == (sample.facts["motion"] != "still"), (sample.id, change)
        assert float((np.abs(frames[4] - frames[4][0, 0]).max(-1) > 8).mean()) > 0.01
