"""What a pass costs, part by part, and what a plan leaves of it: FLOPs with a multiply-add counted as 2.

Counted are the matrix products: projections, attention scores and values over the whole rectangle of queries x keys
(masked ones are computed too), FFN, LM head. Norms, rotations and softmax are not. The number of skipped tokens is what
the engine itself decides on a made-up sequence of the given roles. Agrees with PyTorch's FLOP counter where the rows of
a batch agree on what is skipped; else a batch computes a few positions more (`rows.MAX_SURPLUS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ima.core.types import Role
from ima.interventions import Intervention
from ima.interventions.drop import Drop
from ima.interventions.skip.engine import Engine
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.plan import Skip
from ima.models.llm.frozen import FrozenLLM, Running
from ima.models.llm.projections import projections_of

ORDER = (Role.SOFT, Role.PERCEPT, Role.SPECIAL, Role.PROMPT, Role.ANSWER)  # of a made-up sequence
Tokens = Mapping[str, int]  # name of a role, lower case -> how many of it an example has


@dataclasses.dataclass(frozen=True)
class Flops:
    """By part. `lens`: what an entropy looks through before it decides."""

    query: float = 0.0
    key: float = 0.0
    value: float = 0.0
    out: float = 0.0
    scores: float = 0.0
    values: float = 0.0
    ffn: float = 0.0
    head: float = 0.0
    lens: float = 0.0

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Weights of a block's linear maps, and of attention: `inner` = heads x head width. fused: queries, keys and values
    come from one matrix and are all made or none. window: so many keys at most are kept (None: all)."""

    query: int
    key: int
    value: int
    out: int
    ffn: int
    inner: int
    fused: bool
    window: int | None

    def flops(self, num_queries: float, num_keys_made: float, num_keys: int, num_ffn: float, length: int) -> Flops:
        """Of a pass over `length` positions of which so many are queries, are made keys, see the FFN."""
        made = length if self.fused else num_keys_made
        pairs = 2 * self.inner * num_queries * num_keys
        return Flops(
            query=2 * self.query * (length if self.fused else num_queries),
            key=2 * self.key * made,
            value=2 * self.value * made,
            out=2 * self.out * num_queries,
            scores=pairs,
            values=pairs,
            ffn=2 * self.ffn * num_ffn,
        )


def shape_of(llm: FrozenLLM, block: int) -> BlockShape:
    maps, config = projections_of(llm.table, block), llm.model.config
    out = weight_of(maps.out)
    inside = {id(module) for module in maps.attention.modules()}
    linear = [module for module in llm.table.blocks[block].modules() if isinstance(module, nn.Linear)]
    ffn = sum(module.weight.numel() for module in linear if id(module) not in inside)
    window = getattr(maps.attention, "sliding_window", None)
    if not hasattr(maps.attention, "sliding_window") and not hasattr(config, "layer_types"):
        window = getattr(config, "sliding_window", None)
    if maps.query is not None and maps.key is not None and maps.value is not None:
        query, key, value = (weight_of(module).numel() for module in (maps.query, maps.key, maps.value))
        return BlockShape(query, key, value, out.numel(), ffn, out.shape[1], False, window)
    num_heads = config.num_attention_heads
    num_kv = getattr(config, "num_key_value_heads", None) or num_heads
    query = out.shape[1] * config.hidden_size
    return BlockShape(
        query, query * num_kv // num_heads, query * num_kv // num_heads, out.numel(), ffn, out.shape[1], True, window
    )


def weight_of(module: nn.Module) -> Tensor:
    module = getattr(module, "base_layer", module)  # LoRA beside it is as good as free
    assert isinstance(module, nn.Linear)
    return module.weight


# -- what a plan leaves out ------------------------------------------------------------------------------------------


def sequence(tokens: Tokens) -> Tensor:
    """(1, S): the roles of an example with so many tokens of each."""
    unknown = set(tokens) - {role.name.lower() for role in ORDER}
    assert not unknown, f"no roles of a prompt: {unknown}"
    return torch.tensor([[int(role) for role in ORDER for _ in range(tokens.get(role.name.lower(), 0))]])


def decisions(llm: FrozenLLM, skips: Sequence[Skip], roles_1S: Tensor) -> dict[int, dict[str, Tensor]]:
    """Block -> what is skipped there by part, as the engine decides it for the prompt. An entropy skips nothing here:
    what it skips lies in the data."""
    engine = Engine(llm, [skip for skip in skips if not isinstance(skip, Entropy) and skip.ratio > 0])
    running = Running(roles_1S, ("plan",))
    states = torch.randn(2, *roles_1S.shape, 4, generator=torch.Generator().manual_seed(0))
    engine.inputs = dict.fromkeys(range(llm.num_blocks), states[0])
    return {block: engine.choose(block, states[1], running) for block in engine.by_block}


