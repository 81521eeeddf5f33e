"""Miniatures of the published corpora in their official file formats, with media that are made here."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

TEN = ["red"] * 6 + ["dark red"] * 3 + ["pink"]


def shade(number: int) -> int:
    """The grey of picture, clip or sound `number`."""
    return 20 + 30 * (number % 8)


def jpg(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (shade(number),) * 3).save(path, quality=95)


def wav(path: Path, number: int, rate: int = 16000, channels: int = 2) -> None:
    """A tenth of a second of a constant; the second channel is silent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.zeros((rate // 10, channels), np.float32)
    wave[:, 0] = shade(number) / 256
    soundfile.write(path, wave, rate, subtype="FLOAT")


def clip(
    path: Path,
    number: int = 0,
    num_frames: int = 12,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    key_every: int = 4,
    b_frames: int = 0,
) -> None:
    """Frame i is grey shade(number) + 4 i, modulo 256; a key frame every `key_every`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"sc_threshold": "0"} if codec.startswith("libx264") else {}  # key frames as asked, no others
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 32, 16, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = key_every, b_frames
        container.start_encoding()
        for index in range(num_frames):
            frame = np.full((16, 32, 3), (shade(number) + 4 * index) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


def to_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def to_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


# -- pictures ----------------------------------------------------------------------------------------------------------


def coco(folder: Path) -> None:
    images = []
    for number, (part, split) in enumerate([("train", "train"), ("val", "restval"), ("val", "val"), ("val", "test")]):
        name, place = f"COCO_{part}2014_{number:012d}.jpg", f"{part}2014"
        jpg(folder / place / name, number)
        texts = [f"A cow number {number}.", f"cow, said differently {number}", "an animal"]
        sentences = [
            {"tokens": text.lower().strip(".").split(), "raw": text, "imgid": number, "sentid": 3 * number + i}
            for i, text in enumerate(texts)
        ]
        images.append({"filepath": place, "sentids": [], "filename": name, "imgid": number, "split": split,
                       "sentences": sentences, "cocoid": number})  # fmt: skip
    to_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


# Of the pictures of `coco` 2 (val) and 3 (test): two people; nothing.
COCO_INSTANCES: dict[str, Any] = {
    "images": [{"id": 2, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
    "annotations": [{"id": 7, "image_id": 2, "category_id": 1}, {"id": 8, "image_id": 2, "category_id": 1}],
    "categories": [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 21, "name": "cow"}],
}


def nocaps(folder: Path) -> None:
    images, annotations = [], []
    for number, domain in enumerate(["in-domain", "near-domain", "out-domain", "out-domain"]):
        jpg(folder / "val" / f"{number:016x}.jpg", number)
        images.append({"id": number, "file_name": f"{number:016x}.jpg", "width": 24, "height": 16, "domain": domain,
                       "coco_url": "", "license": 0, "open_images_id": f"{number:016x}",})  # fmt: skip
        annotations += [
            {"image_id": number, "id": 10 * number + i, "caption": f"caption {i} of {number}"} for i in (0, 1)
        ]
    whole = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    to_json(folder / "nocaps_val_4500_captions.json", whole)


def vqa_files(folder: Path, prefix: str, questions_name: str, first_id: int) -> None:
    for part, number in (("train", 1), ("val", 2)):
        jpg(folder / f"{part}2014" / f"COCO_{part}2014_{number:012d}.jpg", number)
        ids = [first_id + 10 * number + i for i in range(2)]
        questions = [{"image_id": number, "question": f"What colour is {i}?", "question_id": i} for i in ids]
        annotations = [
            {
                "image_id": number, "question_id": i, "question_type": "what colour", "answer_type": "other",
                "multiple_choice_answer": "red",
                "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in
                            enumerate(TEN)],
            }
            for i in ids
        ]  # fmt: skip
        shared = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": f"{part}2014"}
        to_json(folder / questions_name.format(part), shared | {"task_type": "Open-Ended", "questions": questions})
        to_json(folder / f"{prefix}mscoco_{part}2014_annotations.json", shared | {"annotations": annotations})


def vqav2(folder: Path) -> None:
    vqa_files(folder, "v2_", "v2_OpenEnded_mscoco_{}2014_questions.json", 262000)


def okvqa(folder: Path) -> None:
    vqa_files(folder, "", "OpenEnded_mscoco_{}2014_questions.json", 5)


def vqav2_karpathy(folder: Path) -> None:
    vqa_files(folder / "vqa", "v2_", "unused_{}.json", 262000)
    for split, part, number in (("train", "train", 1), ("val", "val", 2), ("test", "val", 2)):
        image = f"COCO_{part}2014_{number:012d}"
        jpg(folder / f"{part}2014" / f"{image}.jpg", number)
        items = [
            {"question_id": 262000 + 10 * number + i, "sent": "What colour?", "img_id": image, "question_type": "what",
             "answer_type": "other", "label": {"red": 1, "dark red": 0.9, "pink": 0.3}}
            for i in range(2)
        ]  # fmt: skip
        to_json(folder / "vqa" / f"karpathy_{split}.json", items)


def gqa(folder: Path) -> None:
    for number, split in enumerate(("train", "val", "testdev")):
        jpg(folder / "images" / f"n{number}.jpg", number)
        items = {
            f"{number}{i:07d}": {"imageId": f"n{number}", "question": "Is it red?", "answer": "yes",
                                 "fullAnswer": "Yes, it is red.", "isBalanced": True, "semantic": [],
                                 "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"}}
            for i in range(2)
        }  # fmt: skip
        to_json(folder / f"{split}_balanced_questions.json", items)


def aokvqa(folder: Path) -> None:
    for number, split in enumerate(("train", "val")):
        jpg(folder / f"{split}2017" / f"{number:012d}.jpg", number)
        items = [
            {"split": split, "image_id": number, "question_id": f"q{number}{i}", "question": "What is it?",
             "choices": ["red", "blue", "green", "pink"], "correct_choice_idx": 0, "direct_answers": TEN,
             "difficult_direct_answer": False, "rationales": ["because", "it is so", "look"]}
            for i in range(2)
        ]  # fmt: skip
        to_json(folder / f"aokvqa_v1p0_{split}.json", items)


def textvqa(folder: Path) -> None:
    for number, split in enumerate(("train", "val")):
        jpg(folder / "train_images" / f"a{number}.jpg", number)
        data = [
            {"question": "what is the brand?", "image_id": f"a{number}", "question_id": 34602 + 10 * number + i,
             "image_classes": ["Clock"], "flickr_original_url": "", "flickr_300k_url": "", "image_width": 24,
             "image_height": 16, "set_name": split, "question_tokens": ["what"], "answers": TEN}
            for i in range(2)
        ]  # fmt: skip
        shared = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        to_json(folder / f"TextVQA_0.5.1_{split}.json", shared | {"data": data})
        words = [{"image_id": f"a{number}", "ocr_tokens": ["red", "brand"], "ocr_info": []}]
        to_json(folder / f"TextVQA_Rosetta_OCR_v0.2_{split}.json", {"data": words})


def pope(folder: Path) -> None:
    """A probe of what is there and one of what is not, for each kind; ids begin anew in each file."""
    jpg(folder / "val2014" / "COCO_val2014_000000000001.jpg", 1)
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": number, "image": "COCO_val2014_000000000001.jpg", "label": label,
             "text": f"Is there a {thing} in the image?"}
            for number, (thing, label) in enumerate((("dog", "yes"), (f"{kind} cat", "no")), 1)
        ]  # fmt: skip
        (folder / f"coco_pope_{kind}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


# -- clips -------------------------------------------------------------------------------------------------------------


def msrvtt(folder: Path) -> None:
    for file, place, splits in (
        ("train_val_videodatainfo.json", "TrainValVideo", ("train", "validate")),
        ("test_videodatainfo.json", "TestVideo", ("test",)),
    ):
        videos, sentences = [], []
        for number, split in enumerate(splits, len(place)):
            clip(folder / place / f"video{number}.mp4", number)
            videos.append({"category": 9, "url": "", "video_id": f"video{number}", "start time": 1.0, "end time": 2.2,
                           "split": split, "id": number})  # fmt: skip
            sentences += [
                {"caption": f"clip {i} of {number}", "video_id": f"video{number}", "sen_id": 10 * number + i}
                for i in (0, 1)
            ]
        to_json(folder / file, {"info": {}, "videos": videos, "sentences": sentences})


def video_questions(folder: Path, splits: Sequence[str], **more: Any) -> None:
    for number, split in enumerate(splits, 1):
        items = [
            {"answer": "car", "id": 10 * number + i, "question": "what is driving?", "video_id": number, **more}
            for i in range(2)
        ]
        to_json(folder / f"{split}_qa.json", items)


def msvd_qa(folder: Path) -> None:
    video_questions(folder, ("train", "val", "test"))
    lines = [f"-4ws{number}_{number}_15 vid{number}" for number in (1, 2, 3)]
    (folder / "youtube_mapping.txt").write_text("\n".join(lines) + "\n")
    for number in (1, 2, 3):
        clip(folder / "YouTubeClips" / f"-4ws{number}_{number}_15.avi", number, codec="mpeg4")


def msrvtt_qa(folder: Path) -> None:
    video_questions(folder, ("train", "val", "test"), category_id=14)
    for number in (1, 2, 3):
        clip(folder / ("TestVideo" if number == 3 else "TrainValVideo") / f"video{number}.mp4", number)


# -- sounds ------------------------------------------------------------------------------------------------------------


def audiocaps(folder: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        name = f"yt_{number}-x"
        wav(folder / split / f"{name}.wav", number)
        rows = [(100 * number + i, name, 30, f'A dog barks, then "woof" {i}') for i in range(2)]
        to_csv(folder / f"{split}.csv", ("audiocap_id", "youtube_id", "start_time", "caption"), rows)


def clotho(folder: Path) -> None:
    for number, split in enumerate(("development", "validation", "evaluation")):
        name = f"Rain, on a roof {number}.wav"
        wav(folder / split / name, number, rate=44100)
        captions = [f"rain falls {i}, softly" for i in range(1, 6)]
        header = ("file_name", *(f"caption_{i}" for i in range(1, 6)))
        to_csv(folder / f"clotho_captions_{split}.csv", header, [(name, *captions)])


def clotho_aqa(folder: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        name = f"birds {number}.wav"
        wav(folder / "audio_files" / name, number)
        rows = [(name, "Are birds there?", answer, "yes") for answer in ("yes", "yes", "no")]
        rows += [(name, "What sings?", answer, "maybe") for answer in ("birds", "bird", "birds")]
        to_csv(folder / f"clotho_aqa_{split}.csv", ("file_name", "QuestionText", "answer", "confidence"), rows)


IMAGES = (coco, nocaps, vqav2, vqav2_karpathy, okvqa, gqa, aokvqa, textvqa)
CORPORA = {write.__name__: write for write in (*IMAGES, msrvtt, msvd_qa, msrvtt_qa, audiocaps, clotho, clotho_aqa)}
