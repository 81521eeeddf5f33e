"""Flags, callbacks, optimizers and loggers as Lightning's users know them, in runs of seconds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from test_training import NOISE, config_of, curve, one_thread, rows_of  # noqa: F401 (a fixture)

from ima.core.errors import UserError
from ima.pipeline.fit import train
from ima.runs.record import RunRecord, read_result

HERE = "test_trainer_flags"
# 12 samples in batches of 6: two steps an epoch
SMALL = [*NOISE, "data.num_train=12", "data.num_test=3", "trainer.max_epochs=2", "evaluation.tracks=[]"]
BARE = [*SMALL, "alignment=none"]

pytestmark = pytest.mark.usefixtures("one_thread")


class Watch(pl.Callback):
    """A callback of somebody's own: what it was called for."""

    seen: list[str] = []

    def __init__(self, word: str = "step") -> None:
        self.word = word

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(f"{self.word} {trainer.global_step}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(f"ima {'ima/mean' in trainer.callback_metrics} {'val/loss' in trainer.callback_metrics}")


class Die(pl.Callback):
    """Saves after a pass, as a kill right after a checkpoint would find it, and ends the run."""

    at = 0

    def __init__(self) -> None:
        self.num = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.num += 1
        if self.num == self.at:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.safetensors")
            raise RuntimeError("the plug was pulled")


def weights(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


def run(folder: Path, *overrides: str, base: list[str] = BARE, **groups: Any) -> RunRecord:
    """groups: nodes as a yaml file of one's own would have them."""
    return train(config_of(*base, *overrides) | groups, folder, "test")


def epochs(folder: Path) -> list[tuple[int, int]]:
    """(epoch, step) of each measurement, in order."""
    return [(key[1], key[2]) for key in rows_of(folder) if key[0] == "val_loss"]


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch_and_it_is_measured_there(tmp_path: Path) -> None:
    record = run(tmp_path, "trainer.max_epochs=-1", "trainer.max_steps=3", base=SMALL)
    assert record.is_ok and record.facts["num_steps"] == 3 and record.facts["num_epochs"] == 2
    assert epochs(tmp_path) == [(0, 0), (1, 2), (2, 3)] and len(curve(tmp_path, "lr")) == 3
    assert "ima/mean" in record.metrics
    rates = curve(tmp_path, "lr")
    whole = run(tmp_path / "whole", "trainer.max_epochs=-1", "trainer.max_steps=7")
    assert whole.facts["num_steps"] == 7 and curve(tmp_path / "whole", "lr")[1] > rates[-1], (
        "the cosine ends with the run"
    )


def test_passes_of_a_step_change_nothing_but_rounding_and_must_divide_its_samples(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one"), run(tmp_path / "two", "trainer.accumulate_grad_batches=2")
    assert one.facts["num_steps"] == two.facts["num_steps"] == 4
    assert curve(tmp_path / "two", "train_loss") == pytest.approx(curve(tmp_path / "one", "train_loss"), rel=1e-5)
    assert curve(tmp_path / "two", "lr") == curve(tmp_path / "one", "lr")
    with pytest.raises(UserError, match=r"^trainer\.accumulate_grad_batches: 4 passes do not divide the 6 samples"):
        run(tmp_path / "four", "trainer.accumulate_grad_batches=4")


def test_limit_train_batches_shortens_epochs_and_the_next_one_has_its_own_order(tmp_path: Path) -> None:
    short = run(tmp_path / "short", "trainer.limit_train_batches=3", "data.num_train=30", "trainer.max_epochs=2")
    assert short.facts["num_steps"] == 6 and short.facts["num_epochs"] == 2
    losses = curve(tmp_path / "short", "train_loss")
    again = run(tmp_path / "again", "trainer.overfit_batches=3", "data.num_train=30", "trainer.max_epochs=2")
    fixed = curve(tmp_path / "again", "train_loss")
    assert again.is_ok and fixed[:3] == losses[:3] and fixed[3:] != losses[3:], "overfitting shows the same batches"


def test_a_fast_dev_run_goes_through_everything_and_is_no_finished_run(tmp_path: Path) -> None:
    record = run(tmp_path, "trainer.fast_dev_run=true", base=SMALL)
    assert not record.is_ok and str(record.reason).startswith("trainer.fast_dev_run: all parts of the run work")
    assert read_result(tmp_path)["status"] == "interrupted" and not (tmp_path / "checkpoints").exists()
    assert run(tmp_path).facts["num_steps"] == 4


def test_early_stopping_on_alignment_ends_the_run_and_its_end_is_measured_as_such(tmp_path: Path) -> None:
    """A threshold that any alignment passes: it stops after the first epoch."""
    record = run(
        tmp_path, "callbacks=[default,early_stopping]", "callbacks.early_stopping.stopping_threshold=-2",
        "evaluation.tracks=null", "trainer.max_epochs=5", base=SMALL,
    )  # fmt: skip
    assert record.is_ok and record.facts["num_epochs"] == 1 and record.facts["num_steps"] == 2
    assert epochs(tmp_path) == [(0, 0), (1, 2)] and "T0/noun_accuracy" in record.metrics
    assert (tmp_path / "predictions.jsonl").read_text()


def test_a_callback_of_ones_own_sees_the_metrics_of_each_measurement(tmp_path: Path) -> None:
    Watch.seen = []
    run(tmp_path, f"callbacks={{watch: {{_target_: {HERE}.Watch, word: made}}}}", base=SMALL)
    assert Watch.seen == ["made 1", "made 2", "ima True True", "made 3", "made 4", "ima True True"]
    with pytest.raises(UserError, match=r"^callbacks\.odd: a Shapes is no lightning.pytorch.Callback"):
        run(tmp_path / "odd", "callbacks={odd: {_target_: ima.data.shapes.Shapes}}")


def test_a_model_checkpoint_of_lightnings_keeps_the_best_alignment(tmp_path: Path) -> None:
    node = "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: ima/mean, mode: max, filename: best}"
    run(tmp_path, f"callbacks={{best: {node}}}", base=SMALL)
    assert [path.name for path in tmp_path.rglob("best*")] == ["best.ckpt"]


def test_an_optimizer_and_a_schedule_of_ones_own_are_yaml(tmp_path: Path) -> None:
    torch_optim = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}
    step = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5}
    run(tmp_path, optimizer=torch_optim, scheduler=step)
    assert curve(tmp_path, "lr") == [0.1, 0.1, 0.05, 0.05]
    one = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1}
    assert run(tmp_path / "cycle", scheduler=one).is_ok, "the number of steps is filled in"


