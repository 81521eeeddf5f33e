"""A skipped block without detours: Llama-type blocks run part by part on the tokens that take part.

The hooks of `ima.interventions.skip.engine` fit every family but carry zeros around the parts. Where a block is of the
plain pre-norm kind (norm, attention with separate maps and rotary positions, norm, FFN) and nobody else looks into it,
its own modules are called on the taken rows instead, and the result is added where it belongs. Checked against the
stock block when the skips are entered; whatever does not fit keeps the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ima.core.types import Role
from ima.interventions.skip.decision import BlockDecision
from ima.interventions.skip.token_index import TokenIndex
from ima.models.llm.acceleration.self_check import without_hooks
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import PassContext

TOLERANCE = 1e-3  # relative, in fp32


class FastPathForward:
    """Stands in for the `forward` of one block while its engine is open. `num_hooks`: those that the engine itself put
    on the block's modules; with more, somebody watches, and the stock forward runs."""

    def __init__(self, layer: Any, decisions: Mapping[int, BlockDecision], block: int, num_hooks: int) -> None:
        self.layer, self.decisions, self.block, self.num_hooks = layer, decisions, block, num_hooks
        self.compiled: Callable[..., Tensor] | None = None

    def compile_with(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None) -> None:
        """While blocks are compiled (`ima.models.llm.compiled`): what takes out slices of columns is, too."""
        self.compiled = None if wrap is None else wrap(run_block)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        now = self.decisions.get(self.block)
        if args or now is None or not self.fits(now, kwargs) or num_inner_hooks(self.layer) != self.num_hooks:
            out: Tensor = type(self.layer).forward(self.layer, hidden_states, *args, **kwargs)
            return out
        mask = rows_mask(kwargs.get("attention_mask"), now, hidden_states.shape[1])
        run = run_block
        if self.compiled is not None and kwargs.get("past_key_values") is None and now.takes_slices:
            run = self.compiled
        return run(self.layer, hidden_states, now.queries, now.ffn, mask, kwargs)

    def fits(self, now: BlockDecision, kwargs: dict[str, Any]) -> bool:
        """Something is skipped, with all keys in this very pass (prefill or no cache at all)."""
        acts = now.ffn is not None or now.queries is not None
        return acts and now.hidden_BK is None and not now.heads and now.running.num_past == 0


def num_inner_hooks(layer: nn.Module) -> int:
    """Hooks and replaced forwards below the block itself."""
    return sum(
        len(vars(inner)["_forward_hooks"]) + len(vars(inner)["_forward_pre_hooks"]) + ("forward" in vars(inner))
        for inner in layer.modules()
        if inner is not layer
    )


def take(x_BSD: Tensor, rows: TokenIndex | None) -> Tensor:
    """(B, n, D): the taken columns of every example."""
    if rows is None:
        return x_BSD
    if rows.is_slice:
        return x_BSD[:, rows.lo : rows.hi].contiguous()
    return x_BSD.gather(1, rows.queries()[..., None].expand(-1, -1, x_BSD.shape[-1]))


def add_at(x_BSD: Tensor, y_BnD: Tensor, rows: TokenIndex | None, owned: bool) -> Tensor:
    """x + y where y was taken. `owned`: x may be written to."""
    if rows is None:
        return x_BSD.add_(y_BnD) if owned else x_BSD + y_BnD
    if not owned:
        x_BSD = x_BSD.clone()
    if rows.is_slice:
        if rows.mask_Bn is not None:
            y_BnD = torch.where(rows.mask_Bn[..., None], y_BnD, 0)
        x_BSD[:, rows.lo : rows.hi] += y_BnD
        return x_BSD
    columns = rows.queries()
    y_BnD = torch.where(rows.wanted_BS.gather(1, columns)[..., None], y_BnD, 0)
    return x_BSD.scatter_add_(1, columns[..., None].expand_as(y_BnD), y_BnD)


