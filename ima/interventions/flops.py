"""What a pass costs, part by part, and what a plan leaves of it: FLOPs with a multiply-add counted as 2.

Counted are the matrix products: projections, attention scores and values over the whole rectangle of queries x keys
(masked ones are computed too), FFN, LM head. Norms, rotations and softmax are not. What is left out is what each
intervention says itself (`Intervention.savings`); one that does not say makes the plan's FLOPs unknown. Agrees with
PyTorch's FLOP counter where the rows of a batch agree on what is skipped; else a batch computes a few positions more
(`token_index.MAX_SURPLUS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ima.core.types import Role
from ima.interventions.base import Intervention, Tokens
from ima.interventions.work import Chance, Flops, Savings, weight_of
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.projections import projections_of

ORDER = (Role.SOFT, Role.PERCEPT, Role.SPECIAL, Role.PROMPT, Role.ANSWER)  # of a made-up sequence


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


# -- what a plan leaves ----------------------------------------------------------------------------------------------


def sequence(tokens: Tokens) -> Tensor:
    """(1, S): the roles of an example with so many tokens of each."""
    unknown = set(tokens) - {role.name.lower() for role in ORDER}
    assert not unknown, f"no roles of a prompt: {unknown}"
    return torch.tensor([[int(role) for role in ORDER for _ in range(tokens.get(role.name.lower(), 0))]])


def savings_of(llm: FrozenLLM, interventions: Sequence[Intervention], roles_1S: Tensor) -> list[Savings] | None:
    """Of each intervention, or None where one does not say what it saves."""
    found = [intervention.savings(llm, roles_1S) for intervention in interventions]
    known = [savings for savings in found if savings is not None]
    return known if len(known) == len(found) else None


def head_flops(llm: FrozenLLM) -> float:
    """Of the LM head, for one row."""
    return 2.0 * weight_of(llm.model.get_output_embeddings()).numel()


def prefill(llm: FrozenLLM, interventions: Sequence[Intervention], tokens: Tokens) -> list[Flops] | None:
    """Per block, of the pass over the prompt of one example that fills the cache; last the LM head, for one row. None:
    unknown."""
    roles_1S = sequence(tokens)
    savings = savings_of(llm, interventions, roles_1S)
    return None if savings is None else prefill_left(llm, savings, roles_1S.shape[1])


def prefill_left(llm: FrozenLLM, savings: Sequence[Savings], length: int) -> list[Flops]:
    found = []
    for block in range(llm.num_blocks):
        if any(block in each.dropped for each in savings):
            found.append(Flops())
            continue

        def num_left(*parts: str, block: int = block) -> int:
            here = (each.prompt.get(block, {}) for each in savings)
            masks = [decision[part] for decision in here for part in parts if part in decision]
            return length - (int(torch.stack(masks).any(0).sum()) if masks else 0)

        flops = shape_of(llm, block).flops(
            num_left("attn", "block"), num_left("hidden"), length, num_left("ffn", "block"), length
        )
        found.append(sum((each.added[block] for each in savings if block in each.added), flops))
    return [*found, Flops(head=head_flops(llm))]


def decode(llm: FrozenLLM, interventions: Sequence[Intervention], num_past: int) -> list[Flops] | None:
    """Per block, of one more token after `num_past` positions in the cache; last the LM head. A token that is skipped
    by chance counts with its chance. None: unknown."""
    savings = savings_of(llm, interventions, torch.tensor([[int(Role.PROMPT)]]))
    return None if savings is None else decode_left(llm, savings, num_past)


def decode_left(llm: FrozenLLM, savings: Sequence[Savings], num_past: int) -> list[Flops]:
    found = []
    for block in range(llm.num_blocks):
        if any(block in each.dropped for each in savings):
            found.append(Flops())
            continue
        shape = shape_of(llm, block)
        num_keys = num_past + 1 if shape.window is None else min(num_past + 1, shape.window)

        def kept(*parts: str, block: int = block) -> float:
            here = (each.decoded.get(block, {}) for each in savings)
            return kept_share([chances[part] for chances in here for part in parts if part in chances])

        flops = shape.flops(kept("attn", "block"), kept("hidden"), num_keys, kept("ffn", "block"), 1)
        found.append(sum((each.added[block] for each in savings if block in each.added), flops))
    return [*found, Flops(head=head_flops(llm))]


def kept_share(chances: Sequence[Chance]) -> float:
    """Chance that a decoded token is computed. Draws of one seed agree, so that the larger chance holds."""
    by_seed: dict[int, float] = {}
    for chance in chances:
        by_seed[chance.seed] = max(by_seed.get(chance.seed, 0.0), chance.share)
    kept = 1.0
    for share in by_seed.values():
        kept *= 1 - share
    return kept