# Of one pass a step every place; of three those around a step, its end, an epoch's end and the run's.
@pytest.mark.parametrize(("passes", "places"), [(1, (1, 2, 3, 4)), (3, (1, 2, 3, 6, 7, 11, 12))], ids=["1", "3"])
def test_a_run_resumed_after_any_pass_ends_as_one_that_was_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int, places: tuple[int, ...]
) -> None:
    flags = [f"trainer.accumulate_grad_batches={passes}", "callbacks.checkpoint.every_num_steps=100"]
    run(tmp_path / "whole", *flags)
    for at in places:
        folder = tmp_path / str(at)
        config = config_of(*BARE, *flags)
        monkeypatch.setattr(Die, "at", at)
        mortal = {**config, "callbacks": {**config["callbacks"], "die": {"_target_": f"{HERE}.Die"}}}
        with pytest.raises(RuntimeError, match="plug"):
            train(mortal, folder, "test")
        assert train(config, folder, "test").is_ok
        assert weights(folder) == weights(tmp_path / "whole"), at
        assert rows_of(folder) == rows_of(tmp_path / "whole"), at


def test_alignment_by_step_is_measured_and_kept_there(tmp_path: Path) -> None:
    record = run(tmp_path, "alignment.every_num_steps=3", "trainer.max_epochs=4", base=SMALL)
    steps = [key[2] for key in rows_of(tmp_path) if key[0] == "sim" and key[4] == 0 and key[8] == "raw"]
    assert sorted(set(steps)) == [0, 3, 6, 8] and record.facts["num_steps"] == 8
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*.safetensors")} == {
        "step-000003.safetensors", "step-000006.safetensors",
    }  # fmt: skip


def test_numbers_reach_a_csv_logger(tmp_path: Path) -> None:
    node = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "csv", "version": "0"}
    run(tmp_path, base=SMALL, logger=node)
    with (tmp_path / "csv" / "0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "val/loss", "ima/mean"} <= rows[0].keys()
    found = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert found == pytest.approx(curve(tmp_path, "train_loss"))


def test_precision_is_the_trainers(tmp_path: Path) -> None:
    assert run(tmp_path, "trainer.precision=bf16-mixed").is_ok
    assert torch.isfinite(torch.tensor(curve(tmp_path, "train_loss"))).all()
