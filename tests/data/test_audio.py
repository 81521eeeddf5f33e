"""StampWorld's sounds on recordings made here: mixtures are the sum of their parts and say what they hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sounds import SECOND, UNKNOWN, VERBS, make_sounds

from ima.core.assets.registry import UserError
from ima.core.types import Sample
from ima.data.stampworld.audio import StampAudio, held_pair
from ima.data.stampworld.audio_qa import StampAudioQa, root
from ima.data.stampworld.mixing import SECONDS
from ima.data.stampworld.sounds import LEVEL, RATE, SoundCatalog, active_rms, read_sounds, say_once
from ima.pipeline.predictions import still
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask
from ima.tasks.metrics.judge import judge
from ima.tasks.metrics.nouns import reader
from ima.tasks.metrics.vocabulary import load_nouns

NUMS: dict[str, Any] = {"num_train": 60, "num_val": 20, "num_t0": 60, "num_t1": 30, "num_t2": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    folders, table = make_sounds(tmp_path_factory.mktemp("sounds"))
    return folders, str(table)


@pytest.fixture(scope="module")
def source(made: tuple[dict[str, str], str]) -> StampAudio:
    return StampAudio(**NUMS, folders=made[0], table=made[1])


@pytest.fixture(scope="module")
def questions(made: tuple[dict[str, str], str]) -> StampAudioQa:
    return StampAudioQa(**NUMS, folders=made[0], table=made[1])


def some(source: StampAudio, kind: str, num: int = 8) -> list[Sample]:
    return [sample for sample in source.samples("train") if sample.facts["kind"] == kind][:num]


def sounding(layer: np.ndarray) -> tuple[int, int]:
    """First and last sample that is not silence."""
    places = np.flatnonzero(layer)
    return int(places[0]), int(places[-1])


@pytest.mark.parametrize("kind", ["single", "together", "sequence"])
def test_a_medium_is_the_sum_of_one_layer_a_recording_and_noise(source: StampAudio, kind: str) -> None:
    for sample in some(source, kind):
        layers, sound = source.layers(sample), source.medium(sample)
        assert len(layers) == (2 if kind == "single" else 3)
        np.testing.assert_allclose(sound.wave, sum(layers), atol=1e-6)
        assert sound.rate == RATE and sound.wave.shape == (round(SECONDS * RATE),) and sound.wave.dtype == np.float32
        assert 0.02 < np.abs(sound.wave).max() <= 1
        for layer in layers[:-1]:
            assert active_rms(layer) > 8 * np.sqrt(np.mean(layers[-1] ** 2)), "the noise is as loud as what is heard"


def test_every_recording_is_recovered_from_its_place_in_a_mixture(source: StampAudio) -> None:
    """Each layer is its recording and no other one: matched filters find it, by far, among all."""
    waves = {r.noun: source.catalog.wave(r)[: RATE // 4] for r in source.catalog.recordings if r.split == "train"}
    for sample in some(source, "together") + some(source, "sequence"):
        for noun, layer in zip(sample.facts["nouns"], source.layers(sample), strict=False):
            start, _ = sounding(layer)
            heard = layer[start + 500 : start + 5000]
            found = {name: np.abs(np.correlate(wave, heard, "valid")).max() for name, wave in waves.items()}
            assert max(found, key=lambda name: found[name]) == noun


def test_a_sequence_is_in_order_and_sounds_together_overlap(source: StampAudio) -> None:
    for sample in some(source, "sequence"):
        first, second = (sounding(layer) for layer in source.layers(sample)[:2])
        assert first[1] < second[0] and sample.facts["order"] == sample.facts["nouns"]
    for sample in some(source, "together"):
        a, b = (sounding(layer) for layer in source.layers(sample)[:2])
        shared = min(a[1], b[1]) - max(a[0], b[0])
        assert shared >= 0.45 * min(a[1] - a[0], b[1] - b[0]) and "order" not in sample.facts


def test_recordings_come_at_one_level_and_rate(source: StampAudio) -> None:
    for recording in source.catalog.recordings:
        wave = source.catalog.wave(recording)
        assert active_rms(wave) == pytest.approx(LEVEL, rel=0.01)
        assert abs(wave.mean()) < 1e-3


def test_the_same_arguments_give_the_same_sounds_in_any_order_of_calls(made: Any, source: StampAudio) -> None:
    again = StampAudio(**NUMS, folders=made[0], table=made[1])
    samples = source.samples("T0")[:4]
    assert again.samples("T0")[:4] == samples and again.fingerprint == source.fingerprint
    waves = [again.medium(sample).wave for sample in samples[::-1]][::-1]
    for sample, wave in zip(samples, waves, strict=True):
        np.testing.assert_array_equal(wave, source.medium(sample).wave)


def test_the_seed_changes_training_and_nothing_else(made: Any, source: StampAudio) -> None:
    other = StampAudio(**NUMS, seed=1, folders=made[0], table=made[1])
    assert other.samples("train") != source.samples("train") and other.fingerprint != source.fingerprint
    for split in ("val", "T0", "T1", "T2"):
        assert other.samples(split) == source.samples(split)


def test_t0_pairs_are_never_trained_on(source: StampAudio) -> None:
    pairs = {split: {frozenset(s.facts["nouns"]) for s in source.samples(split) if len(s.facts["nouns"]) > 1}
             for split in ("train", "T0", "val")}  # fmt: skip
    assert pairs["train"] and pairs["T0"] and not pairs["train"] & (pairs["T0"] | pairs["val"])
    assert all(held_pair(*pair) for pair in pairs["T0"]) and not any(held_pair(*pair) for pair in pairs["train"])


def test_tracks_share_no_recording_and_no_cluster_but_t0_with_training(source: StampAudio) -> None:
    used = {split: {key for s in source.samples(split) for key in s.facts["recordings"]} for split in source.splits}
    clusters = {split: {s.cluster for s in source.samples(split)} for split in source.splits}
    for split, nouns in (("T1", set(SECOND)), ("T2", set(UNKNOWN))):
        assert not used[split] & used["train"] and not clusters[split] & clusters["train"]
        assert {noun for s in source.samples(split) for noun in s.facts["nouns"]} == nouns
    assert used["T0"] <= used["train"]


def test_references_name_what_is_heard_and_nothing_else_in_its_order(source: StampAudio) -> None:
    for split in source.splits:
        for sample in source.samples(split):
            assert len(set(sample.references)) == len(sample.references) >= 4
            for text in sample.references:
                judged = judge(sample.facts, text)
                assert judged is not None and judged.right and judged.category_right, text
            first = judge(sample.facts, sample.references[0])
            assert first is not None and first.order_right in (None, True)


def test_every_phrase_of_the_table_is_read_as_its_noun_alone() -> None:
    nouns, read = load_nouns("sounds"), reader("sounds")
    for recording in read_sounds():
        mentions = read.mentions(f"{nouns[recording.noun].single} {recording.verb}")
        assert [recording.noun in mention.nouns for mention in mentions] == [True], recording


def test_order_is_judged_by_noun_and_for_unknown_nouns_by_category() -> None:
    facts = {"nouns": ("cow", "owl"), "order": ("cow", "owl"), "category": ("mammal", "bird"), "vocabulary": "sounds"}
    said = {"first a cow moos, then an owl hoots": (True, True), "first an owl hoots, then a cow moos": (False, False),
            "a cow moos": (False, False), "first a dog barks, then a hen clucks": (False, True),
            "first a dog barks, then a cow moos": (False, False)}  # fmt: skip
    for text, expected in said.items():
        judged = judge(facts, text)
        assert judged is not None and (judged.order_right, judged.category_order_right) == expected, text
    alike = judge(facts | {"nouns": ("cow", "dog"), "order": ("cow", "dog"), "category": "mammal"}, "a cow moos")
    assert alike is not None and alike.category_order_right is None


def test_captions_of_unknown_nouns_are_scored_by_category_and_order(source: StampAudio) -> None:
    predictions = [Prediction(sample, sample.references[0]) for sample in source.samples("T2")]
    metrics = {metric.name: metric for metric in CaptionTask().score(predictions, [])}
    assert metrics["category_accuracy"].value == 1 and metrics["category_order_accuracy"].value == 1
    assert "noun_accuracy" not in metrics and "order_accuracy" not in metrics
    known = [Prediction(sample, sample.references[0]) for sample in source.samples("T0")]
    metrics = {metric.name: metric for metric in CaptionTask().score(known, [])}
    assert metrics["order_accuracy"].value == 1
    assert metrics["order_accuracy"].n == sum(p.sample.facts["kind"] == "sequence" for p in known)


def test_the_shuffled_control_keeps_what_is_heard_and_its_cluster(source: StampAudio) -> None:
    sample = some(source, "sequence")[0]
    spoilt = source.control(sample, "shuffled")
    assert spoilt.id != sample.id and spoilt.medium_key != sample.medium_key
    assert (spoilt.cluster, spoilt.references) == (sample.cluster, sample.references)
    one, other = source.medium(sample).wave, source.medium(spoilt).wave
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(np.sort(one), np.sort(other))
    with pytest.raises(UserError, match="no control"):
        source.control(sample, "mute")


def test_without_second_recordings_t1_is_empty_and_one_line_says_so(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMA_SCRATCH", str(tmp_path / "nowhere"))
    say_once.cache_clear()
    sources = [StampAudio(**NUMS, folders={"stamps": made[0]["stamps"]}, table=made[1]) for _ in range(2)]
    assert sources[0].samples("T1") == [] and len(sources[0].samples("T0")) == NUMS["num_t0"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "T1 is empty" in lines[0] and "IMA_SCRATCH" in lines[0]


def test_without_second_recordings_the_other_tracks_are_the_same(made: Any, source: StampAudio, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("IMA_SCRATCH", str(tmp_path / "nowhere"))
    other = StampAudio(**NUMS, folders={"stamps": made[0]["stamps"]}, table=made[1])
    for split in ("train", "val", "T0", "T2"):
        assert other.samples(split) == source.samples(split)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("gone", "No such file"), ("cut", "sha256"), ("silent", "silence"), ("text", "not a readable sound")],
)
def test_a_bad_recording_is_one_line_with_its_file(tmp_path: Path, damage: str, words: str) -> None:
    import hashlib

    import soundfile

    folders, table = make_sounds(tmp_path)
    path = Path(folders["stamps"]) / "animals/cow0.wav"
    before = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        if damage == "silent":
            soundfile.write(path, np.zeros(800, dtype=np.float32), 8000)
        else:
            path.write_text("not a sound")
        table.write_text(table.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()[:16]))
    catalog = SoundCatalog(folders, table)
    recording = next(r for r in catalog.recordings if r.noun == "cow")
    with pytest.raises(UserError, match=words) as error:
        catalog.wave(recording)
    assert "cow0.wav" in str(error.value) and "\n" not in str(error.value)


def test_bad_arguments_and_tables_are_one_line(made: Any, tmp_path: Path) -> None:
    for arguments, words in ((({"num_t0": 0}), "num_t0"), ({"num_val": 0}, "num_val"), ({"nouns": "cwo"}, "cow"),
                             ({"nouns": []}, "empty")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            StampAudio(**(NUMS | arguments), folders=made[0], table=made[1])
    bad = tmp_path / "bad.tsv"
    bad.write_text(Path(made[1]).read_text().replace("\tT2\t", "\tT9\t", 1))
    with pytest.raises(UserError, match="T9"):
        SoundCatalog(made[0], bad)
    with pytest.raises(UserError, match="No such file"):
        SoundCatalog(made[0], tmp_path / "none.tsv")


def test_a_still_of_a_sound_shows_something(source: StampAudio) -> None:
    shade = np.asarray(still(source.medium(some(source, "single")[0])))
    assert shade.min() < 60 and shade.max() == 255


# -- questions -------------------------------------------------------------------------------------------------------


def truth(sample: Sample) -> str | None:
    """The answer from the facts alone; None where the question is about one of several nouns."""
    facts, nouns = sample.facts, sample.facts["nouns"]
    of = load_nouns("sounds")
    kind = facts["type"]
    if kind == "presence":
        asked = sample.question.removeprefix("Is ").removesuffix(" heard?")
        return "yes" if asked in {of[noun].single for noun in nouns} else "no"
    if kind == "before":
        a, b = sample.question.removeprefix("Is the ").removesuffix("?").split(" heard before the ")
        assert {a, b} == set(nouns)
        return "yes" if nouns[0] == a else "no"
    if kind == "other":
        return next(noun for noun in nouns if not sample.question.endswith(f" the {noun}?"))
    return {
        "number": "one" if len(nouns) == 1 else "two",
        "relation": "together" if facts["kind"] == "together" else "in turn",
        "which": nouns[0], "first": nouns[0], "last": nouns[-1],
        "category": of[nouns[0]].category, "first_category": of[nouns[0]].category,
    }[kind]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "T0", "T1", "T2"])
def test_every_answer_is_true(questions: StampAudioQa, split: str) -> None:
    samples = questions.samples(split)
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        assert sample.references == (truth(sample),), sample
    known = {"category", "first_category", "number", "relation"}
    assert {s.facts["type"] for s in samples} <= known if split == "T2" else {s.facts["type"] for s in samples} > known


@pytest.mark.parametrize("split", ["train", "T0", "T1"])
def test_every_yes_has_its_no_and_every_order_its_exchanged_twin(questions: StampAudioQa, split: str) -> None:
    pairs: dict[str, list[Sample]] = {}
    for sample in questions.samples(split):
        if "pair" in sample.facts:
            pairs.setdefault(sample.facts["pair"], []).append(sample)
        assert ("pair" in sample.facts) == (sample.facts["type"] in ("presence", "before", "first", "last",
                                                                     "first_category"))  # fmt: skip
    for pair in pairs.values():
        one, other = pair
        assert one.question == other.question and one.references != other.references
        assert one.medium_id != other.medium_id
        if one.facts["type"] != "presence":
            assert one.facts["recordings"] == other.facts["recordings"][::-1]


@pytest.mark.parametrize("split", ["train", "T0", "T1", "T2"])
def test_number_and_relation_are_balanced(questions: StampAudioQa, split: str) -> None:
    for kind in ("number", "relation"):
        answers = Counter(s.references[0] for s in questions.samples(split) if s.facts["type"] == kind)
        assert len(answers) == 2 and len(set(answers.values())) == 1


def test_an_exchanged_twin_has_the_same_recordings_and_noise_in_the_other_order(questions: StampAudioQa) -> None:
    pairs: dict[str, list[Sample]] = {}
    for sample in questions.samples("T0"):
        if sample.facts["type"] == "before":
            pairs.setdefault(sample.facts["pair"], []).append(sample)
    one, other = next(iter(pairs.values()))
    a, b = questions.sounds.layers(one), questions.sounds.layers(other)
    np.testing.assert_allclose(a[-1] / np.abs(a[-1]).max(), b[-1] / np.abs(b[-1]).max(), atol=1e-6)
    assert sounding(a[0])[1] < sounding(a[1])[0] and sounding(b[0])[1] < sounding(b[1])[0]


def test_questions_about_one_sound_share_its_medium(questions: StampAudioQa) -> None:
    media: dict[str, set[tuple[str, ...]]] = {}
    samples = questions.samples("T0")
    for sample in samples:
        media.setdefault(sample.medium_id, set()).add(sample.facts["recordings"])
    assert all(len(recordings) == 1 for recordings in media.values()) and len(media) < len(samples) / 2
    same = [s for s in samples if s.medium_id == samples[0].medium_id][:2]
    np.testing.assert_array_equal(questions.medium(same[0]).wave, questions.medium(same[-1]).wave)


def test_alone_one_recording_sounds_and_nothing_is_asked_of_two(made: Any) -> None:
    alone = StampAudioQa(**NUMS, folders=made[0], table=made[1], alone=True)
    samples = [sample for split in alone.splits for sample in alone.samples(split)]
    assert {s.facts["type"] for s in samples} == {"category", "which", "presence"}
    assert all(len(s.facts["recordings"]) == 1 and s.references == (truth(s),) for s in samples)
    assert alone.fingerprint != StampAudioQa(**NUMS, folders=made[0], table=made[1]).fingerprint


def test_chosen_types_are_those_questions_of_all(made: Any, questions: StampAudioQa) -> None:
    some = StampAudioQa(**NUMS, folders=made[0], table=made[1], types=["which", "before"])
    assert some.samples("T0") == [s for s in questions.samples("T0") if s.facts["type"] in ("which", "before")]
    for arguments, words in (({"types": "wich"}, "which"), ({"types": []}, "empty"),
                             ({"types": ["first"], "alone": True}, "asks of two")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            StampAudioQa(**NUMS, folders=made[0], table=made[1], **arguments)


def test_questions_of_tracks_share_no_sound(questions: StampAudioQa) -> None:
    media = {split: {s.medium_id for s in questions.samples(split)} for split in questions.splits}
    assert sum(map(len, media.values())) == len(set().union(*media.values()))
    assert root(questions.sounds.mixes("T0")[0]) == questions.sounds.mixes("T0")[0].id
    assert set(VERBS) >= {noun for s in questions.samples("train") for noun in s.facts["nouns"]}
