"""Interventions: context managers on a frozen LLM. Entered, they act; left, the model is bit for bit what it was.

`stack` enters what changes the blocks first and then all skips as one plan, so that a skip leaves out parts of the
changed blocks; a tap is entered after them and so sees the intervened values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from ima.interventions.skip.plan import Skip
from ima.models.llm.facts import Known
from ima.models.llm.frozen import FrozenLLM


class Intervention(Protocol):
    """What `intervention` in a config is made of. Subclass it, and `apply` is all there is to write."""

    def check(self, llm: Known) -> None:
        """Raises UserError where it does not fit an LLM of which so much is known before it is loaded."""
        return

    def apply(self, llm: FrozenLLM) -> AbstractContextManager[None]:
        """Raises UserError where it does not fit this LLM, before anything is changed."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind and settings as plain data."""
        return {"kind": type(self).__name__, **vars(self)}


@contextmanager
def stack(llm: FrozenLLM, interventions: Sequence[Intervention]) -> Iterator[None]:
    from ima.interventions.skip.engine import Engine

    skips = [intervention for intervention in interventions if isinstance(intervention, Skip)]
    with ExitStack() as entered:
        for intervention in interventions:
            if not isinstance(intervention, Skip):
                entered.enter_context(intervention.apply(llm))
        if skips:
            entered.enter_context(Engine(llm, skips))
        yield
