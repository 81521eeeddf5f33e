"""Questions and probes on stamps that the test draws: complements, balance, determinism, leakage, mistakes."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from stamps import draw_stamps

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.catalog import Catalog
from ima.data.stampworld.pairs import COUNTS, MOVES
from ima.data.stampworld.pope import TYPES, StampPope
from ima.data.stampworld.scenery import Scenery, held_cell, held_pair
from ima.data.stampworld.scenes import StampScenes
from ima.data.stampworld.vqa import StampVqa
from ima.data.stampworld.words import exists, is_are, the
from ima.tasks.metrics.vocabulary import load_nouns


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, table = draw_stamps(tmp_path_factory.mktemp("stamps"))
    return {"folder": str(folder), "table": str(table)}


@pytest.fixture(scope="module")
def vqa(stamps: dict[str, str]) -> StampVqa:
    return StampVqa(size=128, num_train=260, num_val=52, num_t0=130, num_t1=130, num_t2=40, **stamps)


NUM_COUNTED = 300


@pytest.fixture(autouse=True, scope="module")
def _few_scenes_are_counted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ima.data.stampworld.pope.NUM_COUNTED", NUM_COUNTED)
        yield


@pytest.fixture(scope="module")
def pope(stamps: dict[str, str]) -> StampPope:
    return StampPope(size=128, num_val=10, num_t0=30, num_t1=30, num_present=2, **stamps)


def digest(source: Source, sample: Sample) -> str:
    return hashlib.sha256(source.medium(sample).tobytes()).hexdigest()


def everything(source: Source) -> list[Sample]:
    return [sample for split in source.splits for sample in source.samples(split)]


def pairs_of(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    pairs: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        pairs[sample.facts["pair"]].append(sample)
    return pairs


def test_every_question_has_two_pictures_and_two_answers(vqa: StampVqa) -> None:
    for split in vqa.splits:
        for first, second in pairs_of(vqa.samples(split)).values():
            assert first.question == second.question and first.facts["type"] == second.facts["type"]
            assert first.references != second.references and first.medium_id != second.medium_id
            assert {*first.references, *second.references} <= set(first.facts["answers"])
            assert first.cluster == second.cluster


def test_answers_are_true_of_the_scene(vqa: StampVqa) -> None:
    """Recomputed from the objects alone, by the words of the question."""
    checked: Counter[str] = Counter()
    for sample in everything(vqa):
        if (expected := answer_of(vqa.scenery, sample)) is not None:
            assert sample.references == (expected,), (sample.question, sample.facts["objects"])
            checked[sample.facts["type"]] += 1
    assert all(checked[kind] > 20 for kind in ("yes/no", "object", "number", "category", "position")), checked


def answer_of(scenery: Scenery, sample: Sample) -> str | None:
    nouns, words = scenery.catalog.nouns, sample.question.rstrip("?").lower()
    objects = sample.facts["objects"]
    place = next((p for p in ("left", "right", "top", "bottom", "middle") if words.endswith(f"the {p}")), None)
    here = [item for item in objects if item["place"] == place]

    def named(item: dict, text: str) -> bool:
        called = {nouns[item["noun"]].name, nouns[item["noun"]].plural, item["category"]}
        called |= {f"piece of {item['category']}"}
        return any(f" {name} " in f" {text} " for name in called)

    if words.startswith("what is"):
        return here[0]["noun"]
    if words.startswith("what kind"):
        return here[0]["category"]
    if words.startswith("how many things"):
        return str(sum(item["num"] for item in here))
    if words.startswith("how many"):
        return str(sum(item["num"] for item in objects if named(item, words)))
    if words.startswith("where"):
        return next(item["place"] for item in objects if named(item, words))
    if words.endswith("in the picture"):
        return "yes" if any(named(item, words) for item in objects) else "no"
    if words.startswith("are there more"):
        more, less = words.removeprefix("are there more").split(" than ")
        nums = [sum(item["num"] for item in objects if named(item, text)) for text in (more, less)]
        return "yes" if nums[0] > nums[1] else "no"
    if place is not None:
        return "yes" if any(named(item, words) for item in here) else "no"
    return None


def test_pictures_of_a_pair_differ_only_where_the_edit_is(vqa: StampVqa) -> None:
    seen: set[str] = set()
    for split, which in itertools.product(("train", "T0", "T2"), range(0, 24)):
        first, second = list(pairs_of(vqa.samples(split)).values())[which]
        pictures = [np.asarray(vqa.medium(sample), dtype=int) for sample in (first, second)]
        things = [
            {(o["stamp"], box) for o in sample.facts["objects"] for box in o["boxes"]} for sample in (first, second)
        ]
        edited = np.zeros(pictures[0].shape[:2], dtype=bool)
        for _, (left, top, right, bottom) in things[0] ^ things[1]:
            edited[top:bottom, left:right] = True
        changed = (pictures[0] != pictures[1]).any(-1)
        assert changed.any() and not (changed & ~edited).any(), first.id
        assert first.facts["ground"] == second.facts["ground"]
        seen.add(first.facts["edit"])
    assert seen == {"noun", "kind", "move", "count"}


def test_no_answer_of_a_pattern_is_much_more_frequent_than_another(vqa: StampVqa) -> None:
    for split in ("train", "T0", "T1", "T2"):
        samples = vqa.samples(split)
        for template, type_ in {(s.facts["template"], s.facts["type"]) for s in samples}:
            answers = Counter(s.references[0] for s in samples if s.facts["template"] == template)
            if type_ == "yes/no":
                assert answers["yes"] == answers["no"]
            elif answers.total() >= 100:
                assert max(answers.values()) / answers.total() <= 1 / len(answers) + 0.05, (split, template, answers)


def test_edits_take_turns_so_that_every_answer_is_as_frequent_as_any_other() -> None:
    assert Counter(a for a, _ in MOVES) == Counter(b for _, b in MOVES) and len(set(MOVES)) == 20
    assert set(Counter(itertools.chain(*COUNTS)).values()) == {2}


def test_unknown_nouns_are_asked_for_by_category_place_and_number_only(vqa: StampVqa) -> None:
    unknown = set(vqa.scenery.pool("T2"))
    samples = vqa.samples("T2")
    assert samples and not any(noun in sample.question for sample in samples for noun in unknown)
    assert all(sample.facts["type"] != "object" for sample in samples)


@pytest.mark.parametrize("name", ["vqa", "pope"])
def test_samples_and_pixels_do_not_depend_on_the_order_of_calls(name: str, stamps: dict[str, str]) -> None:
    make = {
        "vqa": lambda: StampVqa(size=96, num_train=20, num_t1=13, **stamps),
        "pope": lambda: StampPope(size=96, num_t0=5, num_t1=5, num_present=1, **stamps),
    }[name]
    one, other = make(), make()
    split = one.splits[0]
    forward = [(s, digest(one, s)) for s in (*one.samples(split)[:9], *one.samples("T1")[:9])]
    backward = [(s, digest(other, s)) for s in (*other.samples("T1")[:9][::-1], *other.samples(split)[:9][::-1])][::-1]
    assert forward == backward
    assert one.fingerprint == other.fingerprint


def test_fewer_pairs_are_the_beginning_of_more(stamps: dict[str, str]) -> None:
    few, many = (StampVqa(size=96, num_t0=num, **stamps).samples("T0") for num in (9, 30))
    assert few == many[: len(few)]


def test_samples_with_one_medium_key_show_one_picture(vqa: StampVqa, pope: StampPope) -> None:
    for source in (vqa, pope):
        by_key: dict[str, list[Sample]] = defaultdict(list)
        for sample in source.samples("T0"):
            by_key[sample.medium_key].append(sample)
        shared = [group for group in by_key.values() if len(group) > 1]
        assert shared
        for group in shared[:5]:
            assert len({digest(source, sample) for sample in group}) == 1


def test_the_seed_changes_training_pictures_only(stamps: dict[str, str]) -> None:
    one, other = (StampVqa(size=96, num_train=5, num_val=4, num_t0=5, seed=seed, **stamps) for seed in (0, 1))
    assert one.samples("train") != other.samples("train")
    assert one.samples("T0") == other.samples("T0") and one.samples("val") == other.samples("val")
    assert digest(one, one.samples("T0")[0]) == digest(other, other.samples("T0")[0])


def test_held_out_pairs_and_cells_are_never_trained(vqa: StampVqa) -> None:
    for sample in vqa.samples("train"):
        nouns = sample.facts["nouns"]
        assert not any(held_pair(a, b) for i, a in enumerate(nouns) for b in nouns[:i])
        for item in sample.facts["objects"]:
            assert not held_cell(vqa.scenery.stamps[item["stamp"]], item["place"])


def test_types_can_be_chosen_and_nothing_else_is_asked(stamps: dict[str, str]) -> None:
    source = StampVqa(types=["object", "position"], size=96, num_train=30, **stamps)
    assert {sample.facts["type"] for sample in source.samples("train")} == {"object", "position"}
    only = StampVqa(types="yes/no", size=96, num_train=30, **stamps).samples("train")
    assert {sample.facts["type"] for sample in only} == {"yes/no"}


def test_probes_are_half_present_in_each_type_and_true(pope: StampPope) -> None:
    for split in pope.splits:
        samples = pope.samples(split)
        num = Counter((s.facts["type"], s.facts["present"]) for s in samples)
        assert len(set(num.values())) == 1 and {kind for kind, _ in num} == set(TYPES)
        for sample in samples:
            there = sample.facts["noun"] in sample.facts["nouns"]
            assert sample.facts["present"] is there and sample.references == ("yes" if there else "no",)
            assert sample.question == exists(pope.catalog.nouns[sample.facts["noun"]])


def test_probes_of_absent_nouns_are_the_most_popular_and_the_closest_companions(
    pope: StampPope, stamps: dict[str, str]
) -> None:
    scenes = [set(s.facts["nouns"]) for s in StampScenes(num_train=NUM_COUNTED, **stamps).samples("train")]
    every = list(pope.scenery.pool("T0"))
    single = {noun: sum(noun in scene for scene in scenes) for noun in every}
    share = {(a, b): sum({a, b} <= scene for scene in scenes) / single[a] for a in every for b in every}
    asked: dict[tuple[str, str], list[str]] = defaultdict(list)
    there: dict[str, tuple[str, ...]] = {}
    for sample in pope.samples("T0"):
        there[sample.medium_id] = sample.facts["nouns"]
        if not sample.facts["present"]:
            asked[sample.medium_id, sample.facts["type"]].append(sample.facts["noun"])
    checked = 0
    for (picture, kind), chosen in asked.items():
        left = [noun for noun in every if noun not in chosen and noun not in there[picture]]
        if not left or kind == "random":
            continue
        close = {noun: sum(share[other, noun] for other in there[picture]) for noun in every}
        worth = single if kind == "popular" else close
        assert min(worth[noun] for noun in chosen) >= max(worth[noun] for noun in left) - 1e-9
        checked += 1
    assert checked > 10


def test_another_word_for_what_is_there_is_never_an_absent_noun() -> None:
    scenery = Scenery(Catalog(folder="unused"), frozenset(load_nouns("stamps")))
    for noun, other in (("mug", "cup"), ("chick", "chicken"), ("hen", "chicken"), ("penguin", "bird"), ("cow", "cow")):
        if {noun, other} <= set(load_nouns("stamps")):
            assert scenery.confused(noun, other) and scenery.confused(other, noun)
    assert not scenery.confused("cow", "pig")


def test_questions_are_english() -> None:
    nouns = load_nouns("stamps")
    assert exists(nouns["owl"]) == "Is there an owl in the picture?"
    assert exists(nouns["scissors"]) == "Are there some scissors in the picture?"
    assert exists(nouns["bread"]) == "Is there some bread in the picture?"
    assert exists(nouns["moon"]) == "Is the moon in the picture?"
    assert [the(nouns["cow"]), the(nouns["cow"], 2), the(nouns["scissors"])] == ["the cow", "the cows", "the scissors"]
    assert [is_are(nouns["cow"]), is_are(nouns["cow"], 3), is_are(nouns["scissors"])] == ["is", "are", "are"]


def test_mistakes_are_one_line(stamps: dict[str, str], tmp_path: Path) -> None:
    for call in (
        lambda: StampVqa(types="colour", **stamps),
        lambda: StampVqa(types=[], **stamps),
        lambda: StampVqa(max_kinds=5, **stamps),
        lambda: StampVqa(max_kinds=1, **stamps),
        lambda: StampVqa(num_t0=0, **stamps),
        lambda: StampVqa(**stamps).samples("test"),
        lambda: StampPope(num_present=4, **stamps),
        lambda: StampPope(num_present=3, max_kinds=2, **stamps),
        lambda: StampPope(nouns=["cow"], num_present=1, num_t0=1, **stamps).samples("T0"),
        lambda: StampPope(**stamps).samples("train"),
        lambda: StampScenes(max_kinds=0, **stamps),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)


def test_no_picture_is_empty(vqa: StampVqa) -> None:
    """But where a track has a single category, as T2 has here: there nothing else may stand beside it."""
    assert all(s.facts["objects"] for split in ("train", "val", "T0", "T1") for s in vqa.samples(split))


def test_a_single_noun_can_still_be_moved_and_counted(stamps: dict[str, str]) -> None:
    samples = StampVqa(nouns=["cow"], size=96, num_train=12, **stamps).samples("train")
    assert {sample.facts["edit"] for sample in samples} == {"move", "count"}
