"""Skips made real on stock blocks: what is skipped is not computed.

At each block that a skip names, its tokens are chosen when the block begins. The FFN then sees the other tokens only
(taken at its first module, put back at its last, zeros elsewhere: the residual passes by). Attention computes queries,
scores and the output map of the other tokens only, through transformers' own attention interface; keys and values are
made for whomever others may see. Everything else is the family's own code. Hides hooks, beams and cached decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.types import Site
from ima.interventions.skip.attention import deciding, switch_attention
from ima.interventions.skip.decision import BlockDecision, Decide, SkipRule
from ima.interventions.skip.fast_path import FastPathForward, unsupported_reason
from ima.interventions.skip.select import first_real, real, share_of
from ima.interventions.skip.token_index import TokenIndex
from ima.interventions.work import Decision
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import PassContext
from ima.models.llm.projections import projections_of


class Engine:
    """Context manager: the skips act while it is open; left, also by an exception, the model is what it was.

    `decide` replaces the skips' own choice (replay); `record`: keep what was decided, in `decisions`. `fast_path`:
    plain blocks without detours.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        skips: Sequence[SkipRule],
        decide: Decide | None = None,
        record: bool = False,
        fast_path: bool = True,
    ) -> None:
        self.fast_path = fast_path
        self.llm, self.skips = llm, list(skips)
        for skip in self.skips:
            skip.check(llm.facts)
        self.by_block: dict[int, list[SkipRule]] = {}
        for skip in self.skips:
            for block in skip.blocks(llm.num_blocks):
                self.by_block.setdefault(block, []).append(skip)
        self.decide = decide or self.choose
        self.kinds = (
            {block: self._kind(block) for block in self.by_block}
            if decide is None
            else dict.fromkeys(range(llm.num_blocks))
        )
        self.decisions: list[tuple[int, int, Decision]] | None = [] if record else None
        self.now: dict[int, BlockDecision] = {}
        self.inputs: dict[int, Tensor] = {}
        self._stack: ExitStack | None = None

    def _kind(self, block: int) -> tuple[int, ...] | None:
        """Blocks of one kind leave out the same; None where a block decides for itself."""
        skips = self.by_block[block]
        if any(skip.needs_states or skip.redraw_per_block or skip.visibility == "hidden" for skip in skips):
            return None
        return tuple(index for index, skip in enumerate(self.skips) if skip in skips)

    # -- entering and leaving ----------------------------------------------------------------------------------------

    def __enter__(self) -> Engine:
        assert self._stack is None, "entered already"
        with ExitStack() as stack:
            acting = {block: skips for block, skips in self.by_block.items() if any(s.ratio > 0 for s in skips)}
            fast = self.fast_path and bool(acting) and not unsupported_reason(self.llm, min(acting))
            for block, skips in acting.items():
                num_hooks = self._install(stack, block, skips)
                if fast and "forward" not in vars(self.llm.table.blocks[block]):
                    layer = self.llm.table.blocks[block]
                    layer.forward = FastPathForward(layer, self.now, block, num_hooks)
                    stack.callback(vars(layer).pop, "forward")
            compared = {b - 1 for b, skips in acting.items() for s in skips if s.select == "similar" and s.needs_states}
            for block in compared:
                layer = self.llm.table.blocks[block]
                stack.callback(layer.register_forward_pre_hook(self._keep(block), with_kwargs=True).remove)
            if any(skip.part != "ffn" for skips in acting.values() for skip in skips):
                switch_attention(stack, self.llm.model.config)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = None
        self.now.clear()
        self.inputs.clear()

    def _install(self, stack: ExitStack, block: int, skips: Sequence[SkipRule]) -> int:
        """Puts the hooks on a block; returns how many lie on the modules inside it."""
        layer, maps = self.llm.table.blocks[block], projections_of(self.llm.table, block)
        parts = {skip.part for skip in skips}

        num = 0

        def hook(module: nn.Module, before: Any = None, after: Any = None) -> None:
            nonlocal num
            if module is not layer:
                num += (before is not None) + (after is not None)
            if before is not None:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if after is not None:
                stack.callback(module.register_forward_hook(after).remove)

        hook(layer, before=self._begin(block), after=self._end(block))
        if parts & {"ffn", "block"}:
            hook(maps.ffn_in, before=self._pick(block, "ffn"))
            hook(maps.ffn_out, after=self._put(block, "ffn"))
        if parts & {"attn", "block"}:
            hook(maps.out, before=self._pick(block, "queries"), after=self._put(block, "queries"))
            if maps.query is not None:
                hook(maps.query, before=self._pick(block, "queries"), after=self._put(block, "queries"))
            for module in (maps.key, maps.value):
                if module is not None and any(skip.visibility == "hidden" for skip in skips):
                    hook(module, before=self._pick(block, "keys"), after=self._put(block, "keys"))
        if parts - {"ffn"}:
            deciding(stack, maps.attention, self.now, block)
        return num

    # -- the hooks ---------------------------------------------------------------------------------------------------

    def _keep(self, block: int) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inputs[block] = (args[0] if args else kwargs["hidden_states"]).detach()

        return keep

    def _begin(self, block: int) -> Callable[..., None]:
        def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x_BSD = args[0] if args else kwargs["hidden_states"]
            running = self.llm.running
            assert running is not None and running.roles_BS.shape == x_BSD.shape[:2], "skips act in FrozenLLM's passes"
            key = ("now", id(self), self.kinds[block])
            if key in running.memo:  # blocks that skip alike share what was decided
                decision, self.now[block] = running.memo[key]
            else:
                decision = self.decide(block, x_BSD.detach(), running)
                self.now[block] = self._now(block, decision, running)
                if self.kinds[block] is not None:
                    running.memo[key] = decision, self.now[block]
            self._tell(block, running)
            if self.decisions is not None:
                self.decisions.append((running.num_past, block, decision))

        return begin

    def _tell(self, block: int, running: PassContext) -> None:
        """For whoever looks into the block: which sites are computed for some tokens only."""
        now = self.now[block]
        for site, rows in ((Site.SA, now.queries), (Site.LN2, now.ffn), (Site.FC1, now.ffn), (Site.FC2, now.ffn)):
            if rows is not None:
                running.taken[block, site] = rows

    def _end(self, block: int) -> Callable[..., None]:
        def end(_module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
            self.now.pop(block, None)

        return end

    def _pick(self, block: int, what: str) -> Callable[..., Any]:
        def pick(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            rows = getattr(self.now[block], what)
            if rows is None:
                return None
            if args:
                return (rows.pick(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": rows.pick(kwargs["hidden_states"])}

        return pick

    def _put(self, block: int, what: str) -> Callable[..., Any]:
        def put(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            rows = getattr(self.now[block], what)
            if rows is None:
                return None
            value = output[0] if isinstance(output, tuple) else output
            value = rows.put(value, flat=value.dim() == 2)
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return put

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _now(self, block: int, decision: Decision, running: PassContext) -> BlockDecision:
        def rows(*parts: str) -> TokenIndex | None:
            skips = [decision[part] for part in parts if part in decision and bool(decision[part].any())]
            if not skips:
                return None
            skip_BS = torch.stack(skips).any(0)
            key = ("rows", skip_BS.cpu().numpy().tobytes())
            if key not in running.memo:
                running.memo[key] = TokenIndex(~skip_BS, real(running.roles_BS))
            found: TokenIndex = running.memo[key]
            return found

        now = BlockDecision(rows("ffn", "block"), rows("attn", "block"), rows("hidden"), None, {}, running)
        if any(skip.visibility == "hidden" for skip in self.by_block[block]):
            hidden_BS = decision.get("hidden", torch.zeros_like(running.roles_BS, dtype=torch.bool))
            past = running.history.setdefault(("hidden", block), [])
            past.append(hidden_BS)
            now.hidden_BK = torch.cat(past, dim=1)
        now.heads = {int(part[4:]): skip for part, skip in decision.items() if part.startswith("head")}
        return now

    def choose(self, block: int, x_BSD: Tensor, running: PassContext) -> Decision:
        """What the skips of a block leave out, by part: ffn, attn, block; head<h>; hidden: keys that nobody sees."""
        decision: Decision = {}

        def add(name: str, skip_BS: Tensor) -> None:
            decision[name] = decision[name] | skip_BS if name in decision else skip_BS

        for index, skip in enumerate(self.skips):
            if skip not in self.by_block[block]:
                continue
            skip_BS = self._chosen(index, skip, block, x_BSD, running)
            for name in [skip.part] if skip.heads is None else [f"head{head}" for head in skip.heads]:
                add(name, skip_BS)
            if skip.visibility == "hidden":
                add("hidden", skip_BS)
        return decision

    def _chosen(self, index: int, skip: SkipRule, block: int, x_BSD: Tensor, running: PassContext) -> Tensor:
        varies = skip.needs_states or skip.redraw_per_block
        key = ("chosen", index, block if varies else None)
        if key not in running.memo:
            skip_BS = skip.chosen(self.llm, x_BSD, running)
            if skip_BS is None:
                skip_BS = torch.zeros_like(running.roles_BS, dtype=torch.bool)
                for group in skip.groups:
                    skip_BS |= share_of(skip, group, block, x_BSD, self.inputs.get(block - 1), running)
            if skip.keep_sinks and not running.num_past:
                skip_BS = skip_BS & ~first_real(running.roles_BS)
            running.memo[key] = skip_BS
        found: Tensor = running.memo[key]
        return found


def replay(llm: FrozenLLM, skips: Sequence[SkipRule], decisions: Sequence[tuple[int, int, Decision]]) -> Engine:
    """An engine that makes the decisions of recorded passes (one decoding) again, in one pass over the whole."""
    whole: dict[int, list[Decision]] = {}
    for _, block, decision in decisions:
        whole.setdefault(block, []).append(decision)

    def decide(block: int, _x_BSD: Tensor, running: PassContext) -> Decision:
        steps = whole[block]
        names = {name for step in steps for name in step}
        lengths = [next(iter(step.values())).shape[1] for step in steps]
        blank = [torch.zeros(len(running.roles_BS), length, dtype=torch.bool) for length in lengths]
        return {name: torch.cat([step.get(name, b) for step, b in zip(steps, blank, strict=True)], 1) for name in names}

    return Engine(llm, skips, decide)
