"""One command trains on a folder of one's own and ends with the score that fits its texts."""

from __future__ import annotations

import csv
from pathlib import Path

import corpora_files
import pytest

from ima.cli.scripts import run_script
from ima.runs.record import read_record

TINY = ["llm=tiny", "trainer.accelerator=cpu", "trainer.max_epochs=1", "loader.batch_size=4", "logger=none",
        "adapter.hidden=8", "task.max_new_tokens=3", "loader.cache_features=false"]  # fmt: skip


@pytest.mark.parametrize(
    ("modality", "header", "encoder", "score"),
    [
        ("image", ("file", "caption"), ["encoder=random_efficientnet", "adapter.grid=1"], "cider_d"),
        ("audio", ("file", "question", "answer"), ["encoder=log_mel", "adapter.grid=1"], "accuracy"),
        ("video", ("file", "caption"), ["encoder=noise_video", "adapter=pool", "adapter.grid=1"], "cider_d"),
    ],
)
def test_a_folder_trains_and_prints_its_score(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    modality: str,
    header: tuple[str, ...],
    encoder: list[str],
    score: str,
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    ending, make = {
        "image": ("jpg", corpora_files.jpg), "audio": ("wav", corpora_files.wav), "video": ("mp4", corpora_files.clip)
    }[modality]  # fmt: skip
    folder = tmp_path / "mine"
    rows = []
    for number in range(14):
        make(folder / f"{number}.{ending}", number)
        rows.append((f"{number}.{ending}", f"the grey {number}", str(number))[: len(header)])
    with open(folder / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    out = tmp_path / "out"
    typed = ["data=folder", f"data.path={folder}", *encoder, *TINY, f"output_dir={out}", "name=mine"]
    assert run_script("train", typed) == 0
    record = read_record(out / "mine")
    assert record.is_ok and record.facts["headline"] == score and record.facts["modality"] == modality
    assert f"test/{score}" in record.metrics
    assert f"test/{score}" in capsys.readouterr().out
