"""Malformed corpora: each gives one clear line that names the file or the key, none passes unseen."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora_files
import numpy as np
import pytest
import soundfile
from PIL import Image
from test_corpora import source_of

from ima.core.errors import UserError
from ima.data.corpora.reading import read_table

COCO, GQA = "dataset_coco.json", "train_balanced_questions.json"
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change what a JSON file holds; a value returned replaces it."""

    def break_it(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        replaced = change(value)
        (folder / name).write_text(json.dumps(value if replaced is None else replaced))

    return break_it


def put(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data) and None


def swap(name: str, old: str, new: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return break_it


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def folder_instead(name: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return break_it


def cut(name: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        Image.effect_noise((64, 64), 90).convert("RGB").save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return break_it


def link_outside(name: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        outside = folder.parent / "outside.jpg"
        corpora_files.jpg(outside, 0)
        (folder / name).unlink()
        (folder / name).symlink_to(outside)

    return break_it


def rate_of(rate: int, name: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[24:28] = struct.pack("<I", rate)
        (folder / name).write_bytes(data)

    return break_it


def sound(name: str, wave: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: soundfile.write(folder / name, wave, 16000, subtype="FLOAT")


def first(records: str, **changes: Any) -> Callable[[Any], None]:
    """Change keys of the first object of a list; ... takes a key away."""

    def change(value: Any) -> None:
        record = (value[records] if records else value)[0]
        for key, new in changes.items():
            record.pop(key)
            if new is not ...:
                record[key] = new

    return change


# what is wrong: (corpus, what breaks it, what the message must say, more of the command line)
FAULTS: dict[str, tuple[Any, ...]] = {
    "the folder is not there": ("coco", lambda folder: None, "folder: ", "data.folder=/nowhere"),
    "the folder is a file": ("coco", put("f", "x"), "is a file, must be the folder", "data.folder={}/f"),
    "the annotation file is missing": ("coco", remove(COCO), f"splits.train.annotations: .*{COCO} is not there"),
    "the annotation file is a folder": ("coco", folder_instead(COCO), f"{COCO} is a folder, must be a file"),
    "the annotation file is empty": ("coco", put(COCO, ""), f"{COCO}: empty file"),
    "not JSON": ("coco", put(COCO, '{"images": [\n  {"split" "train"}]}'), rf"{COCO}:2:12: not JSON \(Expecting ':'"),
    "JSON cut off": ("coco", put(COCO, '{"images": ['), rf"{COCO}:1:\d+: not JSON"),
    "not UTF-8": ("coco", put(COCO, b'{"images": "\xff"}'), rf"{COCO}: not UTF-8: byte 0xff at offset 12; convert"),
    "a list, not an object": ("coco", put(COCO, "[]"), f"{COCO}: a list, must be an object"),
    "an object, not a list": ("aokvqa", put("aokvqa_v1p0_train.json", "{}"), "train.json: an object, must be a list"),
    "no images": ("coco", edit(COCO, lambda v: v.pop("images") and None), f"{COCO}: key 'images' is missing"),
    "an image without sentences": ("coco", edit(COCO, first("images", sentences=[])), r"images\[0\]: no caption"),
    "an image without a split": (
        "coco",
        edit(COCO, first("images", split=...)),
        r"images\[0\]: key 'split' is missing; it has: filepath",
    ),
    "a sentence that is no text": (
        "coco",
        edit(COCO, first("images", sentences=[{"raw": 7}])),
        r"images\[0\]: sentences\[0\]: key 'raw' is a whole number, must be a text",
    ),
    "a label that no image has": (
        "coco",
        lambda folder: None,
        "no image of split 'trian'; did you mean train",
        "data.splits.train.labels=[trian]",
    ),
    "a split that is not there": ("coco", lambda folder: None, "split 'dev' does not exist in coco; .*val", "dev"),
    "an unknown key of a split": (
        "coco",
        lambda folder: None,
        "splits.train.anotations: unknown; did you mean annotations",
        "data.splits.train={anotations: x}",
    ),
    "an image twice": ("coco", edit(COCO, lambda v: v["images"].append(v["images"][0])), f"{COCO}: '0' occurs twice"),
    "a media path with a key that is not there": (
        "coco",
        lambda folder: None,
        r"splits.train.media: '\{fliename\}' does not fit .*images\[0\]",
        "data.splits.train.media='{fliename}'",
    ),
    "a medium outside of the folder": (
        "coco",
        edit(COCO, first("images", filename="../../../secret.jpg")),
        r"images\[0\]: medium .*secret.jpg' is outside the data folder",
    ),
    "a medium by an absolute path": (
        "gqa",
        edit(GQA, lambda v: next(iter(v.values())).update(imageId="/etc/passwd")),
        "outside the data folder",
        "data.splits.train.media='{imageId}'",
    ),
    "an annotation file outside of the folder": (
        "gqa",
        lambda folder: None,
        "splits.train.annotations: '../x.json' is outside the data folder",
        "data.splits.train.annotations=../x.json",
    ),
    "a link out of the folder": (
        "gqa",
        link_outside("images/n0.jpg"),
        r"medium .*n0.jpg leads outside the data folder .* \(a link\)",
    ),
    "two questions of one id": (
        "vqav2",
        edit(QUESTIONS, lambda v: v["questions"].append(v["questions"][0])),
        r"questions\[2\]: question_id 262010 occurs twice",
    ),
    "two questions under one key": (
        "gqa",
        swap(GQA, '"00000001"', '"00000000"'),
        "train_balanced_questions.json: key '00000000' occurs twice in one object; ids must differ",
    ),
    "two annotations of one id": (
        "vqav2",
        edit(ANNOTATIONS, lambda v: v["annotations"].append(v["annotations"][0])),
        r"annotations\[2\]: question_id 262010 occurs twice",
    ),
    "a question without an annotation": (
        "vqav2",
        edit(ANNOTATIONS, lambda v: v["annotations"].pop() and None),
        rf"questions\[1\]: question_id 262011 has no annotation in .*{ANNOTATIONS}",
    ),
    "an annotation without a question": (
        "vqav2",
        edit(QUESTIONS, lambda v: v["questions"].pop() and None),
        rf"annotations\[1\]: question_id 262011 has no question in .*{QUESTIONS}",
    ),
    "no answers": (
        "vqav2",
        edit(ANNOTATIONS, first("annotations", answers=[])),
        r"annotations\[0\]: key 'answers' has no",
    ),
    "an empty question": (
        "vqav2",
        edit(QUESTIONS, first("questions", question=" ")),
        r"\[0\]: key 'question' is an empty",
    ),
    "NaN": ("vqav2_karpathy", swap("vqa/karpathy_train.json", "0.9", "NaN"), "karpathy_train.json: holds NaN"),
    "labels without a score": (
        "vqav2_karpathy",
        edit("vqa/karpathy_train.json", first("", label={"red": 0})),
        r"\[0\]: key 'label' has no answer with a score above 0",
        "data.splits.train.official=null",
    ),
    "a choice that is none": (
        "aokvqa",
        edit("aokvqa_v1p0_train.json", first("", correct_choice_idx=4)),
        "correct_choice_idx 4 is none of 4",
    ),
    "a caption of an unknown image": (
        "nocaps",
        edit("nocaps_val_4500_captions.json", first("annotations", image_id=99)),
        r"annotations\[0\]: image_id 99 is not among the images",
    ),
    "an image without a caption": (
        "nocaps",
        edit("nocaps_val_4500_captions.json", lambda v: v.update(annotations=v["annotations"][2:])),
        r"images\[0\]: image 0 has no caption",
    ),
    "a sentence of an unknown video": (
        "msrvtt",
        edit("train_val_videodatainfo.json", first("sentences", video_id="video0")),
        r"sentences\[0\]: video_id video0 is not among the videos",
    ),
    "a video that no name belongs to": (
        "msvd_qa",
        put("youtube_mapping.txt", "x vid7\n"),
        r"\[0\]: video_id 1 is not in youtube_mapping.txt",
    ),
    "a table of names with a third word": ("msvd_qa", put("youtube_mapping.txt", "a b c\n"), "mapping.txt:1: 'a b c'"),
    "a CSV file without its column": (
        "audiocaps",
        swap("train.csv", "start_time", "begin"),
        "train.csv: the header has no column 'start_time'; it has",
    ),
    "a CSV row too short": (
        "audiocaps",
        put("train.csv", "audiocap_id,youtube_id,start_time,caption\n1,a,0\n"),
        "train.csv:2: 3 fields, the header has 4",
    ),
    "a start that is no number": (
        "audiocaps",
        swap("train.csv", ",30,", ",nan,"),
        "train.csv:2: key 'start_time' is 'nan'",
    ),
    "a start before the beginning": (
        "audiocaps",
        swap("train.csv", ",30,", ",-3,"),
        "train.csv:2: start_time -3 is before",
    ),
    "an open quote": ("clotho", swap("clotho_captions_development.csv", 'softly"', "softly"), "development.csv:2: "),
    "an empty caption": (
        "clotho",
        swap("clotho_captions_development.csv", '"rain falls 2, softly"', ""),
        "development.csv:2: .*'caption_2'",
    ),
    # media
    "no such picture": ("gqa", remove("images/n0.jpg"), "images/n0.jpg: not found"),
    "a picture cut off": ("gqa", cut("images/n0.jpg"), "images/n0.jpg: not a readable picture"),
    "a picture that is none": ("gqa", put("images/n0.jpg", "GIF?"), "n0.jpg: not a readable picture"),
    "a sound of no bytes": ("clotho_aqa", put("audio_files/birds 0.wav", b""), "birds 0.wav: empty"),
    "a sound of no samples": (
        "clotho_aqa",
        sound("audio_files/birds 0.wav", np.zeros(0)),
        "birds 0.wav: a sound without",
    ),
    "a sound that is not finite": (
        "clotho_aqa",
        sound("audio_files/birds 0.wav", np.full(9, np.inf)),
        "birds 0.wav: samples that are not finite",
    ),
    "an impossible rate": ("clotho_aqa", rate_of(3, "audio_files/birds 0.wav"), "birds 0.wav: a sample rate of 3 Hz"),
    "a video without frames": (
        "msrvtt_qa",
        lambda folder: corpora_files.clip(folder / "TrainValVideo/video1.mp4", num_frames=0),
        "video1.mp4: .*(no video stream|without frames)",
    ),
    "a video that is none": (
        "msrvtt_qa",
        put("TrainValVideo/video1.mp4", b"\0" * 999),
        "video1.mp4: not a readable video",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_it(fault: str, tmp_path: Path) -> None:
    name, break_it, message, *more = FAULTS[fault]
    folder = tmp_path / "corpus"
    folder.mkdir()
    corpora_files.CORPORA[name](folder)
    split = more.pop() if more and "=" not in more[0] else "train"
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        try:
            source = source_of(name, folder, *(line.replace("{}", str(folder)) for line in more))
        except (
            Exception
        ) as error:  # what a constructor refuses comes wrapped; a run unwraps it (ima.config.instantiation.build)
            raise error.__cause__ or error from None
        for sample in source.samples("val" if name == "nocaps" else split):
            medium = source.medium(sample)
            if source.modality == "video":
                medium.frames([0])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_there_are_thirty_and_more() -> None:
    assert len(FAULTS) >= 30


def test_whole_corpora_have_no_fault(tmp_path: Path) -> None:
    """The same reading as above, with nothing broken."""
    for name in {fault[0] for fault in FAULTS.values()}:
        (tmp_path / name).mkdir()
        corpora_files.CORPORA[name](tmp_path / name)
        source = source_of(name, tmp_path / name)
        assert all(source.medium(sample) for split in source.splits for sample in source.samples(split))


def test_a_table_whose_last_line_has_no_end_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for end, num in (("\n", 0), ("\r\n", 0), ("", 1), (',"a dog, barking"\n', 0), (',"a dog, barking"', 0)):
        path.write_text("name,caption,more\n1,a dog,x\n2,a do" + end, newline="")
        if not end.startswith(","):
            path.write_text("name,caption\n1,a dog\n2,a do" + end, newline="")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert len(list(read_table(path, ("name",)))) == 2
        assert len(said) == num and all("last row" in str(warning.message) for warning in said)
