"""In the first blocks, perceptual tokens and all others cannot attend to each other: where does alignment arise?

The published unimodal attention mask. One side is the perceptual tokens, the other everything else that is real (text,
specials, soft prompts). The rule joins whatever mask a block is given; cached keys keep the side of their token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.base import Intervention
from ima.interventions.hooks import Args, Kwargs, before, described
from ima.interventions.work import NOTHING, Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import PassContext


class Isolate(Intervention):
    """`num_blocks`: so many blocks from the first on keep the modalities apart."""

    RANGES = {"num_blocks": (1, None)}

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise UserError(f"num_blocks: {num_blocks} blocks isolate nothing; use >= 1, or leave the intervention out")
        self.num_blocks = num_blocks

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where the LLM has fewer blocks."""
        if self.num_blocks > llm.num_blocks:
            raise UserError(f"num_blocks: {self.num_blocks}, but {llm.name} has {llm.num_blocks} blocks")

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)

        def part(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            assert llm.running is not None, "modalities are kept apart in FrozenLLM's passes"
            return args, kwargs | {"attention_mask": isolated(kwargs.get("attention_mask"), llm.running)}

        with ExitStack() as stack:
            for block in range(self.num_blocks):
                before(stack, llm.table.blocks[block], part)
            yield

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return NOTHING

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        return "percept and others apart" if block < self.num_blocks else ""

    def describe(self) -> dict[str, Any]:
        return described("isolate", vars(self), "saves no FLOPs: only the mask differs")


def isolated(mask: Tensor | None, running: PassContext) -> Tensor:
    """The mask (B, 1, S, keys) of a block, None for causal, without what crosses the sides. Blocks with one mask share
    one result."""
    key = ("isolated", id(mask))
    if key not in running.memo:
        running.memo[key] = (crossing_cut(mask, running), mask)  # kept with its mask, so that the id stays its own
    found: Tensor = running.memo[key][0]
    return found


def crossing_cut(mask: Tensor | None, running: PassContext) -> Tensor:
    percept_BS = running.roles_BS == Role.PERCEPT
    if "isolated" not in running.memo:  # once a pass, however many masks it has
        running.memo["isolated"] = True
        running.history.setdefault("isolated", []).append(percept_BS)
    percept_BK = torch.cat(running.history["isolated"], dim=1)
    if mask is not None:
        percept_BK = percept_BK[:, -mask.shape[-1] :]  # a sliding cache has forgotten the first keys
    num_keys, length = percept_BK.shape[1], percept_BS.shape[1]
    same_BSK = percept_BS[:, :, None] == percept_BK[:, None]
    same_BSK |= (running.roles_BS == Role.PAD)[..., None]  # padding sees what it saw: its states mean nothing
    if mask is None:
        places = torch.arange(num_keys, device=percept_BS.device)
        mask = (places <= (places[num_keys - length :])[:, None])[None, None]
    if mask.dtype == torch.bool:
        return mask & same_BSK[:, None]
    return mask.masked_fill(~same_BSK[:, None], torch.finfo(mask.dtype).min)
