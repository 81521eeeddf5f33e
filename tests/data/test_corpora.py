"""Readers of the published corpora on miniatures in the official formats: splits, texts, weights, media, purity."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import corpora_files
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.media import Clip, Frames, Sound, spaced
from ima.core.types import MEDIUM, Sample
from ima.data.corpora.controls import Spoilt
from ima.data.corpora.questions import soft_weights
from ima.data.source import Source
from ima.data.stampworld.video import StampVideo
from ima.tasks.base import Prediction
from ima.tasks.qa import QaTask

CHOICES = sorted(corpora_files.CORPORA)
SPLITS = {"nocaps": ("val", "in-domain", "near-domain", "out-domain")} | dict.fromkeys(
    ("vqav2", "okvqa", "aokvqa", "textvqa"), ("train", "val")
)
QUESTIONS = [name for name in CHOICES if "qa" in name]
TEN_ANSWERS = ("vqav2", "vqav2_karpathy", "okvqa", "aokvqa", "textvqa")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Corpus -> its miniature."""
    out = {}
    for name, write in corpora_files.CORPORA.items():
        out[name] = tmp_path_factory.mktemp(name)
        write(out[name])
    return out


@functools.cache
def config_of(name: str, *overrides: str) -> Any:
    return OmegaConf.to_container(compose([f"data={name}", "data.folder=somewhere", *overrides])["data"])


def source_of(name: str, folder: Path, *overrides: str) -> Any:
    config = config_of(name, *overrides)
    return instantiate(config | ({"folder": str(folder)} if config["folder"] == "somewhere" else {}))


@pytest.mark.parametrize("name", CHOICES)
def test_a_corpus_has_its_published_splits_and_every_sample_a_medium_and_a_text(
    name: str, folders: dict[str, Path]
) -> None:
    source: Source = source_of(name, folders[name])
    assert source.splits == SPLITS.get(name, ("train", "val", "test"))
    ids = []
    for split in source.splits:
        for sample in source.samples(split):
            ids.append(sample.id)
            assert sample.split == sample.track == split and sample.modality == source.modality
            assert all(sample.references) and bool(sample.question) == (name in QUESTIONS)
            assert sample.cluster and sample.medium_id.startswith(sample.facts["file"])
            assert not sample.weights or len(sample.weights) == len(sample.references)
            medium = source.medium(sample)
            assert isinstance(medium, {"image": Image.Image, "audio": Sound, "video": Clip}[source.modality])
    assert len(set(ids)) == len(ids) > 1


@pytest.mark.parametrize("name", CHOICES)
def test_a_reader_is_a_function_of_its_files(name: str, folders: dict[str, Path]) -> None:
    one, two = source_of(name, folders[name]), source_of(name, folders[name])
    again = pickle.loads(pickle.dumps(one))
    for split in reversed(one.splits):
        assert one.samples(split) == two.samples(split) == again.samples(split)
    assert one.fingerprint == two.fingerprint == again.fingerprint


