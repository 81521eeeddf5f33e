"""Steering: perceptual tokens are moved towards where texts lie, in one layer.

`alpha` times (mean text state - mean perceptual state) of the layer, both over a calibration draw of the run's training
samples, is added to the perceptual tokens: the causal test of what a distance between the two means. The control is a
random direction of the same length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.base import CalibrationSource, Intervention, Setting
from ima.interventions.hooks import Args, Kwargs, before, described, states_of, with_states
from ima.interventions.work import NOTHING, Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM


class Steer(Intervention):
    """layer: 0 is what enters the first block, l the output of block l. alpha 0 changes nothing, bit for bit.

    run: whose training samples the means are of (None: the run that is evaluated), num_examples of them."""

    RANGES = {"alpha": (-1.0, 1.0), "layer": (0, None), "num_examples": (2, None)}
    saves_time = False

    def __init__(
        self,
        alpha: float = 0.5,
        layer: int = 0,
        direction: Literal["text", "random"] = "text",
        num_examples: int = 64,
        run: str | None = None,
        seed: int = 0,
    ) -> None:
        if not -1 <= alpha <= 1:
            raise UserError(f"alpha: {alpha} is outside -1 to 1")
        if direction not in ("text", "random"):
            raise UserError(f"direction: {direction!r} is not one of text, random")
        if layer < 0:
            raise UserError(f"layer: {layer} is no layer; use 0 or more")
        self.alpha, self.layer, self.direction, self.run = alpha, layer, direction, run
        self.num_examples, self.seed = num_examples, seed
        self._shift_D: Tensor | None = None

    def check(self, llm: LlmFacts) -> None:
        if self.layer >= llm.num_blocks:
            raise UserError(
                f"layer: {self.layer}, but {llm.name} has layers 0 to {llm.num_blocks - 1} that a block reads"
            )

    def resolve(self, llm: FrozenLLM, setting: Setting) -> Steer:
        self.check(llm.facts)
        run = self.run if self.run is not None else setting.run
        if self.alpha == 0:
            return self
        if run is None or setting.calibrate is None:
            raise UserError("run: name the run folder whose samples the means are of")
        self._shift_D = self.shift(llm, setting.calibrate(run, self.num_examples, self.seed))
        return self

    def shift(self, llm: FrozenLLM, source: CalibrationSource) -> Tensor:
        """What is added for alpha 1, in fp32. Raises UserError where a role has no token."""
        p_D, t_D = mean_states(llm, source, self.layer)
        shift_D = t_D - p_D
        if self.direction == "random":
            drawn_D = torch.randn(len(shift_D), generator=torch.Generator().manual_seed(self.seed)).to(shift_D)
            shift_D = drawn_D * (shift_D.norm() / drawn_D.norm())
        return shift_D

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)
        shift_D = self._shift_D
        if self.alpha == 0 or shift_D is None:  # nothing, or not resolved yet
            yield
            return

        def move(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            assert llm.running is not None, "tokens are steered in FrozenLLM's passes"
            x_BSD = states_of(args, kwargs)
            percept_BS1 = (llm.running.roles_BS == Role.PERCEPT)[..., None]
            moved_BSD = x_BSD + (self.alpha * shift_D).to(x_BSD)
            return with_states(args, kwargs, torch.where(percept_BS1, moved_BSD, x_BSD))

        with ExitStack() as stack:
            before(stack, llm.table.blocks[self.layer], move)
            yield

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return NOTHING

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        return f"percepts moved by {self.alpha:g}, {self.direction}" if block == self.layer and self.alpha else ""

    def describe(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return described("steer", told, "saves no FLOPs")


@torch.no_grad()
def mean_states(llm: FrozenLLM, source: CalibrationSource, layer: int) -> tuple[Tensor, Tensor]:
    """Mean state of perceptual tokens and of prompt and answer, all tokens alike, at what enters block `layer`."""
    sums = torch.zeros(2, llm.stream_width, dtype=torch.float64, device=llm.device)
    counts = torch.zeros(2, dtype=torch.float64, device=llm.device)

    def see(args: Args, kwargs: Kwargs) -> None:
        assert llm.running is not None
        roles_BS, x_BSD = llm.running.roles_BS, states_of(args, kwargs).double()
        text_BS = (roles_BS == Role.PROMPT) | (roles_BS == Role.ANSWER)
        for side, mask_BS in enumerate((roles_BS == Role.PERCEPT, text_BS)):
            sums[side] += x_BSD[mask_BS].sum(0)
            counts[side] += mask_BS.sum()

    with ExitStack() as stack:
        before(stack, llm.table.blocks[layer], see)
        for x_BSD, roles_BS in source.inputs(llm):
            llm(x_BSD, roles_BS)
    if not bool((counts > 0).all()):
        raise UserError("run: its samples have no perceptual or no textual token; nothing to steer between")
    means = (sums / counts[:, None]).float()
    return means[0], means[1]
