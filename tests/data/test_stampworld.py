"""StampWorld on stamps that the test draws, and the shipped table: determinism, leakage, ground truth, mistakes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stamps import draw_stamps

from ima.core.errors import UserError
from ima.core.keyed_random import Draws
from ima.data.source import Source
from ima.data.stampworld.catalog import Catalog, as_phrase, read_table
from ima.data.stampworld.render import KINDS, MIN_CONTRAST, RANGES, Placed, background, compose, contrast_of
from ima.data.stampworld.scenery import themes
from ima.data.stampworld.scenes import StampScenes
from ima.data.stampworld.single import StampSingle
from ima.data.stampworld.words import SINGLE, scene_references
from ima.tasks.metrics.judge import judge
from ima.tasks.metrics.vocabulary import Noun, load_nouns


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, table = draw_stamps(tmp_path_factory.mktemp("stamps"))
    return {"folder": str(folder), "table": str(table)}


@pytest.fixture(scope="module")
def single(stamps: dict[str, str]) -> StampSingle:
    return StampSingle(size=96, views=3, **stamps)


@pytest.fixture(scope="module")
def scenes(stamps: dict[str, str]) -> StampScenes:
    return StampScenes(size=128, num_train=60, num_val=20, num_t0=40, num_t1=40, num_t2=20, **stamps)


def pixels(source: Source, sample) -> str:
    return hashlib.sha256(source.medium(sample).tobytes()).hexdigest()


def everything(source: Source) -> list:
    return [sample for split in source.splits for sample in source.samples(split)]


@pytest.mark.parametrize("kind", ["single", "scenes"])
def test_pixels_do_not_depend_on_the_order_of_calls(kind: str, stamps: dict[str, str]) -> None:
    make = {"single": lambda: StampSingle(size=64, **stamps), "scenes": lambda: StampScenes(size=96, **stamps)}[kind]
    one, other = make(), make()
    chosen = one.samples("train")[:12] + one.samples("T1")[:6]
    forward = [pixels(one, sample) for sample in chosen]
    backward = [pixels(other, sample) for sample in reversed(chosen)][::-1]
    assert forward == backward
    assert len(set(forward)) == len(forward)
    assert one.fingerprint == other.fingerprint


def test_pixels_are_the_same_in_a_fresh_process(single: StampSingle, stamps: dict[str, str]) -> None:
    code = (
        "import sys, hashlib; from ima.data.stampworld.single import StampSingle;"
        "s = StampSingle(size=96, views=3, folder=sys.argv[1], table=sys.argv[2]);"
        "print(*(hashlib.sha256(s.medium(x).tobytes()).hexdigest() for x in s.samples('T0')[:5]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, stamps["folder"], stamps["table"]],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.split() == [pixels(single, sample) for sample in single.samples("T0")[:5]]


def test_the_seed_changes_training_pictures_only(stamps: dict[str, str]) -> None:
    one, other = StampSingle(size=64, seed=0, **stamps), StampSingle(size=64, seed=1, **stamps)
    for split, same in (("train", False), ("T0", True), ("T1", True), ("val", True)):
        first, second = one.samples(split)[0], other.samples(split)[0]
        assert (pixels(one, first) == pixels(other, second)) is same, split
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("change", [{"size": 80}, {"seed": 3}])
def test_fingerprint_follows_what_changes_pixels(change: dict, stamps: dict[str, str]) -> None:
    assert StampSingle(**stamps).fingerprint != StampSingle(**stamps, **change).fingerprint


def test_nothing_leaks_from_training_into_a_test_track(single: StampSingle, scenes: StampScenes) -> None:
    for source in (single, scenes):
        ids = [sample.id for sample in everything(source)]
        assert len(ids) == len(set(ids))
        train = source.samples("train")
        seen = {pixels(source, sample) for sample in train}
        shown = {clusters for sample in train for clusters in clusters_of(sample)}
        for track in ("T0", "T1", "T2"):
            tested = source.samples(track)
            assert tested
            assert not seen & {pixels(source, sample) for sample in tested[:20]}
            if track != "T0":
                assert not shown & {cluster for sample in tested for cluster in clusters_of(sample)}
    layouts = {layout(sample) for sample in scenes.samples("train")}
    assert not layouts & {layout(sample) for track in ("T0", "T1", "T2") for sample in scenes.samples(track)}


def clusters_of(sample) -> set[str]:
    return {item["cluster"] for item in sample.facts.get("objects", [])} or {sample.cluster}


def layout(sample) -> tuple:
    return tuple((item["stamp"], item["boxes"]) for item in sample.facts["objects"])


def test_held_out_pairs_and_cells_are_never_trained_but_tested(scenes: StampScenes) -> None:
    assert not any(s.facts["held_pair"] or s.facts["held_cell"] for s in scenes.samples("train"))
    assert any(s.facts["held_cell"] for s in scenes.samples("T0"))


def test_tracks_have_the_sizes_that_were_asked_for(single: StampSingle, scenes: StampScenes) -> None:
    assert [len(single.samples(split)) for split in ("train", "T0", "T1", "T2")] == [18 * 3, 18 * 2, 6 * 4, 2 * 4]
    assert {s.track for s in single.samples("val")} <= {"V0", "V1"}
    assert [len(scenes.samples(s)) for s in scenes.splits] == [60, 20, 40, 40, 20]


def test_limit_keeps_a_view_of_every_stamp_before_a_second_one(stamps: dict[str, str]) -> None:
    samples = StampSingle(size=64, limit=18, **stamps).samples("train")
    assert len({sample.facts["stamp"] for sample in samples}) == 18


def test_boxes_agree_with_pixels(scenes: StampScenes) -> None:
    """Render each object alone, on nothing: what is visible is what the ground truth says, to 2 pixels."""
    for sample in scenes.samples("T0")[:20]:
        picture = np.asarray(scenes.medium(sample), dtype=int)
        for item in sample.facts["objects"]:
            assert item["num"] == len(item["boxes"])
            stamp = scenes.scenery.stamps[item["stamp"]]
            colour = np.asarray(scenes.catalog.picture(stamp))[10, 10, :3].astype(int)
            for left, top, right, bottom in item["boxes"]:
                assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128
                inner = picture[top + 2 : bottom - 2, left + 2 : right - 2]
                assert np.median(np.abs(inner - colour)) <= 2


def test_references_say_the_truth_and_nothing_else(single: StampSingle, scenes: StampScenes) -> None:
    for source in (single, scenes):
        for sample in everything(source):
            assert len(sample.references) == len(sample.facts["kinds"]) >= 5
            for reference in sample.references:
                judged = judge(sample.facts, reference)
                assert judged is not None and judged.right, (reference, judged)


def test_training_and_test_share_at_most_two_patterns() -> None:
    assert len(set(SINGLE["train"]) & set(SINGLE["test"])) <= 2
    objects = [(Noun("cow", "animal"), 2, "left"), (Noun("owl", "animal"), 1, "top")]
    train, test = scene_references(objects, "plain", "train"), scene_references(objects, "plain", "test")
    assert train[0] == test[0] == "two cows on the left and an owl at the top"
    assert len(set(train) & set(test)) == 2


def test_human_captions_are_marked(single: StampSingle) -> None:
    sample = single.samples("train")[0]
    assert sample.facts["kinds"][-1] == "human"
    assert sample.references[-1] == f"a brown {sample.facts['noun']}"


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("A brown hen.", "a brown hen"),
        ("A peacock (a male peafowl).", "a peacock"),
        ("A “Fuji” apple.", "a Fuji apple"),
        ("Boom!!!", ""),
        ("A computer mouse. Squeak!", ""),
        ("Mercury—the planet closest to the Sun.", ""),
    ],
)
def test_only_describing_captions_become_references(line: str, phrase: str) -> None:
    assert as_phrase(line) == phrase


def test_a_stamp_that_would_vanish_gets_another_background() -> None:
    white = Placed(Image.new("RGBA", (30, 30), (255, 255, 255, 255)), 10, 10)
    for index in range(40):
        picture = np.asarray(compose(Draws("t", index), 64, "test", [white]))
        assert contrast_of(picture, white) == 0  # the stamp itself stands there
        ground = picture.copy()
        ground[10:40, 10:40] = picture[45:, 45:].mean((0, 1))
        assert contrast_of(ground, white) >= MIN_CONTRAST / 2


def test_background_parameters_of_training_and_test_are_disjoint() -> None:
    train, test = RANGES["train"], RANGES["test"]
    assert train.hue != test.hue
    for name in ("horizon", "period", "grid"):
        assert max(getattr(train, name)) < min(getattr(test, name))


def test_every_kind_of_background_fills_the_picture() -> None:
    for kind in KINDS:
        ground = background(Draws(kind), 48, "train", kind)
        assert ground.shape == (48, 48, 3) and ground.dtype == np.uint8
        assert bool(ground.std(axis=(0, 1)).max() > 1) == (kind != "plain")


def test_the_shipped_table_is_consistent() -> None:
    table = read_table()
    splits: dict[str, set[str]] = {}
    for stamp in table:
        splits.setdefault(stamp.cluster, set()).add(stamp.split)
    assert all(len(found) == 1 for found in splits.values())
    nouns = {split: {s.noun for s in table if s.split == split} for split in ("train", "V1", "V2", "T1", "T2")}
    assert nouns["T1"] <= nouns["train"] and nouns["V1"] <= nouns["train"]
    assert not (nouns["T2"] | nouns["V2"]) & nouns["train"]
    assert len({stamp.key for stamp in table}) == len(table) == 660
    assert {stamp.noun for stamp in table} == set(load_nouns("stamps"))
    assert {noun for row in themes().values() for noun in row} <= set(load_nouns("stamps"))


def test_the_demo_is_large_enough_for_its_claim() -> None:
    catalog = Catalog(folder="unused")
    demo = catalog.select("demo")
    train = [s for s in catalog.stamps if s.noun in demo and s.split == "train"]
    new = [s for s in catalog.stamps if s.noun in demo and s.split == "T1"]
    assert len(demo) >= 30 and 2 * len(train) >= 200 and 4 * len(new) >= 40
    assert len({s.cluster for s in train}) >= 60


def test_mistakes_are_one_line(tmp_path: Path, stamps: dict[str, str]) -> None:
    for call in (
        lambda: StampSingle(nouns="cwo", **stamps),
        lambda: StampSingle(nouns=["cow", "unicorn"], **stamps),
        lambda: StampSingle(nouns=[], **stamps),
        lambda: StampSingle(views=0, **stamps),
        lambda: StampSingle(**stamps).samples("test"),
        lambda: StampScenes(num_t0=0, **stamps),
        lambda: StampSingle(table=str(tmp_path / "none.tsv")),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    folder, table = draw_stamps(tmp_path)
    path = folder / "animals" / "cow0.png"
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:40] if damage == "truncated" else data[:-1] + b"x")
    source = StampSingle(size=64, folder=str(folder), table=str(table))
    sample = next(s for s in source.samples("train") if s.facts["stamp"] == "animals/cow0")
    with pytest.raises(UserError, match="cow0.png"):
        source.medium(sample)


def test_both_are_sources(single: StampSingle, scenes: StampScenes) -> None:
    assert isinstance(single, Source) and isinstance(scenes, Source)
