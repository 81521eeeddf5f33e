"""Two neighbouring blocks side by side: both read the same input, and the mean of their outputs goes on.

Published as `parrallel_block`. Each block keeps its own mask, rotation and cache (the published code stores the mean
of both keys and values for both). Nothing is left out, so no FLOPs are saved: what it allows is running two blocks at
the same time, which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.interventions.base import Intervention
from ima.interventions.hooks import (
    Args,
    Kwargs,
    Phase,
    after,
    before,
    described,
    of_phase,
    states_of,
    which_blocks,
    with_states,
)
from ima.interventions.work import NOTHING, Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.sites import first_tensor


class Merge(Intervention):
    """Merge b with b + 1 for b in the blocks start <= b < stop (None: to the end) with (b - start) % every == 0, or in
    the list `blocks`; pairs may not overlap. phase: for tokens of the prompt (prefill), answer tokens (decode) or both.
    """

    RANGES = {"start": (0, None), "stop": (1, None), "every": (2, None)}

    def __init__(
        self,
        start: int = 4,
        stop: int | None = None,
        every: int = 2,
        blocks: Sequence[int] | None = None,
        phase: Phase = "both",
    ) -> None:
        if every < 2:
            raise UserError(f"every: {every} makes pairs that overlap; use >= 2")
        chosen = sorted(set(blocks or ()))
        overlapping = [b for a, b in zip(chosen, chosen[1:], strict=False) if b == a + 1]
        if overlapping:
            raise UserError(f"blocks: {overlapping[0]} is in two pairs; name the first block of each pair only")
        self.start, self.stop, self.every, self.listed, self.phase = start, stop, every, blocks, phase

    def blocks(self, num_blocks: int) -> list[int]:
        """The first block of each pair; of a range, the pairs that lie in it. Raises UserError where there is none."""
        last = num_blocks if self.stop is None or self.listed is not None else self.stop
        found = which_blocks(num_blocks, self.start, self.stop, self.every, self.listed)
        pairs = [block for block in found if block + 1 < last]
        if not pairs or (self.listed is not None and len(pairs) < len(found)):
            raise UserError(f"blocks: {found} with the block after each must lie in blocks 0 to {last - 1}")
        return pairs

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where there are no such blocks."""
        self.blocks(llm.num_blocks)

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)
        with ExitStack() as stack:
            for block in self.blocks(llm.num_blocks):
                self._pair(stack, llm, block)
            yield

    def _pair(self, stack: ExitStack, llm: FrozenLLM, block: int) -> None:
        first, second = llm.table.blocks[block], llm.table.blocks[block + 1]
        kept: list[Tensor] = []  # of the running pass: the input of both, the output of the first

        def keep_input(args: Args, kwargs: Kwargs) -> None:
            kept[:] = [states_of(args, kwargs)]

        def keep_output(output: Any) -> None:
            kept.append(first_tensor(output))

        def merged(y_BSD: Tensor, other_BSD: Tensor) -> Tensor:
            """y where the phase says so, else the other."""
            assert llm.running is not None, "blocks are merged in FrozenLLM's passes"
            if self.phase == "both":
                return y_BSD
            return torch.where(of_phase(llm.running.roles_BS, self.phase)[..., None], y_BSD, other_BSD)

        def same_input(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            return with_states(args, kwargs, merged(kept[0], kept[1]))

        def mean(output: Any) -> Any:
            y_BSD, other_BSD = first_tensor(output), kept[1]
            kept.clear()
            out = merged((y_BSD + other_BSD) / 2, y_BSD)
            return (out, *output[1:]) if isinstance(output, tuple) else out

        before(stack, first, keep_input)
        after(stack, first, keep_output)
        before(stack, second, same_input)
        after(stack, second, mean)
        stack.callback(kept.clear)

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return NOTHING

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        firsts = self.blocks(llm.num_blocks)
        return "merged in pairs" if block in firsts or block - 1 in firsts else ""

    def describe(self) -> dict[str, Any]:
        return described("merge", vars(self), "saves no FLOPs: both blocks run, one after the other")
