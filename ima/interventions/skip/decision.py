"""What a block leaves out in the running pass, and what an engine asks of a skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ima.interventions.skip.token_index import TokenIndex
from ima.interventions.work import Decision
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM, PassContext

Decide = Callable[[int, Tensor, PassContext], Decision]


class SkipRule(Protocol):
    """A skip as the engine sees it (see `ima.interventions.skip.plan.Skip`)."""

    @property
    def part(self) -> str: ...

    @property
    def ratio(self) -> float: ...

    @property
    def select(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def visibility(self) -> str: ...

    @property
    def heads(self) -> tuple[int, ...] | None: ...

    @property
    def redraw_per_block(self) -> bool: ...

    @property
    def keep_sinks(self) -> bool: ...

    @property
    def needs_states(self) -> bool: ...

    @property
    def groups(self) -> list[tuple[int, ...]]: ...

    def check(self, llm: LlmFacts) -> None: ...

    def blocks(self, num_blocks: int) -> list[int]: ...

    def chosen(self, llm: FrozenLLM, x_BSD: Tensor, running: PassContext) -> Tensor | None: ...


class BlockDecision:
    """What a block leaves out in the running pass, ready for the hooks: `ffn`, `queries`, `keys` are the rows that are
    computed (None: all); hidden_BK: keys that nobody sees, past ones included."""

    def __init__(
        self,
        ffn: TokenIndex | None,
        queries: TokenIndex | None,
        keys: TokenIndex | None,
        hidden_BK: Tensor | None,
        heads: dict[int, Tensor],
        running: PassContext,
    ) -> None:
        self.ffn, self.queries, self.keys = ffn, queries, keys
        self.hidden_BK, self.heads, self.running = hidden_BK, heads, running

    @property
    def takes_slices(self) -> bool:
        """Whether what is computed is a range of columns, or everything."""
        return all(rows is None or rows.is_slice for rows in (self.ffn, self.queries))
