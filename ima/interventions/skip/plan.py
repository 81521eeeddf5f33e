"""A skip as a config value: which blocks leave out which part for which tokens (methods: skipping).

ffn: h' = resid_mid. attn: h' = resid_pre + FFN(LN2(resid_pre)). block: h' = resid_pre. heads: attention without some of
its heads. Always the residual, once, for the chosen tokens only. `ima.interventions.skip.engine` makes it so without
computing what is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from ima.core.errors import UserError, nearest
from ima.core.types import Role
from ima.interventions.hooks import DECODED, Phase, described, which_blocks
from ima.interventions.skip.select import NEEDS_STATES, Select
from ima.models.llm.facts import Known
from ima.models.llm.frozen import FrozenLLM, Running

Part = Literal["ffn", "attn", "block", "heads"]
Visibility = Literal["visible", "hidden"]
ROLES = {
    "percept": (Role.PERCEPT,),
    "text": (Role.PROMPT, Role.ANSWER, Role.GENERATED, Role.SPECIAL),
    "prompt": (Role.PROMPT,),
    "answer": (Role.ANSWER, Role.GENERATED),
    "special": (Role.SPECIAL,),
    "soft": (Role.SOFT,),
    "all": (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.GENERATED, Role.SPECIAL, Role.SOFT),
}


class Skip:
    """Skip `part` of the blocks start <= b < stop (None: to the end) with (b - start) % every == 0, or of the list
    `blocks`, for `ratio` of the tokens of each of `roles`.

    select: which of them. phase: tokens of the prompt (prefill), answer tokens (decode), or both. visibility: whether
    others still attend to a token whose attention is skipped. heads: which heads the part `heads` leaves out.
    redraw_per_block: `random` draws anew in every block.
    """

    RANGES = {"start": (0, None), "stop": (1, None), "every": (1, None), "ratio": (0.0, 1.0)}

    def __init__(
        self,
        part: Part = "ffn",
        roles: Sequence[str] = ("percept",),
        start: int = 4,
        stop: int | None = None,
        every: int = 1,
        blocks: Sequence[int] | None = None,
        ratio: float = 1.0,
        select: Select = "random",
        phase: Phase = "both",
        visibility: Visibility = "visible",
        heads: Sequence[int] | None = None,
        redraw_per_block: bool = False,
        seed: int = 0,
    ) -> None:
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise UserError(f"roles: {unknown[0]!r} is no role group; {nearest(unknown[0], ROLES)}")
        if not roles:
            raise UserError(f"roles: empty, nothing would be skipped; choose from {', '.join(ROLES)}")
        if not 0 <= ratio <= 1:
            raise UserError(f"ratio: {ratio} is outside 0 to 1 (the share of the role's tokens)")
        if (part == "heads") != (heads is not None):
            raise UserError("heads: a list of heads belongs to part=heads and to no other part")
        if part == "ffn" and visibility == "hidden":
            raise UserError("visibility: hidden says who attends; part=ffn has no attention, use visible")
        ids = {int(role) for name in roles for role in ROLES[name]}
        decoded = {int(role) for role in DECODED}
        ids = {"prefill": ids - decoded, "decode": ids & decoded, "both": ids}[phase]
        if not ids:
            raise UserError(f"phase: {phase!r} leaves no token of roles {', '.join(roles)}")
        self.part, self.start, self.stop, self.every = part, start, stop, every
        self.roles, self.listed, self.ratio, self.select = tuple(roles), blocks, ratio, select
        self.phase, self.visibility, self.heads = phase, visibility, None if heads is None else tuple(heads)
        self.redraw_per_block, self.seed = redraw_per_block, seed
        self.ids = tuple(sorted(ids))

    @property
    def needs_states(self) -> bool:
        """Whether the choice depends on hidden states, and so on the block."""
        return self.select in NEEDS_STATES and 0 < self.ratio < 1

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Role ids of each named role, what an earlier name holds taken out: the ratio is of each by itself."""
        out: list[tuple[int, ...]] = []
        for name in self.roles:
            taken = {id for group in out for id in group}
            out.append(tuple(int(role) for role in ROLES[name] if int(role) in self.ids and int(role) not in taken))
        return [group for group in out if group]

    def blocks(self, num_blocks: int) -> list[int]:
        """Raises UserError where the range does not fit a model of `num_blocks`."""
        return which_blocks(num_blocks, self.start, self.stop, self.every, self.listed)

    def check(self, llm: Known) -> None:
        """Raises UserError where the skip does not fit this LLM."""
        blocks = self.blocks(llm.num_blocks)
        if llm.stream_norms:
            raise UserError(
                f"skipping is defined on a residual stream that only sums change; {llm.name} norms its stream after "
                "each sum (as opt-350m does); choose another LLM"
            )
        if self.select == "similar" and self.needs_states and blocks[0] == 0:
            raise UserError("select: similar compares with the previous block; block 0 has none, start=1")
        wrong = [head for head in self.heads or () if not 0 <= head < llm.num_heads]
        if wrong:
            raise UserError(f"heads: {wrong[0]} is none of {llm.name}'s heads 0 to {llm.num_heads - 1}")

    def chosen(self, llm: FrozenLLM, x_BSD: Tensor, running: Running) -> Tensor | None:
        """skip_BS where a kind of skip has a rule of its own for what it leaves out; None: ratio and select say."""
        return None

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        from ima.interventions.skip.engine import Engine

        with Engine(llm, [self]):
            yield

    def describe(self) -> dict[str, Any]:
        return described("skip", {name: value for name, value in vars(self).items() if name != "ids"})
