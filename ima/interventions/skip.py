"""Skipping by its definition (methods: skipping): what a skipped part would have added to the residual is taken away.

ffn: h' = resid_mid. attn: h' = resid_pre + FFN(LN2(resid_pre)). block: h' = resid_pre. Always the residual, once, for
the chosen roles only; others still attend to a skipped token's keys and values (`visible`). The part is computed and
then replaced, so nothing is saved yet: this is the exact meaning that a faster way has to equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ima.errors import UserError, nearest
from ima.llm.frozen import FrozenLLM
from ima.types import Role, Site

Part = Literal["ffn", "attn", "block"]
ROLES = {
    "percept": (Role.PERCEPT,),
    "text": (Role.PROMPT, Role.ANSWER, Role.GENERATED, Role.SPECIAL),
    "prompt": (Role.PROMPT,),
    "answer": (Role.ANSWER, Role.GENERATED),
}


class Skip:
    """Skip `part` of the blocks start <= b < stop (None: to the end) with (b - start) % every == 0, for `roles`."""

    RANGES = {"start": (0, None), "stop": (1, None), "every": (1, None)}

    def __init__(
        self,
        part: Part = "ffn",
        roles: Sequence[str] = ("percept",),
        start: int = 4,
        stop: int | None = None,
        every: int = 1,
    ) -> None:
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise UserError(f"intervention.roles: {unknown[0]!r} is no role group; {nearest(unknown[0], ROLES)}")
        self.part, self.start, self.stop, self.every = part, start, stop, every
        self.roles = tuple(roles)
        self._ids = sorted({int(role) for name in roles for role in ROLES[name]})

    def blocks(self, num_blocks: int) -> list[int]:
        """Raises UserError where the range does not fit a model of `num_blocks`."""
        stop = num_blocks if self.stop is None else self.stop
        if not self.start < stop <= num_blocks:
            raise UserError(
                f"intervention: blocks start={self.start} stop={stop} must satisfy 0 <= start < stop <= {num_blocks}"
            )
        return list(range(self.start, stop, self.every))

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        chosen = self.blocks(llm.num_blocks)
        site = {"ffn": Site.FC2, "attn": Site.SA, "block": Site.RESID_POST}[self.part]
        with ExitStack() as hooks:
            for block in chosen:
                hooks.callback(self._hook(llm, block, site).remove)
            yield

    def _hook(self, llm: FrozenLLM, block: int, site: Site) -> Any:
        place = llm.table.place(block, site)
        assert place.side == "output"
        whole = self.part == "block"

        def replace(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            value: Tensor = output[0] if isinstance(output, tuple) else output
            instead = (args[0] if args else kwargs["hidden_states"]) if whole else torch.zeros_like(value)
            roles_BS = llm.roles_of(value)  # OPT flattens (B, S) inside its FFN
            skip_BS = torch.isin(roles_BS, torch.tensor(self._ids, device=value.device))
            new = torch.where(skip_BS.view(*value.shape[:-1], 1), instead, value)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return place.module.register_forward_hook(replace, with_kwargs=True)
