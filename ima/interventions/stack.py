"""Several interventions at once: what changes the blocks first, then all skips as one plan.

A skip so leaves out parts of the changed blocks; a tap is entered after them and sees the intervened values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ima.interventions.base import Intervention, Joined
from ima.models.llm.frozen import FrozenLLM


@contextmanager
def stack(llm: FrozenLLM, interventions: Sequence[Intervention]) -> Iterator[None]:
    """All of them act while this is open. Raises UserError where one does not fit, before anything is changed by it."""
    joint: dict[Joined, list[Intervention]] = {}
    with ExitStack() as entered:
        for intervention in interventions:
            joined = intervention.joined()
            if joined is None:
                entered.enter_context(intervention.apply(llm))
            else:
                joint.setdefault(joined, []).append(intervention)
        for joined, those in joint.items():
            entered.enter_context(joined(llm, those))
        yield
