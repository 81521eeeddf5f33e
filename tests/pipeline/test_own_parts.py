"""A config tree outside the repository: a callback, an optimizer and a logger of one's own, each a yaml file, stacked
on ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from multiruns import TINY

from ima.cli.scripts import run_script

PARTS = """
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger


class Watch(pl.Callback):
    def __init__(self, place: str, word: str = "seen") -> None:
        self.place, self.word = Path(place), word

    def on_train_epoch_end(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        kinds = type(optimizer).__name__, optimizer.defaults["momentum"], len(trainer.loggers)
        with self.place.open("a") as file:
            print(self.word, trainer.current_epoch, *kinds, file=file)


class Slow(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.5, momentum: float = 0.25) -> None:
        super().__init__(params, lr=lr, momentum=momentum)


class Own(CSVLogger):
    def __init__(self, save_dir: str, name: str = "", version: str = "own") -> None:
        super().__init__(save_dir, name, version)
"""
FILES = {
    "callbacks/watch.yaml": "# what it saw\nwatch:\n  _target_: parts_of_ones_own.Watch\n"
    "  place: ${hydra:runtime.output_dir}/watched.txt\n",
    "optimizer/slow.yaml": "# plain\n_target_: parts_of_ones_own.Slow\n_partial_: true\nlr: 0.01\n",
    "logger/own.yaml": "# a second table\n_target_: parts_of_ones_own.Own\n_partial_: true\n",
}


def test_parts_of_ones_own_train_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    (tmp_path / "parts_of_ones_own.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("ima.pipeline.run.write_report", lambda folders: "no page")
    words = [word for word in TINY if not word.startswith("logger=")]
    words += ["-cd", "conf", "encoder=noise", "encoder.dim=8", "encoder.num_tokens=4", "name=mine"]
    words += ["callbacks=[default,watch]", "callbacks.watch.word=saw", "optimizer=slow", "logger=[csv,own]"]
    assert run_script("train", words) == 0
    folder = tmp_path / "outputs" / "mine"
    assert (folder / "watched.txt").read_text().splitlines() == ["saw 0 Slow 0.25 2", "saw 1 Slow 0.25 2"]
    assert (folder / "checkpoints" / "last.safetensors").is_file()
    tables = []
    for version in ("csv", "own"):
        with (folder / version / "metrics.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert tables[0] == tables[1] and {"train/loss", "val/loss", "ima/mean"} <= tables[0][0].keys()
    config = json.loads((folder / "result.json").read_text())["config"]
    assert config["optimizer"]["lr"] == 0.01
    assert list(config["loggers"]) == ["own"] and list(config["callbacks"]) == ["checkpoint", "watch"]
