"""Environment, files and command line: who decides what a run on W&B is called and where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ima.core.types import Row
from ima.pipeline.loggers.wandb_points import Points, Tail
from ima.pipeline.loggers.wandb_settings import VARIABLES, chosen, names
from ima.runs.results import RowWriter


@pytest.mark.parametrize("key", VARIABLES)
def test_the_environment_wins_over_files_and_the_command_line_over_both(key: str) -> None:
    given, environment = {"mode": "offline", key: "file"}, {VARIABLES[key]: "environment"}
    wanted = ["environment"] if key == "tags" else "environment"
    assert chosen(given, [], {})[key] == "file"
    assert chosen(given, ["seed=1"], environment)[key] == wanted
    assert chosen(given, [f"logger.{key}=typed"], environment)[key] == "file", "what was typed is composed already"
    assert chosen(given, [f"++logger.{key}=typed"], environment)[key] == "file"
    assert chosen(given, [], {VARIABLES[key]: ""})[key] == "file"


def test_tags_of_the_environment_are_a_list() -> None:
    assert chosen({"mode": "offline"}, [], {"WANDB_TAGS": "a, b,"})["tags"] == ["a", "b"]


@pytest.mark.parametrize(("value", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")])
def test_a_mode_that_sends_nothing_is_overridden_by_nothing(value: str, mode: str) -> None:
    typed = ["logger=wandb", "logger.mode=online"]
    assert chosen({"mode": "online"}, typed, {"WANDB_MODE": value})["mode"] == mode
    assert chosen({"mode": "online"}, typed, {"WANDB_MODE": "online", "WANDB_DISABLED": "true"})["mode"] == "disabled"


def test_mode_online_wins_over_the_default_and_not_over_what_was_typed() -> None:
    environment = {"WANDB_MODE": "online"}
    assert chosen({"mode": "offline"}, ["seed=1"], environment)["mode"] == "online"
    assert chosen({"mode": "offline"}, ["logger=offline"], environment)["mode"] == "offline"


def test_an_evaluation_beside_its_run_is_called_by_what_was_changed(tmp_path: Path) -> None:
    typed = [f"checkpoint={tmp_path}/demo", "intervention=skip_ffn", "+intervention.skip_ffn.start=4", "logger=offline"]
    folder = tmp_path / "demo" / "evaluate-0123"
    assert names(folder, typed, "evaluate") == {"name": "demo: intervention=skip_ffn skip_ffn.start=4"}
    assert names(folder, typed[:1], "evaluate") == {"name": "demo: evaluate"}
    assert names(tmp_path / "mine", typed, "evaluate") == {"name": "mine"}


def test_a_job_of_a_multirun_is_called_by_what_its_siblings_do_not_share(tmp_path: Path) -> None:
    shared = ["experiment=smoke", "seed=0,1", "encoder=noise,timm"]
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": shared}}}))
    typed = [
        "experiment=smoke",
        "seed=1",
        "encoder=noise",
        "logger=offline",
        "hydra.job.num=3",
        "checkpoint=outputs/demo",
    ]
    wanted = {"name": "seed=1 encoder=noise checkpoint=demo", "group": tmp_path.name}
    assert names(tmp_path / "0123", typed, "train") == wanted
    assert names(tmp_path / "0123", shared[:1], "train")["name"] == "0123"


def test_rows_are_points_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Also where the file is begun anew and the same rows come again."""
    writer, tail, points = RowWriter(tmp_path / "rows.jsonl"), Tail(tmp_path / "rows.jsonl"), Points()
    assert list(points.of(tail.rows())) == []
    loss = [Row("r", "train_loss", float(step), step=step, epoch=0, split="train") for step in range(4)]
    writer.write(loss[:2])
    writer.write([Row("r", "val_loss", 3.0, step=1, epoch=0, split="val")])
    first = list(points.of(tail.rows()))
    assert first == [(0, 0, {"train/loss": 0.0}), (0, 1, {"train/loss": 1.0, "val/loss": 3.0})]
    (tmp_path / "rows.jsonl").write_text("")
    assert tail.rows() == []
    writer.write(loss)
    again = Points(sent={name: list(place) for name, place in points.sent.items()})
    assert list(again.of(tail.rows())) == [(0, 2, {"train/loss": 2.0}), (0, 3, {"train/loss": 3.0})]


def test_a_line_that_is_half_written_waits_for_its_end(tmp_path: Path) -> None:
    path, tail = tmp_path / "rows.jsonl", Tail(tmp_path / "rows.jsonl")
    RowWriter(path).write([Row("r", "val_loss", 1.0, epoch=0)])
    text = path.read_text()
    path.write_text(text + text[:20])
    assert len(tail.rows()) == 1
    path.write_text(text + text)
    assert len(tail.rows()) == 1
