"""Clips of StampWorld: nothing but the motion tells the motion; purity, controls, questions in balance, reading."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from stamps import draw_stamps

from ima.core.errors import UserError
from ima.core.keyed_random import Draws
from ima.core.media import Clip
from ima.core.types import Sample
from ima.data.stampworld.motions import TILT, Pose, control_order, middle, path
from ima.data.stampworld.video import StampVideo, held
from ima.data.stampworld.video_qa import TYPES, StampVideoQa
from ima.data.stampworld.video_words import ask_direction, ask_whether, sentence
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask
from ima.tasks.metrics.motions import MOTIONS, SAID, STILL, motion_of, phrase, read_motions
from ima.tasks.metrics.vocabulary import load_nouns

SMALL = {"num_train": 60, "num_val": 20, "num_t0": 30, "num_t1": 30, "num_t2": 20}


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, table = draw_stamps(tmp_path_factory.mktemp("stamps"))
    return {"folder": str(folder), "table": str(table)}


@pytest.fixture(scope="module")
def video(stamps: dict[str, str]) -> StampVideo:
    return StampVideo(size=64, **SMALL, **stamps)


@pytest.fixture(scope="module")
def asked(stamps: dict[str, str]) -> StampVideoQa:
    return StampVideoQa(size=64, num_train=300, num_t0=150, num_t1=60, **stamps)


def pixels(source: StampVideo, sample: Sample) -> list[str]:
    return [hashlib.sha256(frame.tobytes()).hexdigest() for frame in source.medium(sample).images]


def largest_gap(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov and Smirnov's statistic of two samples."""
    points = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def test_the_middle_frame_is_distributed_alike_for_every_motion(stamps: dict[str, str]) -> None:
    """Two-sample test of place, size and turn of each motion against all others, at a level of 1e-4 over all."""
    source = StampVideo(size=64, num_train=3000, num_static=1, **stamps)
    by_motion: dict[str, list[tuple[float, ...]]] = {motion: [] for motion in MOTIONS}
    for sample in source.samples("train"):
        first = sample.facts["objects"][0]
        assert first["poses"][4][4], "what the clip is about can be seen in the middle"
        by_motion[first["motion"]].append((*first["poses"][4][:4], first["mirror"], len(sample.facts["objects"])))
    for motion, rows in by_motion.items():
        others = np.array([row for name in MOTIONS if name != motion for row in by_motion[name]], dtype=float)
        these = np.array(rows, dtype=float)
        bound = np.sqrt(-np.log(1e-4 / 60 / 2) / 2 * (1 / len(these) + 1 / len(others)))
        for column in range(these.shape[1]):
            assert largest_gap(these[:, column], others[:, column]) < bound, (motion, column)


def test_first_and_last_frame_do_tell_the_motion(video: StampVideo) -> None:
    """The same statistic sees what there is to see: without it the test above would pass on anything."""
    first = {motion: [] for motion in MOTIONS}
    for sample in StampVideo.samples(video, "train") + StampVideo.samples(video, "T0"):
        item = sample.facts["objects"][0]
        first[item["motion"]].append(item["poses"][0][0] - item["poses"][-1][0])
    assert largest_gap(np.array(first["left"]), np.array(first["right"])) == 1.0


def test_the_pixels_of_the_middle_frame_do_not_depend_on_the_motion(video: StampVideo) -> None:
    sample = next(s for s in video.samples("train") if len(s.facts["objects"]) == 2)
    item = sample.facts["objects"][0]
    seen = []
    for motion in MOTIONS:
        poses = path(Draws("any"), Pose(*item["poses"][4]), motion, 2, 8)
        changed = item | {"motion": motion, "poses": tuple(dataclasses.astuple(one) for one in poses)}
        objects = (changed, *sample.facts["objects"][1:])
        seen.append(pixels(video, dataclasses.replace(sample, facts={**sample.facts, "objects": objects})))
    assert len({frames[4] for frames in seen}) == 1
    assert len({frames[0] for frames in seen}) >= 9 and len({frames[7] for frames in seen}) >= 8