@pytest.mark.parametrize("name", CHOICES)
def test_no_medium_is_opened_to_list_the_samples(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("ima.data.decode.opened", refuse)
    source = source_of(name, folders[name])
    assert all(source.samples(split) for split in source.splits)


@pytest.mark.parametrize("name", TEN_ANSWERS)
def test_ten_answers_are_drawn_by_their_soft_scores(name: str, folders: dict[str, Path]) -> None:
    first, second = source_of(name, folders[name]).samples("train")
    assert first.references == tuple(corpora_files.TEN)
    total = {text: sum(w for t, w in zip(first.references, first.weights, strict=True) if t == text)
             for text in first.references}  # fmt: skip
    assert total == pytest.approx({"red": 1.0, "dark red": 1.0, "pink": 1 / 3})
    assert (first.cluster, first.medium_id) == (second.cluster, second.medium_id)  # two questions about one picture


def test_the_answer_shown_is_that_of_most_annotators_however_often_it_is_repeated() -> None:
    answers = ("red",) * 9 + ("pink",)
    sample = Sample("a", "val", "val", "image", answers, "Which?", weights=soft_weights(answers))
    (row,) = QaTask().per_example([Prediction(sample, "pink")])
    assert row["answer"] == "red"


def test_labels_stand_in_where_the_official_annotations_are_not_there(folders: dict[str, Path]) -> None:
    source = source_of("vqav2_karpathy", folders["vqav2_karpathy"], "data.splits.train.official=null")
    sample = source.samples("train")[0]
    assert (sample.references, sample.weights) == (("red", "dark red", "pink"), (1.0, 0.9, 0.3))


def test_coco_trains_on_restval_too_and_on_single_captions_if_asked(folders: dict[str, Path]) -> None:
    source = source_of("coco", folders["coco"])
    files = [sample.facts["file"] for sample in source.samples("train")]
    assert files == ["train2014/COCO_train2014_000000000000.jpg", "val2014/COCO_val2014_000000000001.jpg"]
    assert source.samples("test")[0].references[0] == "A cow number 3."
    single = source_of("coco", folders["coco"], "data.per_caption=true")
    texts = [sample.references for sample in single.samples("train")]
    assert texts == [(text,) for sample in source.samples("train") for text in sample.references]
    assert [s.medium_id for s in single.samples("train")[:3]] == [source.samples("train")[0].medium_id] * 3
    assert single.samples("test") == source.samples("test")


def test_the_domains_of_nocaps_are_tracks_of_their_own(folders: dict[str, Path]) -> None:
    source = source_of("nocaps", folders["nocaps"])
    assert [len(source.samples(split)) for split in source.splits] == [4, 1, 1, 2]


def test_facts_of_the_annotations_come_along(folders: dict[str, Path]) -> None:
    def first(name: str, *overrides: str) -> Any:
        return source_of(name, folders[name], *overrides).samples("train")[0].facts

    aokvqa = first("aokvqa")
    assert aokvqa["choices"][aokvqa["choice"]] == "red" and len(aokvqa["rationales"]) == 3
    assert first("gqa")["type"] == "verifyAttr" and first("vqav2")["type"] == "what colour"
    assert "ocr" not in first("textvqa")
    assert first("textvqa", "data.splits.train.ocr=TextVQA_Rosetta_OCR_v0.2_train.json")["ocr"] == ("red", "brand")


def test_textvqa_shows_the_words_of_its_pictures_in_llavas_prompt_or_leaves_them_out(folders: dict[str, Path]) -> None:
    """The official files, the official accuracy: six of ten annotators said it, nine of ten another form."""

    def prepared(name: str, task: str) -> tuple[Sample, QaTask]:
        nodes = compose([f"data={name}", f"task={task}", "data.folder=somewhere"])
        (sample, *_) = instantiate(nodes["data"], folder=str(folders["textvqa"])).samples("val")
        return sample, instantiate(nodes["task"])

    sample, task = prepared("textvqa_ocr", "ocr_qa")
    asked = "what is the brand?\nReference OCR token: red, brand\nAnswer the question using a single word or phrase."
    assert task.prompt_for(sample) == asked
    assert task.turns_for(sample, 0)[0] == ("user", f"{MEDIUM}\n{asked}")
    without, plain = prepared("textvqa", "short_qa")
    assert plain.prompt_for(without) == asked.replace("Reference OCR token: red, brand\n", "")
    assert (without.references, without.medium_key) == (sample.references, sample.medium_key)
    for said, right in (("Red", 1.0), ("dark red", 0.9), ("pink", 0.3), ("blue", 0.0)):
        (metric, *_) = task.score([Prediction(sample, task.clean(said))], [])
        assert metric.name == "accuracy" and metric.value == pytest.approx(right)
    with pytest.raises(UserError, match="has no {ocr}; .*data=textvqa_ocr"):
        task.prompt_for(without)


def test_popes_files_are_probes_of_three_kinds(tmp_path: Path) -> None:
    corpora_files.pope(tmp_path)
    nodes = compose(["data=pope", "task=probe", f"data.folder={tmp_path}"])
    source, task = instantiate(nodes["data"]), instantiate(nodes["task"])
    samples = source.samples("test")
    assert [(sample.facts["type"], sample.references) for sample in samples] == [
        (kind, (label,)) for kind in ("random", "popular", "adversarial") for label in ("yes", "no")
    ]
    assert len({sample.id for sample in samples}) == 6 and len({sample.medium_key for sample in samples}) == 1
    found = {metric.name: metric.value for metric in task.score([Prediction(s, "Yes") for s in samples], [])}
    assert found["f1"] == pytest.approx(2 / 3) and found["yes_ratio"] == 1 and "f1_adversarial" in found
    path = tmp_path / "coco_pope_popular.json"
    path.write_text(path.read_text().replace('"no"', '"perhaps"'))
    with pytest.raises(UserError, match="coco_pope_popular.json:2: key 'label' is 'perhaps', must be yes or no"):
        instantiate(nodes["data"]).samples("test")


def test_words_of_a_picture_are_never_read_as_places_of_the_prompt() -> None:
    sample = Sample("s", "val", "val", "image", ("x",), "what is {ocr}?", facts={"ocr": ("{question}", "a")})
    task = QaTask(prompt="{question} Words: {ocr}.")
    assert task.prompt_for(sample) == "what is {ocr}? Words: {question}, a."
    assert QaTask().prompt_for(sample) == "Question: what is {ocr}? Answer:"


def test_annotators_of_one_question_are_one_sample(folders: dict[str, Path]) -> None:
    source = source_of("clotho_aqa", folders["clotho_aqa"])
    assert [sample.references for sample in source.samples("train")] == [
        ("yes", "yes", "no"),
        ("birds", "bird", "birds"),
    ]
    only = source_of("clotho_aqa", folders["clotho_aqa"], "data.yes_no=true").samples("train")
    assert only == source.samples("train")[:1]


@pytest.mark.parametrize("name", ("audiocaps", "clotho"))
def test_a_sound_is_the_mean_of_its_channels_at_its_own_rate(name: str, folders: dict[str, Path]) -> None:
    source = source_of(name, folders[name])
    sound = source.medium(source.samples("val")[0])
    assert sound.rate == (44100 if name == "clotho" else 16000) and sound.seconds == pytest.approx(0.1)
    assert sound.wave.dtype == np.float32 and np.allclose(sound.wave, corpora_files.shade(1) / 256 / 2)


@pytest.mark.parametrize("name", ("msrvtt", "msvd_qa", "msrvtt_qa"))
def test_frames_of_a_clip_are_those_of_the_file(name: str, folders: dict[str, Path]) -> None:
    source = source_of(name, folders[name])
    sample = source.samples("test")[0]
    clip = source.medium(sample)
    number = 9 if name == "msrvtt" else 3
    frames = clip.frames(spaced(clip.num_frames, 4))
    found = [np.asarray(frame).mean() for frame in frames]
    wanted = [corpora_files.shade(number) + 4 * index for index in spaced(12, 4)]
    assert (clip.num_frames, clip.fps) == (12, 10.0) and np.abs(np.array(found) - wanted).max() < 4


def test_pictures_are_those_of_the_file(folders: dict[str, Path]) -> None:
    source = source_of("gqa", folders["gqa"])
    image = source.medium(source.samples("test")[0])
    assert image.size == (24, 16) and abs(float(np.asarray(image).mean()) - corpora_files.shade(2)) < 2


def test_limit_keeps_the_first_training_samples_only(folders: dict[str, Path]) -> None:
    whole, few = source_of("vqav2", folders["vqav2"]), source_of("vqav2", folders["vqav2"], "data.limit=1")
    assert few.samples("train") == whole.samples("train")[:1] and few.samples("val") == whole.samples("val")


def test_clusters_are_media_or_what_a_file_says(folders: dict[str, Path]) -> None:
    folder = folders["gqa"]
    corpora_files.to_json(folder / "clusters.json", {"images/n0.jpg": "photographer 7"})
    source = source_of("gqa", folder, "data.clusters=clusters.json")
    assert source.samples("train")[0].cluster == "photographer 7"
    assert source.samples("val")[0].cluster == "images/n1.jpg"


def test_other_media_folders_and_several_candidates(folders: dict[str, Path], tmp_path: Path) -> None:
    corpora_files.jpg(tmp_path / "all" / "n0.png", 0)
    options = ["data.splits.train.media=['images/{imageId}.jpg','all/{imageId}.png']", f"data.media={tmp_path}"]
    sample = source_of("gqa", folders["gqa"], *options).samples("train")[0]
    assert sample.facts["file"] == "all/n0.png"


def test_another_medium_of_another_size_is_another_medium(tmp_path: Path) -> None:
    corpora_files.gqa(tmp_path)
    before = source_of("gqa", tmp_path)
    ids = [sample.medium_id for sample in before.samples("train")]
    Image.new("RGB", (99, 99)).save(tmp_path / "images" / "n0.jpg")
    after = source_of("gqa", tmp_path)
    assert after.fingerprint == before.fingerprint
    assert all(a.medium_id != b for a, b in zip(after.samples("train"), ids, strict=True))
    assert after.samples("val") == before.samples("val")


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7, 8, 40])
def test_spoilt_clips_show_one_frame_or_the_same_frames_in_another_order(num_frames: int) -> None:
    clip = Frames(tuple(Image.new("RGB", (2, 2), (index,) * 3) for index in range(num_frames)))

    def shown(name: str) -> list[int]:
        spoilt = Spoilt(clip, name, "key")
        chosen = spaced(spoilt.num_frames, 8) if num_frames >= 8 else range(num_frames)
        return [int(np.asarray(frame)[0, 0, 0]) for frame in spoilt.frames(list(chosen))]

    assert set(shown("single_frame")) == {num_frames // 2}
    straight = spaced(num_frames, 8) if num_frames >= 8 else list(range(num_frames))
    if num_frames >= 3:
        assert sorted(shown("shuffled_frames")) == straight
        assert shown("shuffled_frames") not in (straight, straight[::-1])


def test_corpora_of_clips_have_the_controls_of_stampworlds(folders: dict[str, Path]) -> None:
    source = source_of("msrvtt", folders["msrvtt"])
    assert source.controls == StampVideo.controls and source_of("coco", folders["coco"]).controls == ()
    sample = source.samples("test")[0]
    clips = [source.medium(spoilt) for spoilt in (sample, *(source.control(sample, name) for name in source.controls))]
    straight, single, shuffled = ([np.asarray(frame) for frame in clip.frames(range(12))] for clip in clips)
    assert all(np.array_equal(frame, straight[6]) for frame in single)
    assert not np.array_equal(shuffled, straight)
    keys = {source.control(sample, name).medium_key for name in source.controls} | {sample.medium_key}
    assert len(keys) == 3 and source.control(sample, "single_frame").references == sample.references
