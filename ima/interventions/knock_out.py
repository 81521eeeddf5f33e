"""Knock-out of one edge: in a window of blocks, tokens of one kind may not read tokens of another.

Which flow of information carries the answer? (Geva et al., arXiv 2304.14767.) "source -> destination": the destination
may not read the source. A token always reads itself. The first real position stays readable unless `with_sinks`: in
most LLMs attention that is wanted nowhere rests there, and a model without its sink is broken, not uninformed. The rule
joins whatever mask a block is given, so that knock-outs compose with each other and with `Isolate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

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

Source = Literal["percept", "prompt"]
Destination = Literal["percept", "prompt", "answer", "text"]
EDGES = ("percept->percept", "percept->prompt", "percept->answer", "percept->text", "prompt->answer")


class KnockOut(Intervention):
    """In blocks start .. start + width - 1 the `destination` may not read the `source`.

    answer: all positions that predict a token of the answer, the last one of the prompt among them, and every token
    that decoding makes; prompt: the others of the prompt; text: everything real but percepts. width: None for a fifth
    of the blocks. with_sinks: the first real position is cut off too.
    """

    RANGES = {"start": (0, None), "width": (1, None)}

    def __init__(
        self,
        source: Source = "percept",
        destination: Destination = "answer",
        start: int = 0,
        width: int | None = None,
        with_sinks: bool = False,
    ) -> None:
        if f"{source}->{destination}" not in EDGES:
            raise UserError(f"destination: {source} -> {destination} is no edge; choose among {', '.join(EDGES)}")
        if start < 0 or (width is not None and width < 1):
            raise UserError(f"start: {start} with width {width}; use start >= 0 and width >= 1")
        self.source, self.destination, self.start, self.width = source, destination, start, width
        self.with_sinks = with_sinks

    def blocks(self, num_blocks: int) -> range:
        width = max(1, round(num_blocks / 5)) if self.width is None else self.width
        return range(self.start, self.start + width)

    def check(self, llm: LlmFacts) -> None:
        """Raises UserError where the window leaves the LLM."""
        stop = self.blocks(llm.num_blocks).stop
        if stop > llm.num_blocks:
            raise UserError(f"start: blocks {self.start} to {stop - 1}, but {llm.name} has {llm.num_blocks} blocks")

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.check(llm.facts)

        def part(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            assert llm.running is not None, "edges are cut in FrozenLLM's passes"
            return args, kwargs | {"attention_mask": self.cut(kwargs.get("attention_mask"), llm.running)}

        with ExitStack() as stack:
            for block in self.blocks(llm.num_blocks):
                before(stack, llm.table.blocks[block], part)
            yield

    def cut(self, mask: Tensor | None, running: PassContext) -> Tensor:
        """The mask (B, 1, S, keys) of a block, None for causal, without the edge. Blocks with one mask share one
        result."""
        key = (id(self), id(mask))
        if key not in running.memo:
            running.memo[key] = (self._cut(mask, running), mask)  # kept with its mask, so that the id stays its own
        found: Tensor = running.memo[key][0]
        return found

    def _cut(self, mask: Tensor | None, running: PassContext) -> Tensor:
        mine = ("sources", id(self))
        if mine not in running.memo:  # once a pass, however many masks it has
            running.memo[mine] = True
            running.history.setdefault(mine, []).append(self._sources(running))
        source_BK = torch.cat(running.history[mine], dim=1)
        length = running.roles_BS.shape[1]
        if mask is not None:
            source_BK = source_BK[:, -mask.shape[-1] :]  # a sliding cache has forgotten the first keys
        num_keys = source_BK.shape[1]
        queries = torch.arange(num_keys - length, num_keys, device=source_BK.device)
        places = torch.arange(num_keys, device=source_BK.device)
        itself_SK = queries[:, None] == places
        cut_BSK = destinations(running.roles_BS, self.destination)[:, :, None] & source_BK[:, None] & ~itself_SK
        if mask is None:
            mask = (places <= queries[:, None])[None, None]
        if mask.dtype == torch.bool:
            return mask & ~cut_BSK[:, None]
        return mask.masked_fill(cut_BSK[:, None], torch.finfo(mask.dtype).min)

    def _sources(self, running: PassContext) -> Tensor:
        roles_BS = running.roles_BS
        source_BS = roles_BS == (Role.PERCEPT if self.source == "percept" else Role.PROMPT)
        if self.with_sinks:
            return source_BS
        return source_BS & ((running.places_BS > 0) | (roles_BS == Role.PAD))

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return NOTHING

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        there = block in self.blocks(llm.num_blocks)
        return f"{self.destination} cannot read {self.source}" if there else ""

    def describe(self) -> dict[str, Any]:
        return described("knock_out", vars(self), "saves no FLOPs: only the mask differs")


def destinations(roles_BS: Tensor, kind: Destination) -> Tensor:
    """(B, S): the positions that may not read."""
    if kind == "percept":
        return roles_BS == Role.PERCEPT
    if kind == "text":
        return (roles_BS != Role.PERCEPT) & (roles_BS != Role.PAD)
    answer_BS = answering(roles_BS)
    return answer_BS if kind == "answer" else (roles_BS == Role.PROMPT) & ~answer_BS


def answering(roles_BS: Tensor) -> Tensor:
    """(B, S): the positions that predict a token of an answer; of a prompt without one the last real position."""
    made_BS = (roles_BS == Role.ANSWER) | (roles_BS == Role.GENERATED)
    before_BS = torch.nn.functional.pad(made_BS[:, 1:], (0, 1)) & (roles_BS != Role.PAD)
    real_BS = roles_BS != Role.PAD
    last_BS = real_BS & (real_BS.long().flip(1).cumsum(1).flip(1) == 1)
    return made_BS | before_BS | (last_BS & ~made_BS.any(1, keepdim=True))
