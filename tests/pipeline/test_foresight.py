"""A long training is told as one after its first steps: steps and measurements to come, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ima.pipeline.foresight import NUM_TIMED, Foresight, duration

MODULE: Any = SimpleNamespace(adapter=nn.Linear(1000, 1000, bias=False))  # 4 MB


def told(seconds: float, num_steps: float, an_epoch: int, measured: float = 0.0, main: bool = True) -> list[str]:
    """What is said of a training whose steps take so long; the first one takes a hundred times as long."""
    said: list[str] = []
    now = [1000.0]
    callback = Foresight(Path("run"), lambda: measured, lambda: now[0], said.append)
    for step in range(1, 20):
        now[0] += seconds * (100 if step == 1 else 1)
        trainer: Any = SimpleNamespace(
            global_step=step,
            is_global_zero=main,
            estimated_stepping_batches=num_steps,
            num_training_batches=an_epoch,
            accumulate_grad_batches=1,
        )
        callback.on_train_batch_end(trainer, MODULE, None, None, step)
    return said


def test_a_long_training_is_told_once_with_its_parts() -> None:
    (line,) = told(2.0, 1000, 250, measured=30)
    steps = 1000 - 1 - NUM_TIMED
    assert line == (
        f"run: about {duration(steps * 2 + 4 * 30)} to come: {steps} steps of 2 s and 4 measurements of 30 s; about "
        "28 MB of checkpoints"
    )


@pytest.mark.parametrize(
    ("seconds", "num_steps", "main"),
    [(0.1, 1000, True), (2.0, float("inf"), True), (2.0, -1, True), (2.0, 1000, False)],
)
def test_of_a_short_an_endless_and_a_further_rank_nothing_is_said(seconds: float, num_steps: float, main: bool) -> None:
    assert told(seconds, num_steps, 250, main=main) == []


def test_measurements_alone_can_be_long() -> None:
    assert told(0.01, 1000, 250, measured=200)


def test_durations_are_minutes_then_hours() -> None:
    assert [duration(seconds) for seconds in (601, 7100, 7260)] == ["10 min", "118 min", "2 h 01 min"]