@pytest.mark.parametrize("num_frames", [4, 8, 16])
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_path_does_what_its_motion_says(motion: str, num_frames: int) -> None:
    for index in range(20):
        draws = Draws("path", motion, index)
        pose = middle(draws, (0.5, 0.5), 1)
        poses = path(draws, pose, motion, 1, num_frames)
        first, last = poses[0], poses[-1]
        moved = (np.sign(round(last.x - first.x, 9)), np.sign(round(last.y - first.y, 9)))
        assert poses[num_frames // 2] == pose and len(poses) == num_frames
        assert moved == {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
        assert np.sign(last.edge - first.edge) == {"grows": 1, "shrinks": -1}.get(motion, 0)
        assert (first.visible, last.visible) == {"appears": (False, True), "disappears": (True, False)}.get(
            motion, (True, True)
        )
        assert (abs(last.angle - first.angle) > 60) == (motion == "rotates")
        assert motion == "rotates" or all(abs(one.angle) <= TILT for one in poses)


def test_every_ten_clips_show_every_motion_and_nouns_take_turns(video: StampVideo) -> None:
    clips = video.samples("train")
    for start in range(0, 60, 10):
        assert {clip.facts["motion"] for clip in clips[start : start + 10]} == set(MOTIONS)
    for motion in MOTIONS:
        nouns = [clip.facts["nouns"][0] for clip in clips if clip.facts["motion"] == motion]
        allowed = [noun for noun in video._pool("train") if not held(noun, motion)]
        assert set(nouns[: len(allowed)]) == set(allowed)


def test_held_out_pairs_occur_in_the_test_only(stamps: dict[str, str]) -> None:
    source = StampVideo(size=64, num_train=400, num_t0=400, **stamps)
    num = {split: sum(sample.facts["held_pair"] for sample in source.samples(split)) for split in ("train", "T0")}
    assert any(held(noun, motion) for noun in source._pool("train") for motion in MOTIONS)
    assert num["train"] == 0 < num["T0"]


def test_alone_there_is_one_thing_whose_questions_are_balanced_and_nothing_to_count(stamps: dict[str, str]) -> None:
    source = StampVideoQa(size=64, alone=True, **SMALL, **stamps)
    samples = source.samples("train")
    assert all(len(sample.facts["objects"]) == 1 for sample in samples)
    answers = {kind: Counter(s.references[0] for s in samples if s.facts["type"] == kind) for kind in TYPES}
    assert not answers.pop("count")
    assert len(set(answers["direction"].values())) == len(set(answers["whether"].values())) == 1
    for sample in samples:
        if sample.facts["type"] == "direction":
            assert sample.references == (sample.facts["objects"][0]["motion"],)
    with pytest.raises(UserError, match="types: count"):
        StampVideoQa(types=["count"], alone=True, **stamps)


@pytest.mark.parametrize("kind", [StampVideo, StampVideoQa])
def test_clips_do_not_depend_on_the_order_of_calls(kind: type[StampVideo], stamps: dict[str, str]) -> None:
    one, other = (kind(size=64, **SMALL, **stamps) for _ in range(2))
    for split in one.splits:
        assert one.samples(split) == other.samples(split)
        ids = [sample.id for sample in one.samples(split)]
        assert len(set(ids)) == len(ids)
    chosen = one.samples("train")[:6] + one.samples("T1")[:4]
    assert [pixels(one, s) for s in chosen] == [pixels(other, s) for s in chosen[::-1]][::-1]
    assert one.fingerprint == other.fingerprint


def test_a_clip_is_what_the_interface_says(video: StampVideo) -> None:
    clip = video.medium(video.samples("T0")[0])
    assert isinstance(clip, Clip) and clip.num_frames == 8
    assert all(frame.mode == "RGB" and frame.size == (64, 64) for frame in clip.frames(range(8)))


def test_the_seed_changes_training_only(stamps: dict[str, str]) -> None:
    one, other = (StampVideo(size=64, seed=seed, **SMALL, **stamps) for seed in (0, 1))
    for split in ("val", "T0", "T1", "T2"):
        assert one.samples(split) == other.samples(split)
        assert pixels(one, one.samples(split)[0]) == pixels(other, other.samples(split)[0])
    assert one.samples("train") != other.samples("train")


def test_no_stamp_is_shared_between_training_and_new_stamps(video: StampVideo) -> None:
    clusters = {
        split: {item["cluster"] for sample in video.samples(split) for item in sample.facts["objects"]}
        for split in ("train", "T1", "T2")
    }
    assert all(not clusters[a] & clusters[b] for a, b in combinations(clusters, 2))


def test_single_frame_control_shows_the_middle_frame_only(video: StampVideo) -> None:
    sample = video.samples("T0")[3]
    spoilt = video.control(sample, "single_frame")
    assert pixels(video, spoilt) == [pixels(video, sample)[4]] * 8
    assert spoilt.id != sample.id and spoilt.medium_key != sample.medium_key
    assert (spoilt.references, spoilt.cluster, spoilt.track) == (sample.references, sample.cluster, sample.track)


def test_shuffled_control_shows_all_frames_in_a_wrong_order(video: StampVideo) -> None:
    for sample in video.samples("T0")[:10]:
        straight = pixels(video, sample)
        spoilt = video.control(sample, "shuffled_frames")
        assert Counter(pixels(video, spoilt)) == Counter(straight)
        assert spoilt.facts["order"] not in (tuple(range(8)), tuple(range(7, -1, -1)))
        assert spoilt == video.control(sample, "shuffled_frames")


def test_orders_are_never_the_true_one_nor_its_reverse() -> None:
    orders = {control_order("shuffled_frames", 4, (index,)) for index in range(600)}
    assert len(orders) == 24 - 2 and (0, 1, 2, 3) not in orders and (3, 2, 1, 0) not in orders


def test_an_unknown_control_is_refused(video: StampVideo) -> None:
    with pytest.raises(UserError, match="reversed"):
        video.control(video.samples("T0")[0], "reversed")


def test_questions_of_a_clip_share_its_medium_also_when_it_is_spoilt(asked: StampVideoQa) -> None:
    samples = asked.samples("T0")
    assert len({sample.medium_key for sample in samples}) == 150 < len(samples)
    for name in asked.controls:
        spoilt = [asked.control(sample, name) for sample in samples]
        assert len({sample.medium_key for sample in spoilt}) == 150
        assert len({sample.id for sample in spoilt}) == len(samples)


@pytest.mark.parametrize("split", ["train", "T0", "T1"])
def test_no_answer_of_a_template_is_much_more_frequent_than_the_others(asked: StampVideoQa, split: str) -> None:
    answers: dict[str, Counter[str]] = {}
    for sample in asked.samples(split):
        kind = sample.facts["type"]
        answers.setdefault(kind, Counter())[sample.references[0]] += 1
        if kind == "whether":
            words = sample.question.rstrip("?").split()
            verb = " ".join(words[-2:]) if words[-2] in ("move", "stay") else words[-1]
            answers.setdefault(verb, Counter())[sample.references[0]] += 1
    assert set(TYPES) <= set(answers) and len(answers) == len(TYPES) + len(MOTIONS)
    for name in ("direction", "whether", "count"):
        assert len(set(answers[name].values())) == 1, (name, answers[name])
    for name, counts in answers.items():
        slack = 0.05 if name in TYPES else 0.2  # a verb is asked a dozen times
        assert max(counts.values()) / counts.total() <= 1 / len(counts) + slack, (name, counts)


def test_answers_are_true_and_what_asks_for_one_thing(asked: StampVideoQa) -> None:
    moves = ("left", "right", "up", "down")
    for sample in asked.samples("T0"):
        done = {item["noun"]: item["motion"] for item in sample.facts["objects"]}
        noun, motion = next(iter(done.items()))
        (answer,) = sample.references
        match sample.facts["type"]:
            case "direction":
                assert noun in sample.question and answer == motion
            case "what":
                wanted = moves if motion in moves else (motion,)
                assert [name for name, other in done.items() if other in wanted] == [answer]
            case "whether":
                said = {phrase(name, 0, True) if name == motion else phrase(name, 0, True): name for name in MOTIONS}
                verb = next(text for text in said if sample.question.endswith(f" {text}?"))
                assert answer == ("yes" if said[verb] == motion else "no")
            case "count":
                num = sum(other in moves for other in done.values())
                assert answer == ("none", "one", "two")[num]


def test_only_the_asked_types_are_asked(stamps: dict[str, str]) -> None:
    source = StampVideoQa(size=64, types=["direction"], **SMALL, **stamps)
    assert {sample.facts["type"] for sample in source.samples("T0")} == {"direction"}
    for types, words in (([], "empty"), (["colour"], "colour")):
        with pytest.raises(UserError, match=words):
            StampVideoQa(types=types, **stamps)


@pytest.mark.parametrize("option", [{"num_train": 0}, {"num_movers": 3}, {"num_frames": 2}, {"size": 8}])
def test_what_cannot_be_is_refused_with_its_key(option: dict[str, int], stamps: dict[str, str]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        StampVideo(**option, **stamps)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("motion", MOTIONS)
def test_what_is_said_is_read_again(motion: str, variant: int) -> None:
    nouns = load_nouns("stamps")
    other = next(name for name in MOTIONS if name not in (motion, STILL))
    text = sentence([(nouns["cow"], motion), (nouns["fly"], other), (nouns["scissors"], STILL)], variant)
    assert motion_of(text, "cow") == motion
    assert motion_of(text, "fly") == other
    assert motion_of(text, "scissors") == STILL
    for many in (False, True):
        assert [said.motion for said in read_motions(f"they {phrase(motion, variant, many)}")] == [motion]


@pytest.mark.parametrize(
    ("text", "motion"),
    [
        ("a cow moving slowly to the left", "left"),
        ("the cow is spinning", "rotates"),
        ("the cow turns left", "left"),
        ("a cow on the left", None),
        ("a cow vanished", "disappears"),
        ("the cow slides right and then a pig grows", "right"),
        ("a cow stands still", STILL),
        ("", None),
    ],
)
def test_free_wordings_are_read(text: str, motion: str | None) -> None:
    assert motion_of(text, "cow") == motion


def test_questions_are_english() -> None:
    nouns = load_nouns("stamps")
    assert ask_direction(nouns["cow"]) == "Which way does the cow move?"
    assert ask_direction(nouns["scissors"]) == "Which way do the scissors move?"
    assert ask_whether(nouns["moon"], "left") == "Does the moon move left?"
    assert ask_whether(nouns["scissors"], STILL) == "Do the scissors stay still?"
    assert len({text for said in SAID.values() for text in said}) == 30


def test_captions_are_scored_for_the_motion_and_have_no_places(video: StampVideo) -> None:
    samples = video.samples("T0")
    task = CaptionTask(prompt="In this video")
    right = {m.name: m.value for m in task.score([Prediction(s, s.references[0]) for s in samples], [])}
    assert right["motion_accuracy"] == right["noun_accuracy"] == 1.0
    assert "position_f1" not in right
    wrong = [Prediction(s, f"{s.facts['nouns'][0]} moves left") for s in samples]
    assert {m.name: m.value for m in task.score(wrong, [])}["motion_accuracy"] == pytest.approx(0.1)
    assert [row["motion_right"] for row in task.per_example(wrong)].count(True) == 3
