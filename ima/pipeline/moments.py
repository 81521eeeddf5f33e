"""When a run is measured: before its first step, in Lightning's validation loop, and once more when it has ended.

Hides what Lightning's loops say of the place in training, and that a run killed while it was measured is measured again
before its next step. A measurement inside fit is a callback with `on_validation_epoch_end`; the two outside of the
validation loop (untrained, and trained where training ended between two validations) are made from the same callbacks.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from ima.core.metric_names import VAL_LOSS
from ima.pipeline.recorder import Recorder

WAIT_EVERY = 16  # steps on a GPU, which would stand still meanwhile
DUE = "ima_due"  # of a checkpoint: the measurement that is still to be made at its step, or None


@dataclasses.dataclass(frozen=True)
class Moment:
    """epoch: how many have begun; None for a model that was trained elsewhere. step: optimizer steps made. last:
    training is over, everything is measured."""

    epoch: int | None
    step: int
    last: bool


def moment_of(trainer: pl.Trainer) -> Moment:
    """Where training is; last where this is known before Lightning stops."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    epoch, step = trainer.current_epoch + int(progress.current.ready > 0), trainer.global_step
    whole = progress.is_last_batch and trainer.max_epochs not in (None, -1) and epoch >= int(trainer.max_epochs or 0)
    return Moment(epoch, step, bool(whole or (trainer.max_steps != -1 and step >= trainer.max_steps)))


def may_wait(device: torch.device, step: int) -> bool:
    """Whether the host may wait for what the device computes in this step: now and then; on a CPU always."""
    return device.type == "cpu" or step % WAIT_EVERY == 0


class Part(Callback):
    """Something that is measured: a plain callback of Lightning's. `recorder` is where its numbers go."""

    recorder: Recorder

    def measure(self, epoch: int | None, step: int, last: bool) -> Mapping[str, float]:
        """The metrics found, by name. epoch None: of a model that was trained elsewhere, once."""
        raise AssertionError("each part measures something")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            found = self.measure(**dataclasses.asdict(moment_of(trainer)))
            pl_module.log_dict({name: value for name, value in found.items() if math.isfinite(value)}, batch_size=1)


class Measurements(Callback):
    """Sees to it that the parts measure at the right moments, each once: comes after them."""

    def __init__(self, parts: Sequence[Part], recorder: Recorder) -> None:
        self.parts, self.recorder = parts, recorder
        self.due: Moment | None = Moment(0, 0, last=False)  # the untrained model
        self.done: Moment | None = None
        self.seconds, self.start = 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.due is not None:
            self._measure(trainer, pl_module, self.due)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The mean validation loss of a mixture's entries, under the name that a run of one task has for its own."""
        losses = [part.recorder.latest[name] for part in self.parts for name in part.recorder.latest if is_loss(name)]
        if len(losses) > 1 and not trainer.sanity_checking:
            pl_module.log(VAL_LOSS, statistics.fmean(losses), batch_size=1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._done(moment_of(trainer), self.start)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.done is None or not self.done.last:
            ended = Moment(trainer.current_epoch, trainer.global_step, last=True)  # the epoch counts, whole or not
            moment = dataclasses.replace(self.due, last=True) if self.due is not None else ended
            if self.done is not None and self.done.step == moment.step:
                moment = dataclasses.replace(self.done, last=True)
                self.recorder.forget(moment.step)
            self._measure(trainer, pl_module, moment)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, moment: Moment) -> None:
        """Outside of the validation loop."""
        start = time.perf_counter()
        for part in self.parts:
            found = part.measure(**dataclasses.asdict(moment))
            for logger in trainer.loggers:
                logger.log_metrics(dict(found), step=moment.step)
        self._done(moment, start)

    def _done(self, moment: Moment, start: float) -> None:
        self.done, self.due = moment, None
        self.seconds += time.perf_counter() - start

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        loop = trainer.fit_loop.epoch_loop
        here = moment_of(trainer)
        measured = self.done is not None and self.done.step == here.step
        is_due = not measured and (here.last or loop._should_check_val_fx(trainer.fit_loop._data_fetcher))  # type: ignore[arg-type]
        checkpoint[DUE] = dataclasses.asdict(here) if is_due else None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.due = Moment(**checkpoint[DUE]) if checkpoint.get(DUE) else None

    def state_dict(self) -> dict[str, Any]:
        return {"measured": None if self.done is None else dataclasses.asdict(self.done)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = Moment(**state_dict["measured"]) if state_dict["measured"] else None


def is_loss(name: str) -> bool:
    return name == VAL_LOSS or name.endswith(f"/{VAL_LOSS}")
