"""How long a training takes and what it leaves on disk, said after its first steps where that is long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn

LONG = 600.0  # seconds: of less nothing is said
NUM_TIMED = 5  # steps that are timed; the one before them is slower
LEFT_BY_OPTIMIZER = 3  # weights and two moments, in the last checkpoint


class Foresight(Callback):
    """measured: seconds that measurements have taken so far. clock, say: of tests."""

    def __init__(
        self,
        folder: Path,
        measured: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.measured, self.clock, self.say = folder, measured, clock, say
        self.first: int | None = None  # the step after which time is taken
        self.start = 0.0
        self.has_spoken = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self.has_spoken or not trainer.is_global_zero:
            return
        if self.first is None:
            self.first, self.start = trainer.global_step, self.clock() - self.measured()
        elif trainer.global_step - self.first >= NUM_TIMED:
            self.has_spoken = True
            seconds = (self.clock() - self.measured() - self.start) / (trainer.global_step - self.first)
            if line := self.line(trainer, pl_module, seconds):
                self.say(line)

    def line(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float) -> str:
        """Empty for a training that is short, or whose number of steps is not known."""
        total = float(trainer.estimated_stepping_batches)
        if not math.isfinite(total) or total <= 0:
            return ""
        num = max(1, math.ceil(total / max(1, steps_of_epoch(trainer))))  # measurements to come, one an epoch
        left = (total - trainer.global_step) * seconds + num * self.measured()
        if left < LONG:
            return ""
        adapter: Any = pl_module.adapter
        disk = bytes_of(adapter) * (num + LEFT_BY_OPTIMIZER) / 1e6
        return (
            f"{self.folder}: about {duration(left)} to come: {total - trainer.global_step:.0f} steps of "
            f"{seconds:.2g} s and {num} measurements of {self.measured():.0f} s; about {disk:.0f} MB of checkpoints"
        )


def steps_of_epoch(trainer: pl.Trainer) -> float:
    return float(trainer.num_training_batches) / max(1, trainer.accumulate_grad_batches)


def bytes_of(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
