"""What an intervention is: a context manager on a frozen LLM that says by itself what it does and what it saves.

Entered, it acts; left, also by an exception, the model is bit for bit what it was. The printed plan and the FLOPs ask
each intervention and know none by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ima.interventions.work import Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM

Tokens = Mapping[str, int]  # name of a role, lower case -> how many of it an example has
Inputs = tuple[Tensor, Tensor]  # x_BSD that enters the LLM, roles_BS


class CalibrationSource(Protocol):
    """Examples that statistics of the LLM's inputs are gathered on. key: what these statistics depend on."""

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    def facts(self) -> dict[str, Any]:
        """Where the examples come from, as plain data."""
        ...

    def inputs(self, llm: FrozenLLM) -> Iterator[Inputs]:
        """Batches of whole sequences, with answers, on the LLM's device."""
        ...

    def labelled(self, llm: FrozenLLM) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same with labels_BS: the tokens that are to be predicted at these positions, else -100."""
        ...


Joined = Callable[[FrozenLLM, Sequence[Any]], AbstractContextManager[Any]]
Calibrate = Callable[[Path | str, int, int], CalibrationSource]  # (run folder, number of examples, seed)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where an intervention is about to act: tokens of each role in a typical prompt, the run that is evaluated, the
    config that the LLM comes from, and how examples of a run are had for calibration."""

    tokens: Tokens = dataclasses.field(default_factory=dict)
    run: Path | None = None
    llm_node: dict[str, Any] | None = None
    calibrate: Calibrate | None = None


class Intervention:
    """What `intervention` in a config is made of. Subclass it, and `apply` is all there is to write."""

    saves_time: ClassVar[bool] = True  # whether its seconds are worth measuring

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where it does not fit an LLM of which so much is known before it is loaded."""

    def resolve(self, llm: FrozenLLM, setting: Setting) -> Intervention:
        """What acts: as a rule itself; another one where blocks or masks are chosen now that the LLM is there."""
        return self

    @classmethod
    def joined(cls) -> Joined | None:
        """What enters all interventions of a stack that give the same one, as one plan after all others; None for an
        intervention that is entered by itself."""
        return None

    def apply(self, llm: FrozenLLM) -> AbstractContextManager[None]:
        """Raises UserError where it does not fit this LLM, before anything is changed."""
        raise NotImplementedError(f"{type(self).__name__} has no apply")

    def describe(self) -> dict[str, Any]:
        """Kind and settings as plain data."""
        return {"kind": type(self).__name__, **vars(self)}

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings | None:
        """What it leaves out of a pass over a prompt of these roles, and of decoding; None where that is unknown."""
        return None

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        """What it does at a block, in words for the printed plan; "" for nothing. savings: its own, for this prompt."""
        return str(self.describe()["kind"])