def count(decision: Mapping[str, Tensor], *parts: str) -> int:
    found = [decision[part] for part in parts if part in decision]
    return int(torch.stack(found).any(0).sum()) if found else 0


def dropped(llm: FrozenLLM, interventions: Sequence[Intervention]) -> set[int]:
    drops = [change for change in interventions if isinstance(change, Drop)]
    return {block for drop in drops for block in drop.blocks(llm.num_blocks)}


def head_flops(llm: FrozenLLM) -> float:
    """Of the LM head, for one row."""
    return 2.0 * weight_of(llm.model.get_output_embeddings()).numel()


def lens_flops(llm: FrozenLLM, interventions: Sequence[Intervention], block: int) -> Flops:
    looks = [skip for skip in interventions if isinstance(skip, Entropy) and block in skip.blocks(llm.num_blocks)]
    return Flops(lens=head_flops(llm) * len(looks))


def prefill(llm: FrozenLLM, interventions: Sequence[Intervention], tokens: Tokens) -> list[Flops]:
    """Per block, of the pass over the prompt of one example that fills the cache; last the LM head, for one row."""
    roles_1S = sequence(tokens)
    length, gone = roles_1S.shape[1], dropped(llm, interventions)
    skipped = decisions(llm, [change for change in interventions if isinstance(change, Skip)], roles_1S)
    found = []
    for block in range(llm.num_blocks):
        if block in gone:
            found.append(Flops())
            continue
        decision = skipped.get(block, {})
        num_queries = length - count(decision, "attn", "block")
        num_ffn = length - count(decision, "ffn", "block")
        made = length - count(decision, "hidden")
        flops = shape_of(llm, block).flops(num_queries, made, length, num_ffn, length)
        found.append(flops + lens_flops(llm, interventions, block))
    return [*found, Flops(head=head_flops(llm))]


def decode(llm: FrozenLLM, interventions: Sequence[Intervention], num_past: int) -> list[Flops]:
    """Per block, of one more token after `num_past` positions in the cache; last the LM head. A token that is skipped
    by chance counts with its chance."""
    gone = dropped(llm, interventions)
    skips = [s for s in interventions if isinstance(s, Skip) and not isinstance(s, Entropy) and s.ratio > 0]
    found = []
    for block in range(llm.num_blocks):
        if block in gone:
            found.append(Flops())
            continue
        here = [skip for skip in skips if block in skip.blocks(llm.num_blocks)]
        shape = shape_of(llm, block)
        num_keys = num_past + 1 if shape.window is None else min(num_past + 1, shape.window)
        kept = {
            what: kept_share(llm, [skip for skip in here if skip.part in parts and skip.visibility in seen])
            for what, parts, seen in (
                ("queries", ("attn", "block"), ("visible", "hidden")),
                ("ffn", ("ffn", "block"), ("visible", "hidden")),
                ("keys", ("attn", "block", "heads"), ("hidden",)),
            )
        }
        flops = shape.flops(kept["queries"], kept["keys"], num_keys, kept["ffn"], 1)
        found.append(flops + lens_flops(llm, interventions, block))
    return [*found, Flops(head=head_flops(llm))]


def kept_share(llm: FrozenLLM, skips: Sequence[Skip]) -> float:
    """Chance that a decoded token is computed. Skips with one seed draw alike, so that the larger chance holds."""
    by_seed: dict[int, float] = {}
    for skip in skips:
        by_seed[skip.seed] = max(by_seed.get(skip.seed, 0.0), decoded_share(llm, skip))
    kept = 1.0
    for share in by_seed.values():
        kept *= 1 - share
    return kept


def decoded_share(llm: FrozenLLM, skip: Skip) -> float:
    """Chance that a skip leaves out a decoded token."""
    if int(Role.GENERATED) not in skip.ids:
        return 0.0
    running = Running(torch.tensor([[int(Role.GENERATED)]]), ("plan",), num_past=1)
    chosen = skip.chosen(llm, torch.zeros(1, 1, 4), running)
    if chosen is not None:  # by a rule of its own
        return float(bool(chosen.any()))
    return skip.ratio if skip.select == "random" else float(skip.ratio >= 0.5)  # one token, rounded half up
