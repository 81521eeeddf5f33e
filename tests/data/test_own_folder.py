"""A folder of one's own and a table: what is found in it is what the table says, whatever kind of table it is; splits
tear no group apart; each mistake is one line that names file and key."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import corpora_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.own_folder import kind_of, look
from ima.core.own_tables import split_of
from ima.core.types import Sample
from ima.data.corpora.folder import OwnFolder
from ima.data.source import MediumError

NUM = 12
MAKE: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "image": ("jpg", corpora_files.jpg),
    "audio": ("wav", corpora_files.wav),
    "video": ("mp4", corpora_files.clip),
}
Rows = Sequence[dict[str, Any]]


def media(folder: Path, modality: str = "image", num: int = NUM, below: str = "") -> list[str]:
    ending, make = MAKE[modality]
    names = [f"{below}m{number:02d}.{ending}" for number in range(num)]
    for number, name in enumerate(names):
        make(folder / name, number)
    return names


def delimited(rows: Rows, delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_bytes(delimited(rows, "\t" if path.suffix == ".tsv" else ","))


def captions(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"file_name": name, "caption": f"grey, number {number}"} for number, name in enumerate(names)]


def questions(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"image": name, "question": "how grey?", "answer": str(number)} for number, name in enumerate(names)]


def all_samples(source: OwnFolder) -> dict[str, Sample]:
    return {sample.facts["file"]: sample for split in source.splits for sample in source.samples(split)}


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet", "semicolon"])
def test_every_kind_of_table_gives_the_same_samples(tmp_path: Path, table: str) -> None:
    rows = captions(media(tmp_path))
    if table == "semicolon":  # as spreadsheets of many countries write it, with a byte order mark
        head, *lines = delimited(rows, ";").decode().replace("grey, number", "grey number").splitlines(keepends=True)
        (tmp_path / "captions.csv").write_bytes(b"\xef\xbb\xbf" + "".join([head, *lines]).encode())
        rows = [row | {"caption": row["caption"].replace(",", "")} for row in rows]
    else:
        write(tmp_path / table, rows)
    source = OwnFolder(str(tmp_path))
    found = all_samples(source)
    assert {name: sample.references for name, sample in found.items()} == {
        row["file_name"]: (row["caption"],) for row in rows
    }
    assert source.splits == ("train", "val", "test") and source.modality == "image"
    shades = {name: source.medium(sample).getpixel((3, 3))[0] for name, sample in found.items()}  # type: ignore[union-attr, index]
    assert all(abs(shades[row["file_name"]] - corpora_files.shade(number)) < 4 for number, row in enumerate(rows))


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_the_medium_is_found_by_the_endings_and_read(tmp_path: Path, modality: str) -> None:
    write(tmp_path / "table.csv", questions(media(tmp_path, modality, 6)))
    source = OwnFolder(str(tmp_path), val_ratio=0.2, test_ratio=0.2)
    assert source.modality == modality
    sample = source.samples("train")[0]
    assert sample.question == "how grey?" and sample.references == (str(int(sample.facts["file"][1:3])),)
    assert source.medium(sample) is not None


def test_rows_of_one_picture_are_its_captions_and_rows_of_questions_stay_apart(tmp_path: Path) -> None:
    names = media(tmp_path)
    rows = [{"file_name": name, "caption": [f"{name} {n}", f"again {n}"]} for name in names for n in "xy"]
    write(tmp_path / "a.jsonl", rows)
    found = all_samples(OwnFolder(str(tmp_path)))
    assert found[names[3]].references == (f"{names[3]} x", "again x", f"{names[3]} y", "again y")
    rows = [{"image": name, "question": f"{n}?", "answer": ["red"] * 3} for name in names for n in "xy"]
    write(tmp_path / "a.jsonl", rows)
    source = OwnFolder(str(tmp_path))
    assert sum(len(source.samples(split)) for split in source.splits) == 2 * NUM
    assert source.own.several


def test_numbered_columns_are_captions_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    rows = [{"img": name, "caption_1": f"one {name}", "caption_2": ""} for name in media(tmp_path)]
    write(tmp_path / "t.csv", rows)
    found = all_samples(OwnFolder(str(tmp_path)))
    assert [found[row["img"]].references for row in rows] == [(row["caption_1"],) for row in rows]


@pytest.mark.parametrize("how", ["below", "stem", "beside the table", "absolute", "media"])
def test_files_are_found_where_they_lie(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "data"
    names = media(folder, below="pictures/" if how in ("below", "stem") else "")
    rows = captions(names)
    options: dict[str, Any] = {}
    if how == "stem":
        rows = [row | {"file_name": Path(row["file_name"]).stem} for row in rows]
    elif how == "below":
        rows = [row | {"file_name": Path(row["file_name"]).name} for row in rows]
    elif how == "absolute":
        rows = [row | {"file_name": str(folder / row["file_name"])} for row in rows]
    if how == "media":
        write(tmp_path / "elsewhere" / "captions.csv", rows)
        options = {"media": str(folder)}
    elif how == "beside the table":
        for split, some in (("train", rows[:8]), ("validation", rows[8:])):
            (folder / split).mkdir()
            for row in some:
                (folder / row["file_name"]).rename(folder / split / row["file_name"])
            write(folder / split / "metadata.csv", some)
    else:
        write(folder / "captions.csv", rows)
    source = OwnFolder(str(tmp_path / "elsewhere" if how == "media" else folder), **options)
    found = list(all_samples(source).values())
    assert len(found) == NUM and all(source.medium(sample) is not None for sample in found)
    if how == "beside the table":
        assert [len(source.samples(split)) for split in source.splits] == [8, 4]


def test_columns_that_are_given_win_over_those_that_are_found(tmp_path: Path) -> None:
    names = media(tmp_path)
    write(tmp_path / "t.csv", [row | {"frage": "wie?", "antwort": "so"} for row in captions(names)])
    source = OwnFolder(str(tmp_path), question="frage", answer="antwort")
    assert {(sample.question, sample.references) for sample in all_samples(source).values()} == {("wie?", ("so",))}


def test_a_table_with_the_media_inside_is_told_where_it_belongs(tmp_path: Path) -> None:
    names = media(tmp_path)
    rows = [{"image": {"bytes": b"png", "path": name}, "caption": "a"} for name in names]
    write(tmp_path / "t.parquet", rows)
    with pytest.raises(UserError, match=r"holds the media themselves; use data=hf_caption"):
        OwnFolder(str(tmp_path))


# -- splits ------------------------------------------------------------------------------------------------------------


def parts_of(source: OwnFolder) -> dict[str, set[str]]:
    return {split: {sample.facts["file"] for sample in source.samples(split)} for split in source.splits}


@pytest.mark.parametrize("num", [3, 4, 7, 40, 101])
def test_splits_share_nothing_lack_nothing_and_have_their_sizes(tmp_path: Path, num: int) -> None:
    for number in range(num):
        (tmp_path / f"{number}.jpg").touch()
    write(tmp_path / "t.csv", captions([f"{number}.jpg" for number in range(num)]))
    parts = parts_of(OwnFolder(str(tmp_path)))
    assert sum(map(len, parts.values())) == num == len(set.union(*parts.values()))
    wanted = max(1, round(0.15 * num))
    assert [len(parts["val"]), len(parts["test"])] == [wanted, wanted] and parts["train"]
    assert parts == parts_of(OwnFolder(str(tmp_path)))
    if num == 101:
        assert parts["val"] != parts_of(OwnFolder(str(tmp_path), seed=1))["val"]
        write(tmp_path / "t.csv", captions([f"{number}.jpg" for number in range(num - 1)]))
        assert len(parts["val"] ^ parts_of(OwnFolder(str(tmp_path)))["val"]) <= 3  # one less moves few


def test_no_group_and_no_picture_is_in_two_splits(tmp_path: Path) -> None:
    """Also where a picture is in two groups: these are then one."""
    names = media(tmp_path, num=30)
    rows = [row | {"group": f"g{number // 3}"} for number, row in enumerate(captions(names))]
    rows += [{"file_name": names[0], "caption": "again", "group": "g9"}]
    write(tmp_path / "t.csv", rows)
    source = OwnFolder(str(tmp_path))
    parts = parts_of(source)
    for group in range(10):
        here = {split for split, found in parts.items() if found & set(names[3 * group : 3 * group + 3])}
        assert len(here) == 1
    assert sum(map(len, parts.values())) == 30
    assert next(s for s, found in parts.items() if names[0] in found) == next(
        s for s, found in parts.items() if names[27] in found
    )
    assert {sample.cluster for sample in source.samples("train")} <= {f"g{number}" for number in range(10)}


def test_a_column_of_splits_is_obeyed_and_leaks_are_said(tmp_path: Path) -> None:
    names = media(tmp_path)
    said = ["train"] * 6 + ["validation"] * 3 + ["TEST"] * 3
    rows = [row | {"split": split} for row, split in zip(captions(names), said, strict=True)]
    write(tmp_path / "t.csv", rows)
    assert parts_of(OwnFolder(str(tmp_path))) == {
        "train": set(names[:6]), "val": set(names[6:9]), "test": set(names[9:])
    }  # fmt: skip
    write(tmp_path / "t.csv", [*rows, {"file_name": names[0], "caption": "another", "split": "test"}])
    with pytest.warns(UserWarning, match="1 file_name are in several splits, the first is m00.jpg"):
        OwnFolder(str(tmp_path))
    write(tmp_path / "t.csv", [row for row in rows if row["split"] != "validation"])
    parts = parts_of(OwnFolder(str(tmp_path)))
    assert len(parts["val"]) == 1 and parts["val"] < set(names[:6]) and parts["test"] == set(names[9:])


# -- mistakes ----------------------------------------------------------------------------------------------------------


def of(rows: Rows, name: str = "t.csv") -> Callable[[Path], None]:
    return lambda folder: write(folder / name, rows)


NAMES = [f"m{number:02d}.jpg" for number in range(NUM)]
GOOD = captions(NAMES)
WRONG: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no table": (lambda folder: None, {}, r"path: no table in .*; write one \(\.csv, .*file_name,caption"),
    "several": (
        lambda folder: [write(folder / name, GOOD) for name in ("a.csv", "b.jsonl")],  # type: ignore[func-returns-value]
        {},
        r"several tables in .*: a\.csv, b\.jsonl; choose one by data\.table=a\.csv",
    ),
    "no captions": (
        of([{"file_name": name, "colour": "grey"} for name in NAMES]),
        {},
        r"no column that looks like captions.*it has: file_name, colour; write data\.text=<column>",
    ),
    "captions and questions": (
        of([row | {"question": "?", "answer": "!"} for row in GOOD]),
        {},
        r"captions \(caption\) and questions \(question, answer\); choose data\.text=caption or data\.question",
    ),
    "no answers": (
        of([{"image": name, "question": "?"} for name in NAMES]), {"question": "question"}, "no column of answers"
    ),
    "no files": (of([{"caption": "a"}]), {}, r"no column that names the files of the media; it has: caption"),
    "missing files": (
        of([*GOOD, {"file_name": "gone.jpg", "caption": "a"}]),
        {},
        r"1 of 13 files are not below .*: gone\.jpg \(14\).*data\.on_bad_medium=skip",
    ),
    "twice": (of([*GOOD, GOOD[3]]), {}, r"t\.csv:14: says of m03\.jpg what .*t\.csv:5 says; remove one"),
    "asked twice": (
        of([*questions(NAMES), *questions(NAMES)[:1]]), {}, r"t\.csv:14: says of m00\.jpg what .*t\.csv:2 says"
    ),
    "too few": (of(GOOD[:2]), {}, r"2 pictures cannot be dealt out to train, val, test; add some"),
    "one group": (
        of([row | {"patient": "x"} for row in GOOD]),
        {"group": "patient"},
        r"1 groups of column 'patient' cannot be dealt out",
    ),
    "unknown split": (
        of([row | {"split": "trian"} for row in GOOD]), {}, r"t\.csv:2: column 'split' says 'trian'; did you mean train"
    ),
    "mixed media": (
        of([*GOOD, {"file_name": "a.wav", "caption": "a"}]), {}, r"12 pictures and 1 sounds; .*data\.modality=image"
    ),
    "unknown endings": (
        of([{"file": "a.xyz", "caption": "a"}]), {"media": "empty"}, r"no pictures, clips or sounds in .*empty"
    ),
    "empty caption": (of([*GOOD[1:], GOOD[0] | {"caption": " "}]), {}, r"t\.csv:13: key 'caption' is an empty text"),
    "empty": (lambda folder: (folder / "t.csv").touch(), {}, r"t\.csv: empty file"),
    "header alone": (lambda folder: (folder / "t.csv").write_text("file,caption\n") and None, {}, "no rows below"),
    "no such column": (of(GOOD), {"text": "captoin"}, r"text: .*no column 'captoin'; did you mean caption"),
    "no such table": (of(GOOD), {"table": "u.csv"}, r"table: .*u\.csv is not there; did you mean t\.csv"),
    "outside": (of([*GOOD, {"file_name": "../x.jpg", "caption": "a"}]), {}, r"outside the data folder"),
    "broken jsonl": (lambda folder: (folder / "t.jsonl").write_text('{"file": \n') and None, {}, r"no rows below"),
    "no parquet": (lambda folder: (folder / "t.parquet").write_bytes(b"no") and None, {}, "not a Parquet file"),
    "latin1": (lambda folder: (folder / "t.csv").write_bytes(b"file,caption\nm00.jpg,caf\xe9\n") and None, {}, "UTF-8"),
    "nothing to train on": (of(GOOD), {"val_ratio": 0.5, "test_ratio": 0.5}, "leave nothing for training"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line(tmp_path: Path, case: str) -> None:
    break_it, options, message = WRONG[case]
    media(tmp_path)
    (tmp_path / "empty").mkdir()
    break_it(tmp_path)
    options = {key: str(tmp_path / value) if key == "media" else value for key, value in options.items()}
    with pytest.raises(UserError, match=message) as refused:
        source = OwnFolder(str(tmp_path), **options)
        for split in source.splits:
            source.samples(split)
    assert "\n" not in str(refused.value)


def test_what_is_missing_or_damaged_can_be_left_out(tmp_path: Path) -> None:
    names = media(tmp_path)
    write(tmp_path / "t.csv", captions([*names, "gone.jpg"]))
    (tmp_path / names[0]).write_bytes(b"no picture")
    source = OwnFolder(str(tmp_path), on_bad_medium="skip")
    found = all_samples(source)
    for name in ("gone.jpg", names[0]):
        with pytest.raises(MediumError, match=name):
            source.medium(found[name])


@pytest.mark.parametrize("path", ["nowhere", "t.csv", "pictures.zip"])
def test_the_folder_or_its_table_is_given(tmp_path: Path, path: str) -> None:
    media(tmp_path)
    write(tmp_path / "t.csv", GOOD)
    (tmp_path / "pictures.zip").touch()
    if path == "t.csv":
        assert len(all_samples(OwnFolder(str(tmp_path / path)))) == NUM
        return
    with pytest.raises(UserError, match="path: .*(is not there; give the folder|is a file, must be a folder)"):
        OwnFolder(str(tmp_path / path))


def test_names_tell_splits_and_media() -> None:
    assert [split_of(name) for name in ("train", "captions-val", "TEST_2", "metadata", "train_val")] == [
        "train", "val", "test", None, None
    ]  # fmt: skip
    assert [kind_of(name) for name in ("a.JPG", "b.mp4", "c.flac", "d.txt", "e")] == [
        "image",
        "video",
        "audio",
        None,
        None,
    ]


# -- what the command line makes of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "rows", "wanted"),
    [
        ("image", captions, ("efficientnet_lite0", "pool", "caption")),
        ("audio", captions, ("aisfx", "pool", "caption")),
        ("video", captions, ("video_efficientnet", "video", "caption")),
        ("image", questions, ("efficientnet_lite0", "pool", "qa")),
    ],
)
def test_encoder_adapter_task_and_headline_fit_the_folder(
    tmp_path: Path, modality: str, rows: Any, wanted: tuple[str, ...]
) -> None:
    write(tmp_path / "t.csv", rows(media(tmp_path, modality, 4)))
    config = compose(["data=folder", f"data.path={tmp_path}"])
    assert (config.choices.encoder, config.choices.adapter, config.choices.task) == wanted
    if rows is captions:
        assert config.task.headline == "cider_d" and config.task.targets == "any"
    else:
        assert config.task.metric == "exact"


def test_what_is_typed_or_chosen_by_an_experiment_stays(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", captions(media(tmp_path, "audio", 4)))
    own = ["data=folder", f"data.path={tmp_path}"]
    config = compose([*own, "encoder=whisper_tiny", "adapter=query", "task.prompt=I hear"])
    assert (config.choices.encoder, config.choices.adapter) == ("whisper_tiny", "query")
    assert config.task.prompt == "I hear" and config.task.headline == "cider_d"
    config = compose(["experiment=published_caption", *own])
    assert (config.choices.encoder, config.choices.adapter, config.choices.llm) == ("aisfx", "query", "opt")
    assert "headline" not in compose([*own, "task=conversation"]).task


def test_an_experiment_of_ones_own_folder_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "t.csv", captions(media(tmp_path / "mine", "audio", 4)))
    (tmp_path / "conf/experiment").mkdir(parents=True)
    text = "# @package _global_\n# mine\ndefaults:\n  - override /encoder: whisper_tiny\n"
    (tmp_path / "conf/experiment/own.yaml").write_text(text)
    places = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    config = compose([*places, "experiment=own", "data=folder", f"data.path={tmp_path / 'mine'}"])
    assert config.choices.encoder == "whisper_tiny" and config.task.headline == "cider_d"


def test_a_whole_model_is_asked_what_the_folder_asks(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", questions(media(tmp_path, num=4)))
    whole = ["lmm=hf", "lmm.path=somewhere", "data=folder", f"data.path={tmp_path}"]
    assert compose(whole, "evaluate").task.metric == "exact"
    write(tmp_path / "t.csv", captions(media(tmp_path, num=4)))
    assert compose(whole, "evaluate").task.headline == "cider_d"


def test_a_wrong_folder_is_refused_while_the_config_is_composed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.path: .*nowhere is not there"):
        compose(["data=folder", f"data.path={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match=r"data\.path"):
        compose(["data=folder"])


def test_a_look_reads_no_more_than_the_first_rows(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", captions(media(tmp_path)) * 10)
    with open(tmp_path / "t.jsonl", "a") as file:
        file.write("broken\n")
    assert look(str(tmp_path)).columns.text == ("caption",)
    with pytest.raises(UserError, match=r"t\.jsonl:121: not JSON"):
        OwnFolder(str(tmp_path))
