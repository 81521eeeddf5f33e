"""Interventions: context managers on a frozen LLM. Entered, they act; left, the model is bit for bit what it was.

`stack` enters several in order, all skips as one plan; a tap is entered after them and so sees the intervened values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from ima.interventions.skip import Skip
from ima.llm.frozen import FrozenLLM


class Intervention(Protocol):
    def apply(self, llm: FrozenLLM) -> AbstractContextManager[None]:
        """Raises UserError where it does not fit this LLM, before anything is changed."""
        ...


@contextmanager
def stack(llm: FrozenLLM, interventions: Sequence[Intervention]) -> Iterator[None]:
    from ima.interventions.engine import Engine

    skips = [intervention for intervention in interventions if isinstance(intervention, Skip)]
    with ExitStack() as entered:
        if skips:
            entered.enter_context(Engine(llm, skips))
        for intervention in interventions:
            if not isinstance(intervention, Skip):
                entered.enter_context(intervention.apply(llm))
        yield