def run_block(
    layer: Any,
    x_BSD: Tensor,
    queries: TokenIndex | None,
    ffn: TokenIndex | None,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """The block's output with these tokens taking part, from its own modules; their hooks do not fire. mask: the rows
    of the attention mask of the queries."""
    free = not torch.is_grad_enabled() or not x_BSD.requires_grad  # states of our own may be written to
    mid_BSD = x_BSD
    nobody = queries is not None and queries.num == 0
    if not nobody or kwargs.get("past_key_values") is not None:
        added_BnD = attention(layer, x_BSD, queries, mask, kwargs)
        if added_BnD is not None:
            mid_BSD = add_at(x_BSD, added_BnD, queries, owned=False)
    if ffn is not None and ffn.num == 0:
        return mid_BSD
    taken = mid_BSD if ffn is None else ffn.pick(mid_BSD)
    y = layer.mlp.forward(layer.post_attention_layernorm.forward(taken))
    owned = free and mid_BSD is not x_BSD
    if ffn is None or ffn.index_N is None:
        return add_at(mid_BSD, y, ffn, owned)
    flat = (mid_BSD if owned else mid_BSD.clone()).flatten(0, 1)
    return flat.index_add_(0, ffn.index_N, y[0]).view_as(mid_BSD)


def attention(
    layer: Any, x_BSD: Tensor, rows: TokenIndex | None, mask: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """(B, n, D): what attention adds for the taken queries; None where there are none (keys went to the cache)."""
    maps = layer.self_attn
    if rows is None:
        out: Tensor = type(maps).forward(maps, hidden_states=layer.input_layernorm.forward(x_BSD), **kwargs)[0]
        return out
    normed_BSD = layer.input_layernorm.forward(x_BSD)
    batch = len(x_BSD)
    cos, sin = (part.expand(batch, -1, -1) for part in kwargs["position_embeddings"])

    def heads(module: nn.Linear, y_BnD: Tensor) -> Tensor:
        return module.forward(y_BnD).unflatten(-1, (-1, maps.head_dim)).transpose(1, 2)

    key, value = heads(maps.k_proj, normed_BSD), heads(maps.v_proj, normed_BSD)
    if hasattr(maps, "k_norm"):
        key = maps.k_norm.forward(key)
    key = rotate(key, cos, sin)
    if kwargs.get("past_key_values") is not None:
        key, value = kwargs["past_key_values"].update(key, value, maps.layer_idx)
    if rows.num == 0:
        return None
    query = heads(maps.q_proj, take(normed_BSD, rows))
    if hasattr(maps, "q_norm"):
        query = maps.q_norm.forward(query)
    query = rotate(query, take(cos, rows), take(sin, rows))
    found, _ = sdpa_attention_forward(maps, query, key, value, mask, scaling=maps.scaling)
    added: Tensor = maps.o_proj.forward(found.flatten(2))
    return added


def rotate(x_BHnW: Tensor, cos_BnW: Tensor, sin_BnW: Tensor) -> Tensor:
    first, second = x_BHnW.chunk(2, dim=-1)
    return x_BHnW * cos_BnW[:, None] + torch.cat([-second, first], dim=-1) * sin_BnW[:, None]


def rows_mask(mask: Tensor | None, now: BlockDecision, length: int) -> Tensor | None:
    """The rows of the attention mask that the taken queries need, where not all or none are taken; a missing mask is
    causal. Made once a pass."""
    rows = now.queries
    if rows is None or rows.num == 0:
        return None
    memo, key = now.running.memo, ("mask", id(rows), id(mask))
    if key not in memo:
        if mask is None:
            places = torch.arange(length, device=rows.wanted_BS.device)
            found = places <= rows.queries()[:, None, :, None]
        elif rows.is_slice:
            found = mask[:, :, rows.lo : rows.hi]
        else:
            columns = rows.queries()
            wide = mask.expand(len(columns), -1, -1, -1)
            found = wide.gather(2, columns[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[-1]))
        memo[key] = (found, rows, mask)  # these live as long as their ids are a key
    result: Tensor = memo[key][0]
    return result


@torch.no_grad()
def unsupported_reason(llm: FrozenLLM, block: int) -> str:
    """Why a block cannot take the fast path; "" where it can. Compares with the stock block, in fp32, all tokens
    taking part."""
    table = llm.table
    layer: Any = table.blocks[block]
    if not table.family.plain_block:
        return f"{table.model_type} is not of the plain kind"
    wanted = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    if sorted(name for name, _ in layer.named_children()) != sorted(wanted):
        return "its modules are not those of the plain kind"
    dtype = next(layer.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    width = llm.model.config.hidden_size
    maps: Any = layer.self_attn
    x_BSD = torch.randn(2, 5, width, generator=generator).to(layer.input_layernorm.weight.device, dtype)
    angle = (torch.rand(2, 5, maps.head_dim // 2, generator=generator) * 6).repeat(1, 1, 2)
    position = (angle.cos().to(x_BSD), angle.sin().to(x_BSD))
    roles = torch.full((2, 5), int(Role.PROMPT), device=x_BSD.device)
    everything = torch.ones_like(roles, dtype=torch.bool)
    now = BlockDecision(
        TokenIndex(everything, everything), TokenIndex(everything, everything), None, None, {}, PassContext(roles)
    )
    kwargs = {"attention_mask": None, "position_embeddings": position}
    with without_hooks(layer):
        stock = type(layer).forward(layer, x_BSD, **kwargs)
        found = run_block(layer, x_BSD, now.queries, now.ffn, rows_mask(None, now, 5), kwargs)
    error = float((found.float() - stock.float()).norm() / stock.float().norm())
    return "" if error <= (TOLERANCE if dtype == torch.float32 else 0.02) else f"it is {error:.1e} off the stock block"
