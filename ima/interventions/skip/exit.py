"""Tokens that leave early: after block e, deeper blocks neither compute them nor let others attend to them.

The published `exit` keeps, from the prompt, only the last position for the blocks after e: `leaving: context`; with
`prompt` it keeps all but the perceptual tokens: `percept`. Answer tokens go through all blocks. `last` is early exit
as most use the word: the tokens whose logits are read leave too, and as then nobody reads what deeper blocks would do,
none of them runs for anybody; what is read is that of `drop` from e + 1 on.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.hooks import DECODED, described
from ima.interventions.skip.plan import Skip
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import PassContext

Leaving = Literal["context", "percept", "last"]


class Exit(Skip):
    """A skip of whole blocks, hidden: `leaving` tokens leave after block `block`."""

    RANGES = {"block": (0, None)}

    def __init__(self, block: int, leaving: Leaving = "context") -> None:
        if block < 0:
            raise UserError(f"block: {block}; blocks are numbered from 0")
        if leaving not in ("context", "percept", "last"):
            raise UserError(f"leaving: {leaving!r} is not one of context, percept, last")
        self.block, self.leaving = block, leaving
        super().__init__("block", ("percept",) if leaving == "percept" else ("all",), block + 1, visibility="hidden")

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where no block is left to leave out."""
        num_blocks = llm.num_blocks
        if self.block + 1 >= num_blocks:
            raise UserError(f"block: {self.block}; early in {num_blocks} blocks is after 0 to {num_blocks - 2}")
        super().check(llm)

    def chosen(self, llm: FrozenLLM, x_BSD: Tensor, running: PassContext) -> Tensor | None:
        if self.leaving != "context":
            return None
        last_B, _ = split(running.roles_BS)
        places_S = torch.arange(running.roles_BS.shape[1], device=last_B.device)
        return (running.roles_BS != Role.PAD) & (places_S < last_B[:, None])

    def describe(self) -> dict[str, Any]:
        return described("exit", {"block": self.block, "leaving": self.leaving})


def split(roles_BS: Tensor) -> tuple[Tensor, Tensor]:
    """last_B: the column of the prompt's last token, whose logits give the first answer token (0 where a pass has no
    prompt: decoding). decoded_BS: from the first answer token on, whatever else stands there."""
    decoded_BS = torch.isin(roles_BS, torch.tensor([int(role) for role in DECODED], device=roles_BS.device))
    decoded_BS = decoded_BS.long().cumsum(1) > 0
    places_S = torch.arange(roles_BS.shape[1], device=roles_BS.device)
    last_B = torch.where((roles_BS != Role.PAD) & ~decoded_BS, places_S, 0).amax(1)
    return last_B, decoded_BS
