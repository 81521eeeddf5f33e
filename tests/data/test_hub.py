"""Tables of Hugging Face datasets: Parquet, JSONL and tars give what their files say, and nothing outside them."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import corpora_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ima.core.errors import UserError
from ima.core.media import Clip, Sound
from ima.data.corpora.hub import HubCaptions, HubQuestions
from ima.data.source import MediumError

NUM = 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (6, 5), (corpora_files.shade(number),) * 3).save(data, "PNG")
    return data.getvalue()


def parquet(folder: Path, split: str) -> None:
    columns = {
        "image": [{"bytes": png(i), "path": None} for i in range(NUM)],
        "caption": [f"{split} {i}" for i in range(NUM)],
    }
    pq.write_table(pa.table(columns), folder / f"{split}-00000.parquet")


def jsonl(folder: Path, split: str) -> None:
    rows = []
    for i in range(NUM):
        corpora_files.jpg(folder / "pictures" / f"{split}{i}.jpg", i)
        rows.append({"image": f"pictures/{split}{i}.jpg", "caption": [f"{split} {i}", "again"]})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tar(folder: Path, split: str) -> None:
    for shard in range(2):
        with tarfile.open(folder / f"{split}-{shard}.tar", "w") as file:
            for i in range(shard * NUM // 2, (shard + 1) * NUM // 2):
                for ending, data in (("png", png(i)), ("json", json.dumps({"caption": f"{split} {i}"}).encode())):
                    member = tarfile.TarInfo(f"{i:05d}.{ending}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))


KINDS: dict[str, Any] = {
    "parquet": (parquet, "image", "caption"),
    "jsonl": (jsonl, "image", "caption"),
    "tar": (tar, "png", "json.caption"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_media_are_those_of_the_files(tmp_path: Path, kind: str) -> None:
    write, medium, text = KINDS[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        write(folder, split)
    source = HubCaptions(str(folder), "image", medium, text)
    assert source.splits == ("train", "val")
    for split, theirs in (("train", "train"), ("val", "validation")):
        samples = source.samples(split)
        assert [sample.references[0] for sample in samples] == [f"{theirs} {i}" for i in range(NUM)]
        shades = [float(np.asarray(source.medium(sample)).mean()) for sample in samples]
        assert np.abs(np.array(shades) - [corpora_files.shade(i) for i in range(NUM)]).max() < 2
    again = pickle.loads(pickle.dumps(source))
    assert again.samples("val") == source.samples("val") and again.fingerprint == source.fingerprint
    assert np.array_equal(np.asarray(again.medium(samples[1])), np.asarray(source.medium(samples[1])))


def test_questions_with_one_answer_or_many_about_shared_media(tmp_path: Path) -> None:
    corpora_files.jpg(tmp_path / "a.jpg", 1)
    rows = [
        {"image": "a.jpg", "id": 7, "question": "What?", "answers": ["red", "red", "red", "pink"]},
        {"image": "a.jpg", "id": 7, "question": "Who?", "answers": ["she"]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = HubQuestions(str(tmp_path / "train.jsonl"), "image", "image", "question", "answers", medium_key="id")
    first, second = source.samples("train")
    assert (first.question, first.references) == ("What?", ("red", "red", "red", "pink"))
    assert first.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3, 1 / 3)) and second.weights == ()
    assert first.medium_id == second.medium_id and first.cluster == second.cluster == "7"


def test_sounds_and_clips_are_columns_too(tmp_path: Path) -> None:
    corpora_files.wav(tmp_path / "a.wav", 1)
    corpora_files.clip(tmp_path / "a.mp4", 1)
    data = {"sound": (tmp_path / "a.wav").read_bytes(), "film": (tmp_path / "a.mp4").read_bytes()}
    columns = {name: [{"bytes": value, "path": None}] for name, value in data.items()} | {"caption": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    sounds = HubCaptions(str(tmp_path / "test.parquet"), "audio", "sound", "caption")
    sound = sounds.medium(sounds.samples("test")[0])
    assert isinstance(sound, Sound) and sound.rate == 16000
    clips = HubCaptions(str(tmp_path / "test.parquet"), "video", "film", "caption")
    clip = clips.medium(clips.samples("test")[0])
    assert isinstance(clip, Clip) and clip.num_frames == 12


def test_splits_are_patterns_where_files_are_named_otherwise(tmp_path: Path) -> None:
    jsonl(tmp_path, "mine")
    jsonl(tmp_path, "train")
    source = HubCaptions(str(tmp_path), "image", "image", "caption", splits={"T0": "mi*.jsonl"}, name="own", limit=2)
    assert source.splits == ("T0",) and source.samples("T0")[3].id == "own/T0/3"
    assert len(HubCaptions(str(tmp_path), "image", "image", "caption", limit=2).samples("train")) == 2


def caption_source(path: Path, **options: Any) -> HubCaptions:
    return HubCaptions(str(path), **({"modality": "image", "medium": "image", "text": "caption"} | options))


def test_faults_are_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    jsonl(good, "train")
    rows = {
        "outside": {"image": "../../secret.jpg", "caption": "a"},
        "absolute": {"image": "/etc/passwd", "caption": "a"},
        "gone": {"image": "pictures/none.jpg", "caption": "a"},
        "none": {"image": "", "caption": "a"},
        "empty": {"image": "a.jpg", "caption": " "},
        "number": {"image": "a.jpg", "caption": 7},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "broken.jsonl").write_text('{"image": 1\n{{{')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no")
    (tmp_path / "broken.tar").write_bytes(b"no tar at all")
    (tmp_path / "zero.jsonl").write_bytes(b"")
    (tmp_path / "table.xlsx").write_bytes(b"x")
    (tmp_path / "nothing").mkdir()
    cases: list[tuple[Any, str]] = [
        (lambda: caption_source(tmp_path / "gone.parquet"), "path: .*gone.parquet is not there"),
        (lambda: caption_source(tmp_path / "nothing"), r"path: no file train\*"),
        (lambda: caption_source(tmp_path / "table.xlsx"), "table.xlsx is of no known kind; allowed: .parquet"),
        (lambda: caption_source(tmp_path / "zero.jsonl"), "zero.jsonl: empty file"),
        (lambda: caption_source(tmp_path / "broken.jsonl"), "broken.jsonl: cannot be read as a table"),
        (lambda: caption_source(tmp_path / "broken.parquet"), "broken.parquet: cannot be read as a table"),
        (lambda: caption_source(tmp_path / "broken.tar"), "broken.tar: cannot be read as a table"),
        (lambda: caption_source(good, medium="picture"), "no column 'picture' in split 'train'; .*image"),
        (lambda: caption_source(good, text="text").samples("train"), "no column 'text' in split 'train'"),
        (lambda: caption_source(good, splits={"T0": "x*"}), "splits.T0: no file in .* is like 'x"),
        (lambda: caption_source(good, splits={"T0": "../*"}), "splits.T0: .* is outside the data folder"),
        (lambda: caption_source(good, modality="smell"), "modality: 'smell' is unknown; .*image"),
        (lambda: caption_source(good).samples("dev"), "split 'dev' does not exist"),
        (lambda: caption_source(tmp_path / "empty.jsonl").samples("train"), r"train\[0\]: key 'caption' is an empty"),
        (lambda: caption_source(tmp_path / "number.jsonl").samples("train"), r"train\[0\]: key 'caption' is a whole"),
        (lambda: HubCaptions("nobody/nothing", "image", "image", "caption"), "nobody/nothing: not in the local cache"),
    ]  # fmt: skip
    for name, message in (("outside", "outside the folder"), ("absolute", "outside the folder"),
                          ("gone", "none.jpg: not found"), ("none", "column 'image' is a text, must be")):  # fmt: skip
        cases.append((lambda name=name: first_medium(caption_source(tmp_path / f"{name}.jsonl")), message))
    for case, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            case()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


LATIN = {
    "json": '[{"image": "a.jpg", "caption": "caf\u00e9"}]'.encode("latin1"),
    "jsonl": b'{"image": "a.jpg", "caption": "fine"}\n' * 40_000 + b'{"image": "a.jpg", "caption": "caf\xe9"}\n',
    "utf16.jsonl": '{"image": "a.jpg", "caption": "a"}\n'.encode("utf-16"),
}


@pytest.mark.parametrize("name", LATIN)
def test_text_of_another_encoding_is_one_line_with_file_byte_and_what_to_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"train.{name}"
    path.write_bytes(LATIN[name])
    byte, place = (0xFF, 0) if "16" in name else (0xE9, LATIN[name].index(b"\xe9"))
    with pytest.raises(UserError) as caught:
        caption_source(tmp_path if "16" not in name else path)
    wanted = f"{path}: not UTF-8: byte 0x{byte:02x} at offset {place}; convert it, as with iconv -f "
    assert str(caught.value).startswith(wanted) and str(caught.value).count("\n") == 0


def test_text_of_another_encoding_inside_archives_and_parquet_names_member_or_row(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as file:
        for name, data in (("0.png", png(0)), ("0.json", b'{"caption": "caf\xe9"}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match=r"train-0.tar: 0.json: not UTF-8: byte 0xe9 at offset 16; convert it"):
        HubCaptions(str(tmp_path), "image", "png", "json.caption")
    text = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 5], np.int32)), pa.py_buffer(b"acaf\xe9"))
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "caption": text}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train.parquet: train\[1\]: not UTF-8: byte 0xe9 at offset 3; convert it"):
        caption_source(tmp_path / "train.parquet").samples("train")


def first_medium(source: HubCaptions) -> Any:
    return source.medium(source.samples("train")[0])


def test_bytes_that_are_no_picture_are_named_by_their_row(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": b"no", "path": None}], "caption": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(MediumError, match=r"train.parquet: train\[0\]: not a readable picture"):
        first_medium(caption_source(tmp_path / "train.parquet"))


def test_an_archive_that_was_cut_is_refused_wherever_the_cut_is(tmp_path: Path) -> None:
    def tar_source() -> Any:
        return HubCaptions(str(tmp_path), "image", "png", "json.caption")

    tar(tmp_path, "train")
    path = tmp_path / "train-0.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        starts = [member.offset for member in file.getmembers()]
    assert len(starts) >= 4
    path.write_bytes(whole[: whole.rfind(b"\0" * 1024) + 1024])  # without the filling after the end
    assert tar_source().samples("train")
    for start in (starts[1], starts[2], starts[-1], starts[2] + 512, starts[2] + 700):
        path.write_bytes(whole[:start])
        with pytest.raises(UserError, match=r"train-0.tar: its end is missing, it was cut off"):
            tar_source()
