"""Attention under a skip: transformers' own attention interface, with queries, keys and heads of the others left out.

While an engine is open, attention of its model goes through `attend`, which looks up what the block leaves out.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ima.interventions.skip.decision import BlockDecision
from ima.models.llm.attention_weights import eager_attention_forward

ATTENTION = "ima_skip"
PLAIN_ATTENTION = "ima_skip_eager"  # of models whose attention bounds its scores (Gemma 2)
# Attention modules under an open engine -> (block -> what it leaves out in the running pass, block).
_decisions: dict[nn.Module, tuple[dict[int, BlockDecision], int]] = {}


def deciding(stack: ExitStack, module: nn.Module, decisions: dict[int, BlockDecision], block: int) -> None:
    """Until `stack` is closed, the attention module of `block` leaves out what `decisions` says."""
    assert module not in _decisions, "two engines on one model"
    _decisions[module] = (decisions, block)
    stack.callback(_decisions.pop, module)


def switch_attention(stack: ExitStack, config: Any) -> None:
    """Attention of this model goes through `attend` until `stack` is closed; parts with a config of their own keep
    theirs (an encoder of pictures). Configs of sub-modules are the model's own object."""
    before = config._attn_implementation
    name, function, mask = (
        (PLAIN_ATTENTION, attend_plainly, eager_mask) if before == "eager" else (ATTENTION, attend, sdpa_mask)
    )
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
    config._attn_implementation = {"": name}
    stack.callback(setattr, config, "_attn_implementation", {"": before})


def attend_plainly(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    return attend(module, query, key, value, attention_mask, stock=eager_attention_forward, **kwargs)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    stock: Any = sdpa_attention_forward,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, S, W), key and value (B, H_kv, K, W) -> (B, S, H, W)."""
    entered = _decisions.get(module)
    now = entered[0].get(entered[1]) if entered is not None else None
    if now is None or (now.queries is None and now.hidden_BK is None and not now.heads):
        found, _ = stock(module, query, key, value, attention_mask, **kwargs)
        return found, None
    length, num_keys = query.shape[2], key.shape[2]
    columns = now.queries.queries() if now.queries is not None else torch.arange(length, device=query.device)[None]
    if attention_mask is None:  # causal, all seen: the mask that the taken queries need
        places = torch.arange(num_keys, device=query.device)
        attention_mask = places <= (columns + num_keys - length)[:, None, :, None]
    elif now.queries is not None:
        if now.queries.is_slice:
            attention_mask = attention_mask[:, :, now.queries.lo : now.queries.hi]
        else:
            wide = attention_mask.expand(len(columns), -1, -1, -1)
            attention_mask = wide.gather(2, columns[:, None, :, None].expand(-1, wide.shape[1], -1, num_keys))
    if now.hidden_BK is not None:
        seen = ~now.hidden_BK[:, None, None, -num_keys:]
        attention_mask = (
            attention_mask & seen
            if attention_mask.dtype == torch.bool
            else attention_mask.masked_fill(~seen, torch.finfo(attention_mask.dtype).min)
        )
    if now.queries is not None:
        if columns.shape[1] == 0:
            return query.new_zeros(query.shape[0], length, query.shape[1], query.shape[3]), None
        if now.queries.is_slice:
            query = query[:, :, now.queries.lo : now.queries.hi]
        else:
            query = query.gather(2, columns[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
    found, _ = stock(module, query, key, value, attention_mask, **kwargs)
    if now.queries is not None:
        found = now.queries.put_queries(found, columns)
    for head, skip_BS in now.heads.items():
        found = found.clone()
        found[:, :, head] = torch.where(skip_BS[..., None], 0, found[:, :, head])
    return found, None
