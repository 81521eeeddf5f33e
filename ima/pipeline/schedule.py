"""The default learning-rate schedule: a warm-up, then a cosine. An ordinary scheduler of torch.

`total_steps` is filled in by the run, for any scheduler whose constructor has a parameter of that name (or `T_max`,
`num_training_steps`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

TOTALS = ("total_steps", "T_max", "num_training_steps")


class WarmupCosine(LambdaLR):
    """Each group's rate rises from `warmup_from` of it over `warmup_ratio` of the steps and falls along a cosine to
    `final_ratio` of it."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int = 1,
        warmup_ratio: float = 0.05,
        warmup_from: float = 0.1,
        final_ratio: float = 0.05,
    ) -> None:
        self.total_steps = total_steps
        self.warmup_ratio, self.warmup_from, self.final_ratio = warmup_ratio, warmup_from, final_ratio
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Of the peak rate, before the step with this number."""
        warmup = max(1, round(self.warmup_ratio * self.total_steps))
        if step < warmup:
            return self.warmup_from + (1 - self.warmup_from) * step / warmup
        done = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def with_total(make: Callable[..., Any], total_steps: int) -> Callable[..., Any]:
    """A scheduler's factory that knows how many steps there will be, where it asks and the config does not say."""
    parameters = inspect.signature(make).parameters
    given = getattr(make, "keywords", {})
    filled = {name: total_steps for name in TOTALS if name in parameters and name not in given}

    def made(optimizer: torch.optim.Optimizer) -> Any:
        return make(optimizer, **filled)

    return made
