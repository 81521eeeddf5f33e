"""A skip as a config value: which blocks leave out which part for which tokens (docs/skipping.md).

ffn: h' = resid_mid. attn: h' = resid_pre + FFN(LN2(resid_pre)). block: h' = resid_pre. heads: attention without some of
its heads. Always the residual, once, for the chosen tokens only. `ima.interventions.skip.engine` makes it so without
computing what is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ima.core.errors import UserError, nearest
from ima.core.types import Role
from ima.interventions.base import Intervention, Joined
from ima.interventions.hooks import DECODED, Phase, described, which_blocks
from ima.interventions.skip.engine import Engine
from ima.interventions.skip.select import NEEDS_STATES, Select
from ima.interventions.work import NOTHING, Chance, Decision, Savings
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import PassContext

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


class Skip(Intervention):
    """Skip `part` of the blocks start <= b < stop (None: to the end) with (b - start) % every == 0, or of the list
    `blocks`, for `ratio` of the tokens of each of `roles`.

    select: which of them. phase: tokens of the prompt (prefill), answer tokens (decode), or both. visibility: whether
    others still attend to a token whose attention is skipped. heads: which heads the part `heads` leaves out.
    redraw_per_block: `random` draws anew in every block. keep_sinks: the first real position, on which attention rests,
    is never skipped.
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
        keep_sinks: bool = False,
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
        if select != "random" and 0 < ratio < 1 and ids & decoded:
            raise UserError(
                f"select: {select} with ratio {ratio:g} ranks tokens that are there together, but those of an answer "
                f"come one by one (roles {', '.join(roles)}, phase {phase}); use select=random or phase=prefill"
            )
        self.part, self.start, self.stop, self.every = part, start, stop, every
        self.roles, self.listed, self.ratio, self.select = tuple(roles), blocks, ratio, select
        self.phase, self.visibility, self.heads = phase, visibility, None if heads is None else tuple(heads)
        self.redraw_per_block, self.seed, self.keep_sinks = redraw_per_block, seed, keep_sinks
        self.ids = tuple(sorted(ids))

    @classmethod
    def joined(cls) -> Joined:
        return Engine

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

    def check(self, llm: LlmFacts) -> None:
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

    def chosen(self, llm: FrozenLLM, x_BSD: Tensor, running: PassContext) -> Tensor | None:
        """skip_BS where a kind of skip has a rule of its own for what it leaves out; None: ratio and select say."""
        return None

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        with Engine(llm, [self]):
            yield

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        """As the engine itself decides on a made-up sequence of these roles."""
        if self.ratio == 0:
            return NOTHING
        share = self.decoded_share(llm)
        parts: list[str] = [] if self.part == "heads" else [self.part]
        parts += ["hidden"] if self.visibility == "hidden" else []
        chances = {part: Chance(self.seed, share) for part in parts}
        return Savings(decisions(llm, self, roles_1S), dict.fromkeys(self.blocks(llm.num_blocks), chances))

    def decoded_share(self, llm: FrozenLLM) -> float:
        """Chance that a decoded token is left out."""
        if int(Role.GENERATED) not in self.ids:
            return 0.0
        running = PassContext(torch.tensor([[int(Role.GENERATED)]]), ("plan",), num_past=1)
        chosen = self.chosen(llm, torch.zeros(1, 1, 4), running)
        if chosen is not None:  # by a rule of its own
            return float(bool(chosen.any()))
        return self.ratio

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        if savings is None or block not in savings.prompt:
            return ""
        names = [self.part] if self.heads is None else [f"head{head}" for head in self.heads]
        what = self.part if self.heads is None else f"heads {','.join(map(str, self.heads))}"
        num = count(savings.prompt[block], *names)
        asked = int(sum((roles_1S == role).sum() for role in self.ids))
        texts = [f"{num} of {asked} prompt tokens"] if asked else []
        decoded = self.decoded_share(llm)
        texts += [f"{100 * decoded:g} % of decoded ones"] if decoded else []
        hidden = ", hidden" if self.visibility == "hidden" else ""
        return f"no {what} for {', '.join(self.roles)}: {', '.join(texts) or 'nobody'}{hidden}"

    def describe(self) -> dict[str, Any]:
        return described("skip", {name: value for name, value in vars(self).items() if name != "ids"})


def decisions(llm: FrozenLLM, skip: Skip, roles_1S: Tensor) -> dict[int, Decision]:
    """Block -> what is left out there by part, as the engine decides it for a prompt of these roles."""
    engine = Engine(llm, [skip])
    running = PassContext(roles_1S, ("plan",))
    states = torch.randn(2, *roles_1S.shape, 4, generator=torch.Generator().manual_seed(0))
    engine.inputs.update(dict.fromkeys(range(llm.num_blocks), states[0]))
    return {block: engine.choose(block, states[1], running) for block in engine.by_block}


def count(decision: Mapping[str, Tensor], *parts: str) -> int:
    """Positions at which any of these parts is left out."""
    found = [decision[part] for part in parts if part in decision]
    return int(torch.stack(found).any(0).sum()) if found else 0
