"""Back-patching: what perceptual tokens become later in the stack is given to an earlier block.

In a second pass, the states of perceptual tokens after block `from_block` (of a first pass) replace those that enter
block `to_block`. If that helps, alignment comes too late in the stack to be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.base import Intervention
from ima.interventions.hooks import Args, Kwargs, before, described, shadow, states_of, with_states
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.sites import first_tensor


class BackPatch(Intervention):
    """to_block a, from_block b: blocks, a <= b."""

    RANGES = {"to_block": (0, None), "from_block": (0, None)}
    saves_time = False

    def __init__(self, to_block: int, from_block: int) -> None:
        if not 0 <= to_block <= from_block:
            raise UserError(f"to_block: {to_block} must be 0 or more and at most from_block, {from_block}")
        self.to_block, self.from_block = to_block, from_block

    def check(self, llm: LlmFacts) -> None:
        if self.from_block >= llm.num_blocks:
            raise UserError(f"from_block: {self.from_block}, but {llm.name} has blocks 0 to {llm.num_blocks - 1}")

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)
        found: list[Tensor] = []
        base = llm.model.base_model
        plain = base.forward

        def twice(*args: Any, **kwargs: Any) -> Any:
            running = llm.running
            assert running is not None, "back-patching is of FrozenLLM's passes"
            found.clear()
            if running.num_past or not bool((running.roles_BS == Role.PERCEPT).any()):
                return plain(*args, **kwargs)
            first = {key: value for key, value in kwargs.items() if key != "past_key_values"} | {"use_cache": False}
            handle = llm.table.blocks[self.from_block].register_forward_hook(
                lambda _module, _args, output: found.append(first_tensor(output))
            )
            llm.running = dataclasses.replace(running, memo={}, history={}, silent=True)
            try:
                plain(*args, **first)
            finally:
                handle.remove()
                llm.running = running
            try:
                return plain(*args, **kwargs)
            finally:
                found.clear()

        def put(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
            if not found or (llm.running is not None and llm.running.silent):
                return None
            assert llm.running is not None
            x_BSD = states_of(args, kwargs)
            percept_BS1 = (llm.running.roles_BS == Role.PERCEPT)[..., None]
            return with_states(args, kwargs, torch.where(percept_BS1, found[-1], x_BSD))

        with ExitStack() as stack:
            shadow(stack, base, twice)
            before(stack, llm.table.blocks[self.to_block], put)
            yield

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Any) -> str:
        return f"percepts as they are after block {self.from_block}" if block == self.to_block else ""

    def describe(self) -> dict[str, Any]:
        return described("back_patch", vars(self), "the prompt is read twice")
