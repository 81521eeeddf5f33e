"""Blocks that are left out where the answer is settled: the logit lens at the block's input has low entropy.

Per example: the last token of the prompt decides for the whole prompt, each answer token for itself, so that nobody
is decided on by what comes after it and a whole pass decides what cached decoding decides. The lens (final norm and LM
head on the deciding tokens) is paid at every block that may be skipped; on a small LLM with a large vocabulary it costs
more than it saves. The published code looks at the first example of a batch only, and at states without the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.hooks import Phase, described
from ima.interventions.skip.exit import split
from ima.interventions.skip.plan import Part, Skip
from ima.interventions.work import Flops, Savings, weight_of
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import PassContext
from ima.models.llm.sites import final_norm

LENS_ROWS = 256  # tokens whose logits exist at one time


class Entropy(Skip):
    """Skip `part` of a block where the entropy of the deciding token is below `threshold` (nats), for the tokens of
    `roles` and `phase`; which blocks may be skipped: as in Skip."""

    RANGES = {"threshold": (0, None), "start": (0, None), "stop": (1, None), "every": (1, None)}

    def __init__(
        self,
        threshold: float,
        part: Part = "block",
        roles: Sequence[str] = ("all",),
        start: int = 4,
        stop: int | None = None,
        every: int = 1,
        blocks: Sequence[int] | None = None,
        phase: Phase = "both",
    ) -> None:
        if not threshold >= 0:
            raise UserError(f"threshold: {threshold}; an entropy in nats is >= 0 (at most log of the vocabulary)")
        if part == "heads":
            raise UserError("part: heads are not skipped by entropy; use ffn, attn or block")
        super().__init__(part, roles, start, stop, every, blocks, phase=phase)
        self.threshold = threshold

    @property
    def needs_states(self) -> bool:
        return True

    @torch.no_grad()
    def chosen(self, llm: FrozenLLM, x_BSD: Tensor, running: PassContext) -> Tensor | None:
        roles_BS = running.roles_BS
        last_B, decoded_BS = split(roles_BS)
        rows_B = torch.arange(len(roles_BS), device=roles_BS.device)
        deciding_BS = decoded_BS.clone()
        deciding_BS[rows_B, last_B] = True
        low_BS = torch.zeros_like(deciding_BS)
        low_BS[deciding_BS] = entropy(llm, x_BSD[deciding_BS]) < self.threshold
        low_BS = torch.where(decoded_BS, low_BS, low_BS[rows_B, last_B][:, None])
        may_BS = torch.isin(roles_BS, torch.tensor(self.ids, device=roles_BS.device))
        return low_BS & may_BS & (roles_BS != Role.PAD)

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        """What it skips lies in the data and is not counted; the lens that it looks through is."""
        looks = Flops(lens=2.0 * weight_of(llm.model.get_output_embeddings()).numel())
        return Savings(added=dict.fromkeys(self.blocks(llm.num_blocks), looks))

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        named = f"{self.part} of {', '.join(self.roles)} where entropy < {self.threshold:g}"
        return f"{named} (not counted; the lens is)" if block in self.blocks(llm.num_blocks) else ""

    def describe(self) -> dict[str, Any]:
        names = ("threshold", "part", "roles", "start", "stop", "every", "listed", "phase")
        return described(
            "entropy", {name: getattr(self, name) for name in names}, "how much is skipped lies in the data"
        )


def entropy(llm: FrozenLLM, h_ND: Tensor) -> Tensor:
    """(N,) nats: of the next token's distribution if the LLM ended here."""
    found = []
    for part in h_ND.split(LENS_ROWS):
        log_p = lens(llm, part).log_softmax(-1)
        found.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(found)


def lens(llm: FrozenLLM, h_ND: Tensor) -> Tensor:
    """Logits of states inside the stream, by the model's own norm (without its hooks) and head, in its dtype: what is
    decided by must be cheap. fp32 is for measuring (`ima.alignment.logit_lens`)."""
    norm = final_norm(llm.model)
    return llm.logits(type(norm).forward(norm, h_ND))
