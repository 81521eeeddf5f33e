"""Missing and damaged media in a run: an error that names the file, or left out, counted and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import corpora_files
import pytest
import torch
from launcher import Launcher
from PIL import Image
from test_corpora import source_of
from test_data import Means

from ima.data.feature_cache import FeatureStore
from ima.data.source import MediumError
from ima.pipeline.data_checks import Look
from ima.runs.record import read_result

NUM = 12
BAD = {2: "gone", 5: "cut", 7: "empty"}


def corpus(folder: Path) -> Path:
    """A COCO of twelve training pictures of which three are bad, four for val (one bad) and test."""
    images = []
    for number in range(NUM + 8):
        split = "restval" if number < 3 else "train" if number < NUM else "val" if number < NUM + 4 else "test"
        path = folder / "train2014" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 50 + number).convert("RGB").save(path)
        data = path.read_bytes()
        match BAD.get(number, "gone" if number == NUM + 1 else ""):
            case "gone":
                path.unlink()
            case "cut":
                path.write_bytes(data[: len(data) // 2])
            case "empty":
                path.write_bytes(b"")
        sentences = [{"tokens": [], "raw": f"a thing {number % 3}", "imgid": number, "sentid": number}]
        images.append({"filepath": "train2014", "filename": path.name, "imgid": number, "cocoid": number,
                       "split": split, "sentids": [number], "sentences": sentences})  # fmt: skip
    corpora_files.to_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_store_leaves_bad_media_out_and_knows_why(tmp_path: Path, num_workers: int) -> None:
    source = source_of("coco", corpus(tmp_path / "coco"), "data.on_bad_medium=skip")
    samples = source.samples("train")
    store = FeatureStore(tmp_path, source, Sized())
    assert store.ensure(samples, batch_size=4, num_workers=num_workers) == NUM - len(BAD)
    bad = {sample.id.rpartition("/")[2] for sample in samples if sample.medium_key in store.bad}
    assert bad == {str(number) for number in BAD}
    assert all("train2014/" in reason and "\n" not in reason for reason in store.bad.values())
    good = [sample for sample in samples if sample.medium_key not in store.bad]
    alone = torch.stack([Sized().preprocess(source.medium(sample)) for sample in good])
    torch.testing.assert_close(store.read(good), Sized()(alone), rtol=1e-3, atol=1e-3)


def test_a_mended_medium_is_encoded_by_the_next_call_and_nothing_else(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "coco")
    source = source_of("coco", folder, "data.on_bad_medium=skip")
    FeatureStore(tmp_path, source, Sized()).ensure(source.samples("train"))
    Image.new("RGB", (8, 8)).save(folder / "train2014" / "2.jpg")
    source = source_of("coco", folder, "data.on_bad_medium=skip")
    store = FeatureStore(tmp_path, source, Sized())
    assert store.ensure(source.samples("train")) == 1 and len(store.bad) == len(BAD) - 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_other_policy_stops_with_one_line(tmp_path: Path, num_workers: int) -> None:
    source = source_of("coco", corpus(tmp_path / "coco"))
    store = FeatureStore(tmp_path, source, Sized())
    with pytest.raises(MediumError, match=r"train2014/2.jpg: not found; data.on_bad_medium=skip leaves") as caught:
        store.ensure(source.samples("train"), num_workers=num_workers)
    assert "\n" not in str(caught.value)


def test_looking_decodes_clips_whose_damage_shows_only_in_frames(tmp_path: Path) -> None:
    corpora_files.msrvtt_qa(tmp_path)
    source = source_of("msrvtt_qa", tmp_path)
    clip = source.medium(source.samples("train")[0])
    assert Look(None)(clip).numel() == 0 and clip.num_decoded >= 8


class Sized(Means):
    """As `Means`, of pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        plain = self.preprocess
        self.preprocess = lambda image: plain(image.resize((4, 4)))


RUN = ["llm=tiny", "data=coco", "trainer.max_epochs=1", "trainer.accelerator=cpu", "loader.batch_size=4",
       "alignment=none", "adapter.hidden=16", "adapter.grid=1", "task.max_new_tokens=3", "logger=none"]  # fmt: skip
KINDS = {
    "cached": ["encoder=random_efficientnet"],
    "live": ["encoder=random_efficientnet", "loader.cache_features=false", "loader.num_workers=1"],
    "noise": ["encoder=noise", "encoder.dim=8", "encoder.num_tokens=4"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("coco"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_without_bad_media_and_says_so(
    launcher: Launcher, folder: Path, tmp_path: Path, kind: str
) -> None:
    argv = [*RUN, *KINDS[kind], f"data.folder={folder}", f"output_dir={tmp_path}", "name=run"]
    stopped = launcher.run("train", argv)
    if kind != "noise":  # which reads no medium
        assert stopped.code == 2 and ".jpg: " in stopped.stderr, stopped.stderr
        assert stopped.stderr.count("\n") == 1, stopped.stderr
    done = launcher.run("train", [*argv, "data.on_bad_medium=skip", "overwrite=true"])
    assert done.code == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: data.on_bad_medium=skip")]
    assert len(warnings) == 1 and "3 of train, 1 of val; the first: " in warnings[0] and "2.jpg" in warnings[0]
    result = read_result(tmp_path / "run")
    assert result["facts"]["skipped_media"] == {"train": 3, "val": 1}
    assert result["facts"]["num_samples"] == {"train": 12, "val": 4, "test": 4}
    assert result["facts"]["num_steps"] == -(-(NUM - len(BAD)) // 4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert sum(line["track"] == "test" for line in lines) == 4


def test_evaluation_leaves_out_the_same(launcher: Launcher, folder: Path, tmp_path: Path) -> None:
    argv = [*RUN, *KINDS["noise"], f"data.folder={folder}", "data.on_bad_medium=skip", f"output_dir={tmp_path}"]
    assert launcher.run("train", [*argv, "name=run"]).code == 0
    done = launcher.run("evaluate", [f"checkpoint={tmp_path / 'run'}", "trainer=default", "evaluation.tracks=[val]",
                                     "trainer.accelerator=cpu", "name=again", f"output_dir={tmp_path}"])  # fmt: skip
    assert done.code == 0, done.stderr
    facts: dict[str, Any] = read_result(tmp_path / "again")["facts"]
    assert facts["skipped_media"] == {"val": 1}


def test_nothing_readable_is_an_error(launcher: Launcher, folder: Path, tmp_path: Path) -> None:
    argv = [*RUN, *KINDS["noise"], f"data.folder={folder}", f"data.media={tmp_path}", "data.on_bad_medium=skip"]
    done = launcher.run("train", [*argv, f"output_dir={tmp_path / 'out'}", "name=run"])
    assert done.code == 2 and "none of the 12 media of 'train' can be read; the first: " in done.stderr, done.stderr


def test_a_corpus_without_a_training_split_says_what_it_is_for(launcher: Launcher, tmp_path: Path) -> None:
    corpora_files.nocaps(tmp_path / "nocaps")
    argv = [*RUN, *KINDS["noise"], "data=nocaps", f"data.folder={tmp_path / 'nocaps'}"]
    done = launcher.run("train", [*argv, f"output_dir={tmp_path / 'out'}", "name=run"])
    assert done.code == 2 and done.stderr.startswith("error: data: nocaps has no training split; measure"), done.stderr
