"""Configs of before the trainer's flags had Lightning's names are read as if they had been written today."""

from __future__ import annotations

from pathlib import Path

from ima.core.moved_keys import MOVED_KEYS, current_config
from ima.runs.identity import config_hash
from ima.runs.record import read_record

OLD = {"_target_": "ima.settings.Training", "epochs": 3, "lr": 0.1, "clip_norm": 0.0, "micro_batch_size": 4,
       "batch_size": 12, "tracks": ["T0"], "save_every_num_steps": 7, "accelerator": "cpu", "fast": False}  # fmt: skip


def test_the_old_node_becomes_the_nodes_of_today() -> None:
    found = current_config({"trainer": OLD, "llm": {"_target_": "ima.models.llm.load.tiny"}, "seed": 1})
    assert found["trainer"] == {
        "_target_": "lightning.pytorch.Trainer", "max_epochs": 3, "gradient_clip_val": 0.0, "log_every_n_steps": 1,
        "accumulate_grad_batches": 3, "accelerator": "cpu", "devices": 1,
    }  # fmt: skip
    assert found["loader"] == {"_target_": "ima.config.settings.Loader", "batch_size": 12}
    assert found["optimizer"]["lr"] == 0.1 and found["optimizer"]["weight_decay"] == 0.02
    assert found["evaluation"]["tracks"] == ["T0"] and found["llm"]["fast"] is False and found["seed"] == 1
    assert found["callbacks"]["checkpoint"]["every_num_steps"] == 7


def test_what_is_of_today_stays_and_what_was_old_is_renamed_once() -> None:
    today = current_config({"trainer": OLD})
    assert current_config(today) == today
    assert current_config({"seed": 1, "trainer": None}) == {"seed": 1, "trainer": None}


def test_stages_of_before_have_the_keys_of_today() -> None:
    node = {"_target_": "ima.settings.Stage", "epochs": 2, "save_every_num_steps": 9, "lr": 0.1}
    found = current_config({"stage": {"one": node}})["stage"]
    assert found == {"one": {"_target_": "ima.config.settings.Stage", "max_epochs": 2, "lr": 0.1}}


def test_keys_move_to_other_names_only() -> None:
    assert not MOVED_KEYS.keys() & set(MOVED_KEYS.values())


def test_records_of_before_are_read_with_the_keys_of_today() -> None:
    config = read_record(Path(__file__).resolve().parents[1] / "artefacts" / "run").config
    assert config["loader"]["batch_size"] == 8 and config["trainer"]["max_epochs"] == 2
    assert config_hash(config) == config_hash(current_config(config))
