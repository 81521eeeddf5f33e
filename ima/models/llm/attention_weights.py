"""Attention weights of a pass, recomputed from queries and keys beside it: what the pass computes stays as it is.

While `watching` is open, attention of this LLM goes through a function that calls what was there before and shows the
weights that the family's own plain products give for the same queries, keys and mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.projections import projections_of

WATCHED = "ima_watched"
KNOWN = ("sdpa", "eager")
Seen = Callable[[int, Tensor], None]  # block, weights_BHSK
# Attention modules of a watched LLM -> (their block, who looks, what was there before).
_watched: dict[nn.Module, tuple[int, Seen, str]] = {}


def can_watch(llm: FrozenLLM) -> bool:
    """Not where an intervention has put an attention of its own."""
    return getattr(llm.model.config, "_attn_implementation", None) in KNOWN


@contextmanager
def watching(llm: FrozenLLM, see: Seen) -> Iterator[None]:
    """see: told the weights of each block of each pass."""
    config = llm.model.config
    before = config._attn_implementation
    assert before in KNOWN, "asked of can_watch"
    modules = [projections_of(llm.table, block).attention for block in range(llm.num_blocks)]
    ALL_ATTENTION_FUNCTIONS.register(WATCHED, watched)
    ALL_MASK_ATTENTION_FUNCTIONS.register(WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[before])
    for block, module in enumerate(modules):
        _watched[module] = block, see, before
    config._attn_implementation = {"": WATCHED}
    try:
        yield
    finally:
        config._attn_implementation = {"": before}
        for module in modules:
            _watched.pop(module, None)


def watched(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query (B, H, S, W), key and value (B, H_kv, K, W) -> (B, S, H, W)."""
    block, see, before = _watched[module]
    plain = eager_attention_forward(module, query, key, value, added(attention_mask, query, key), **kwargs)
    assert plain[1] is not None
    see(block, plain[1].detach())
    if before == "eager":
        return plain
    stock = ALL_ATTENTION_FUNCTIONS[before]
    found: tuple[Tensor, Tensor | None] = stock(module, query, key, value, attention_mask, **kwargs)
    return found


def eager_attention_forward(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The family's own products, bounds of the scores included."""
    found: tuple[Tensor, Tensor | None] = sys.modules[type(module).__module__].eager_attention_forward(
        module, *args, **kwargs
    )
    return found


def added(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask as it is added to scores; None stands for causal."""
    if mask is None:
        length, num_keys = query.shape[2], key.shape[2]
        places = torch.arange(num_keys, device=query.device)
        mask = (places <= places[num_keys - length :, None])[None, None]
    if mask.dtype != torch.bool:
        return mask
    least = torch.finfo(query.dtype).min
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, least)
