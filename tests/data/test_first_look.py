"""A first look finds what was planted: damage, media that are there twice, leaks; and counts what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import corpora_files
import pytest

from ima.__main__ import main
from ima.data.corpora.folder import OwnFolder
from ima.data.first_look import FirstLook, Spread, look_at
from ima.data.shapes import Shapes

MAKE = {"image": ("jpg", corpora_files.jpg), "audio": ("wav", corpora_files.wav), "video": ("mp4", corpora_files.clip)}


def folder_of(path: Path, modality: str = "image", num: int = 8) -> list[dict[str, str]]:
    """Media that all differ; the first four are of train, two each of val and test."""
    ending, make = MAKE[modality]
    rows = []
    for number in range(num):
        make(path / f"{number}.{ending}", number)
        split = "train" if number < num // 2 else "val" if number < 3 * num // 4 else "test"
        rows.append({"file": f"{number}.{ending}", "text": "one two three"[: 3 + 4 * (number % 3)], "split": split})
    return rows


def look(path: Path, rows: list[dict[str, str]]) -> FirstLook:
    (path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return look_at(OwnFolder(str(path), on_bad_medium="skip"), lambda text: len(text.split()), "words")


@pytest.mark.parametrize("modality", list(MAKE))
def test_it_counts_what_is_there_and_finds_nothing_wrong_with_good_data(tmp_path: Path, modality: str) -> None:
    found = look(tmp_path, folder_of(tmp_path, modality))
    assert found.problems == []
    assert [(one.name, one.num_samples, one.num_media) for one in found.splits] == [
        ("train", 4, 4), ("val", 2, 2), ("test", 2, 2)
    ]  # fmt: skip
    assert found.splits[0].texts is not None and (found.splits[0].texts.low, found.splits[0].texts.high) == (1, 3)
    sizes = {
        "image": {"width": 24, "height": 16}, "audio": {"seconds": 0.1, "rate": 16000},
        "video": {"seconds": 1.2, "frames": 12},
    }[modality]  # fmt: skip
    medians = {unit: spread.median for unit, spread in found.splits[1].sizes.items() if spread is not None}
    assert medians == pytest.approx(sizes)
    assert all(medium is not None for split in found.splits for _, medium in split.shown)


@pytest.mark.parametrize("modality", list(MAKE))
def test_it_finds_what_was_planted(tmp_path: Path, modality: str) -> None:
    rows = folder_of(tmp_path, modality)
    ending = MAKE[modality][0]
    (tmp_path / f"0.{ending}").write_bytes(b"nothing")
    shutil.copy(tmp_path / f"1.{ending}", tmp_path / f"copy.{ending}")
    shutil.copy(tmp_path / f"2.{ending}", tmp_path / f"other.{ending}")
    rows += [
        {"file": f"copy.{ending}", "text": "a", "split": "train"},
        {"file": f"other.{ending}", "text": "b", "split": "test"},
        {"file": f"3.{ending}", "text": "c", "split": "test"},
        {"file": f"gone.{ending}", "text": "d", "split": "val"},
    ]
    with pytest.warns(UserWarning, match="in several splits"):
        found = look(tmp_path, rows)
    text = "\n".join(found.problems)
    assert f"train: 1 of 5 media cannot be read: {tmp_path / f'0.{ending}'}" in text
    assert f"train: 1 media are there twice under two names: 1.{ending} = copy.{ending}" in text
    assert f"val: 1 of 3 media cannot be read: {tmp_path / f'gone.{ending}'}" in text
    assert f"train and test share 1 media: 3.{ending}" in text
    assert f"train and test share 1 media of the same content: 2.{ending}" in text
    assert len(found.problems) == 5


def test_of_many_media_some_are_read_evenly() -> None:
    found = look_at(Shapes(num_train=30, num_test=6, size=32), len, "letters", num_media=5)
    assert {one.num_looked_at for one in found.splits} == {5}
    assert all(one.texts is not None and one.texts.high > 4 for one in found.splits)


def test_a_spread_of_nothing_is_none() -> None:
    assert Spread.of([]) is None and Spread.of([2.0]) == Spread(2, 2, 2, 2)


@pytest.mark.parametrize("modality", list(MAKE))
def test_the_command_prints_a_table_writes_a_page_and_fails_where_something_is_wrong(
    tmp_path: Path, modality: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = folder_of(tmp_path / "mine", modality)
    rows[0]["text"] = "<script>"
    (tmp_path / "mine/t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = ["data", "data=folder", f"data.path={tmp_path / 'mine'}", "llm=tiny", f"output_dir={tmp_path}"]
    assert main(typed) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "data-mine.html").read_text()
    assert str(tmp_path / "data-mine.html") in out and "train" in out and "problem" not in out
    assert "&lt;script&gt;" in page and page.count("<figure") == 8
    assert {"image": "width", "video": "frames", "audio": "<audio"}[modality] in page
    (tmp_path / "mine" / rows[1]["file"]).write_bytes(b"")
    assert main([*typed, "--out", str(tmp_path / "other.html"), "--all"]) == 1
    assert "problem    train: 1 of 4 media cannot be read" in capsys.readouterr().out
    assert 'class="alert"' in (tmp_path / "other.html").read_text()
    assert main([*typed, "--everything"]) == 2
    assert main(["data", "data=folder", "data.path=nowhere"]) == 2
