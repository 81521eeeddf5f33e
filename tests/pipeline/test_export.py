"""One pipeline, two sources: what is exported in an official format and read back is what went out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sounds import make_sounds
from stamps import draw_stamps
from test_corpora import source_of

from ima.cli.export_data import export, main
from ima.core.errors import UserError
from ima.core.media import Clip, Frames, Medium, Sound
from ima.core.types import Sample
from ima.data.corpora.captions import Clotho
from ima.data.shapes import Shapes
from ima.data.source import Source
from ima.data.stampworld.audio import StampAudio
from ima.data.stampworld.audio_qa import StampAudioQa
from ima.data.stampworld.pope import StampPope
from ima.data.stampworld.scenes import StampScenes
from ima.data.stampworld.single import StampSingle
from ima.data.stampworld.video import StampVideo
from ima.data.stampworld.video_qa import StampVideoQa
from ima.data.stampworld.vqa import StampVqa


class Small(Source):
    """Two samples about each of two media, in two splits; texts with commas, quotes and line ends' enemies."""

    splits = ("train", "T0", "T1")

    def __init__(self, modality: str, asks: bool, num_captions: int = 5) -> None:
        self.name, self.modality, self.asks, self.num = f"small/{modality}", modality, asks, num_captions

    @property
    def fingerprint(self) -> str:
        return "small-1"

    def samples(self, split: str) -> list[Sample]:
        if split == "T1":
            return []
        if self.asks:
            return [
                Sample(f"{split}/{m}/{q}", split, split, self.modality, ("a dog, \"two\"",), f"What is {q}, then?",
                       f"cluster {m}", {"m": m}, medium_id=f"{split}/{m}")
                for m in range(2) for q in range(2)
            ]  # fmt: skip
        texts = [tuple(f'text {i} of {m}, or "{split}"; naïve' for i in range(self.num)) for m in range(2)]
        return [
            Sample(f"{split}/{m}", split, split, self.modality, texts[m], "", f"cluster {m}", {"m": m})
            for m in range(2)
        ]  # fmt: skip

    def medium(self, sample: Sample) -> Medium:
        number = sample.facts["m"] + (10 if sample.split == "T0" else 0)
        noise = np.random.default_rng(number).integers(0, 256, (5, 18, 25, 3), dtype=np.uint8)
        if self.modality == "audio":
            return Sound((noise.reshape(-1).astype(np.float32) / 128 - 1) / 3, 11025)
        frames = tuple(Image.fromarray(frame) for frame in noise)
        return frames[0] if self.modality == "image" else Frames(frames, fps=8.0)


def arrays(medium: Medium) -> np.ndarray:
    if isinstance(medium, Sound):
        return medium.wave
    if isinstance(medium, Clip):
        return np.stack([np.asarray(frame) for frame in medium.frames(range(medium.num_frames))])
    return np.asarray(medium.convert("RGB"))


def assert_same(source: Source, folder: Path, one_answer: bool = False) -> None:
    again: Any = source_of("exported", folder)
    filled = [split for split in source.splits if source.samples(split)]
    assert again.modality == source.modality and list(again.splits) == filled
    for split in filled:
        ours, theirs = source.samples(split), again.samples(split)
        assert len(ours) == len(theirs)
        for mine, read in zip(ours, theirs, strict=True):
            if mine.question:  # VQAv2 has ten answers where a source has fewer
                assert set(mine.references) == set(read.references)
            else:
                assert mine.references == read.references
            assert (mine.question, mine.split, mine.cluster) == (read.question, read.split, read.cluster)
            assert np.array_equal(arrays(source.medium(mine)), arrays(again.medium(read)))
        pairs = {(mine.medium_key, read.medium_key) for mine, read in zip(ours, theirs, strict=True)}
        assert len(pairs) == len({mine.medium_key for mine in ours}) == len({read.medium_key for read in theirs})


@pytest.mark.parametrize("asks", [False, True], ids=["captions", "questions"])
@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_every_kind_comes_back_as_it_was(tmp_path: Path, modality: str, asks: bool) -> None:
    source = Small(modality, asks)
    assert export(source, tmp_path / "out") == 4
    assert_same(source, tmp_path / "out")


NUMS = dict.fromkeys(("num_train", "num_val", "num_t0", "num_t1", "num_t2"), 4)


