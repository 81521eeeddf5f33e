"""Attention and FFN side by side: h + SA(LN1 h) + FFN(LN2 h), so that the FFN does not see what attention found.

Published as `parrallel_attn`; its Llama form gives the FFN LN1 instead of LN2 (`norm: ln1`). Nothing is left out: it
saves no FLOPs by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Site
from ima.interventions.base import Intervention
from ima.interventions.hooks import (
    Args,
    Kwargs,
    Phase,
    before,
    described,
    of_phase,
    shadow,
    states_of,
    which_blocks,
    with_states,
)
from ima.interventions.work import NOTHING, Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.projections import projections_of

Norm = Literal["own", "ln1"]


class Parallel(Intervention):
    """In the blocks start <= b < stop (None: to the end) with (b - start) % every == 0, or in the list `blocks`, the
    FFN reads what attention reads: through its `own` norm, or through that of attention (`ln1`). phase: for tokens of
    the prompt (prefill), answer tokens (decode) or both."""

    RANGES = {"start": (0, None), "stop": (1, None), "every": (1, None)}

    def __init__(
        self,
        norm: Norm = "own",
        start: int = 4,
        stop: int | None = None,
        every: int = 1,
        blocks: Sequence[int] | None = None,
        phase: Phase = "both",
    ) -> None:
        self.norm, self.start, self.stop, self.every = norm, start, stop, every
        self.listed, self.phase = blocks, phase

    def blocks(self, num_blocks: int) -> list[int]:
        return which_blocks(num_blocks, self.start, self.stop, self.every, self.listed)

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where there are no such blocks, or no such norm."""
        self.blocks(llm.num_blocks)
        if self.norm == "ln1" and not llm.pre_norms and not llm.stream_norms:
            hint = "leave the change out" if llm.parallel else "use norm=own"
            raise UserError(
                f"norm: ln1, but {llm.model_type} blocks have no norm before attention and FFN each; {hint}"
            )
        if llm.stream_norms:
            raise UserError(f"{llm.name} norms its stream after each sum, so that there is no sum of both parts")
        if llm.parallel and self.norm == "own":
            raise UserError(f"norm: own, but the blocks of {llm.name} run attention and FFN side by side by themselves")

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)
        with ExitStack() as stack:
            for block in self.blocks(llm.num_blocks):
                self._side_by_side(stack, llm, block)
            yield

    def _side_by_side(self, stack: ExitStack, llm: FrozenLLM, block: int) -> None:
        kept: list[Tensor] = []

        def keep_input(args: Args, kwargs: Kwargs) -> None:
            kept[:] = [states_of(args, kwargs)]

        def acting(like: Tensor) -> Tensor:
            """(B, S, 1), or (B * S, 1) where a family flattens its FFN: the tokens of the phase."""
            assert llm.running is not None, "blocks run side by side in FrozenLLM's passes"
            chosen_BS = of_phase(llm.running.roles_BS, self.phase)
            return (chosen_BS if like.dim() == 3 else chosen_BS.flatten())[..., None]

        def read_input(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            mid = states_of(args, kwargs)
            x = kept.pop().reshape(mid.shape)
            return with_states(args, kwargs, x if self.phase == "both" else torch.where(acting(mid), x, mid))

        before(stack, llm.table.blocks[block], keep_input)
        before(stack, projections_of(llm.table, block).ffn_in, read_input)
        stack.callback(kept.clear)
        if self.norm == "ln1":
            self._norm_as_attention(stack, llm, block, acting)

    def _norm_as_attention(self, stack: ExitStack, llm: FrozenLLM, block: int, acting: Any) -> None:
        ln1, ln2 = (llm.table.place(block, site).module for site in (Site.LN1, Site.LN2))

        def forward(hidden_states: Tensor) -> Tensor:
            by_ln1 = apply_norm(ln1, hidden_states)
            if self.phase == "both":
                return by_ln1
            by_ln2 = apply_norm(ln2, hidden_states)
            if llm.running is None:  # somebody tries the block out, outside of any pass
                return by_ln2
            chosen = acting(hidden_states)
            if bool(chosen.all()) or not chosen.any():
                return by_ln1 if bool(chosen.all()) else by_ln2
            if chosen.shape[:-1] != hidden_states.shape[:-1]:
                raise UserError(
                    f"parallel: norm=ln1 with phase={self.phase} cannot stack with skips of the same FFN in "
                    "training or in a teacher-forced pass; use norm=own or phase=both"
                )
            return torch.where(chosen, by_ln1, by_ln2)

        shadow(stack, ln2, forward)

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return NOTHING

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        return f"parallel (norm {self.norm})" if block in self.blocks(llm.num_blocks) else ""

    def describe(self) -> dict[str, Any]:
        return described("parallel", vars(self), "saves no FLOPs by itself")


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Without the hooks of a module that is run in another's place."""
    out: Tensor = type(norm).forward(norm, x)
    return out
