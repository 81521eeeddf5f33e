"""Blocks left out altogether: what enters them leaves them, for every token, in every pass.

They write nothing to the cache and save all their time. Block 0 stays: the cache tells its length by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ima.core.errors import UserError
from ima.interventions.base import Intervention
from ima.interventions.hooks import described, shadow, which_blocks
from ima.interventions.work import Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM


class Drop(Intervention):
    """Leave out the blocks start <= b < stop (None: to the end, the final norm follows)."""

    RANGES = {"start": (1, None), "stop": (2, None)}

    def __init__(self, start: int, stop: int | None = None) -> None:
        if start < 1:
            raise UserError(f"start: {start}; block 0 cannot be dropped (the cache tells its length by it), use >= 1")
        self.start, self.stop = start, stop

    def blocks(self, num_blocks: int) -> list[int]:
        return which_blocks(num_blocks, self.start, self.stop)

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where the drop does not fit this LLM."""
        dropped = set(self.blocks(llm.num_blocks))
        for kind in sorted(set(llm.kinds)):
            alike = [block for block, other in enumerate(llm.kinds) if other == kind]
            if alike[0] in dropped and set(alike) - dropped:
                raise UserError(
                    f"stop: block {alike[0]} is the first with {kind} of {llm.name} and later ones need it (their "
                    f"masks take their length from its cache); leave stop out or start after block {alike[0]}"
                )

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)
        with ExitStack() as stack:
            for block in self.blocks(llm.num_blocks):
                shadow(stack, llm.table.blocks[block], pass_by)
            yield

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return Savings(dropped=frozenset(self.blocks(llm.num_blocks)))

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        return "dropped" if block in self.blocks(llm.num_blocks) else ""

    def describe(self) -> dict[str, Any]:
        return described("drop", vars(self))


def pass_by(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states