@pytest.mark.parametrize("name", ["single", "scenes", "vqa", "pope", "video", "video_qa", "audio", "audio_qa"])
def test_stampworld_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    def stamps(**more: Any) -> dict[str, Any]:
        folder, table = draw_stamps(tmp_path / "stamps")
        return {"folder": str(folder), "table": str(table), "nouns": "all", "size": 96} | more

    def sounds() -> dict[str, Any]:
        folders, table = make_sounds(tmp_path / "sounds")
        return {"folders": folders, "table": str(table)} | NUMS

    source: Source
    match name:
        case "single":
            source = StampSingle(**stamps(views=1))
        case "scenes":
            source = StampScenes(**stamps(**NUMS))
        case "vqa":
            source = StampVqa(**stamps(**NUMS))
        case "pope":
            source = StampPope(**stamps(num_val=2, num_t0=4, num_t1=4, num_present=1))
        case "video":
            source = StampVideo(**stamps(**NUMS))
        case "video_qa":
            source = StampVideoQa(**stamps(**NUMS))
        case "audio":
            source = StampAudio(**sounds())
        case _:
            source = StampAudioQa(**sounds())
    export(source, tmp_path / "out")
    assert_same(source, tmp_path / "out")


def test_clips_keep_their_frames_and_their_rate(tmp_path: Path) -> None:
    source = Small("video", False)
    export(source, tmp_path / "out")
    clip = (read := source_of("exported", tmp_path / "out")).medium(read.samples("T0")[1])
    assert (clip.num_frames, clip.fps) == (5, 8.0)


def test_five_captions_are_a_clotho_too(tmp_path: Path) -> None:
    export(Small("audio", False), tmp_path / "out")
    splits = {"T0": {"annotations": "clotho_captions_T0.csv", "media": "media/T0/{file_name}"}}
    clotho, caps = Clotho(str(tmp_path / "out"), splits, "x"), source_of("exported", tmp_path / "out")
    assert [s.references for s in clotho.samples("T0")] == [s.references for s in caps.samples("T0")]
    export(Small("audio", False, num_captions=3), tmp_path / "three")
    assert not list((tmp_path / "three").glob("clotho*"))


def test_lossy_media_are_nearly_the_same(tmp_path: Path) -> None:
    source = Shapes(num_train=4, num_test=4)
    for lossy in (False, True):
        export(source, tmp_path / str(lossy), lossy, ["train"])
        read = source_of("exported", tmp_path / str(lossy))
        assert len(list((tmp_path / str(lossy)).rglob("*.jpg" if lossy else "*.png"))) == 4
        assert read.splits == ("train",)
        for mine, other in zip(source.samples("train"), read.samples("train"), strict=True):
            difference = arrays(source.medium(mine)).astype(int) - arrays(read.medium(other))
            assert abs(difference).mean() < 4
    export(Small("video", False), tmp_path / "film", lossy=True)  # odd sides
    read = source_of("exported", tmp_path / "film")
    assert read.medium(read.samples("train")[0]).frames([0])[0].size == (24, 18)


def test_the_command_writes_what_data_exported_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["shapes", "--out", str(tmp_path / "out"), "data.num_train=3", "data.num_test=3"])
    out = capsys.readouterr().out
    assert code == 0 and f"data=exported data.folder={tmp_path / 'out'}" in out
    assert_same(Shapes(num_train=3, num_test=3), tmp_path / "out")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["shapse"], "data: .*shapes"),
        (["shapes", "data.num_trian=3"], "num_train"),
        (["shapes", "--splits", "T2"], "--splits: .* has no 'T2'"),
        (["coco"], "data.folder: missing"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="--out: .*not an empty folder"):
        export(Small("image", False), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_was_cut_short_has_no_export_json(tmp_path: Path) -> None:
    class Breaks(Small):
        def medium(self, sample: Sample) -> Medium:
            if sample.split == "T0":
                raise KeyboardInterrupt
            return super().medium(sample)

    with pytest.raises(KeyboardInterrupt):
        export(Breaks("image", False), tmp_path / "out")
    assert not (tmp_path / "out" / "export.json").exists()
    with pytest.raises(Exception, match=r"export.json is not there"):
        source_of("exported", tmp_path / "out")
    export(Small("image", False), tmp_path / "out")  # the same command again
    assert_same(Small("image", False), tmp_path / "out")


def test_samples_without_a_text_are_named(tmp_path: Path) -> None:
    class Mute(Small):
        def samples(self, split: str) -> list[Sample]:
            return [replace(sample, references=()) for sample in super().samples(split)]

    with pytest.raises(UserError, match="sample train/0 has no reference text"):
        export(Mute("image", False), tmp_path / "out")
