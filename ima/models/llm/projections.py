"""Where the linear maps of attention and the way into the FFN lie in each family; names only, beside the site table.

A family whose queries, keys and values come out of one fused matrix has no map of their own for them.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from ima.core.types import Site
from ima.models.llm.sites import SiteTable


@dataclasses.dataclass(frozen=True)
class Names:
    """Relative to the block. ffn_in: the first module of the FFN's way (its norm, where it has one of its own)."""

    attention: str
    out: str
    ffn_in: str
    query: str | None = None
    key: str | None = None
    value: str | None = None


def split(attention: str, out: str, ffn_in: str) -> Names:
    maps = (f"{attention}.{name}_proj" for name in "qkv")
    return Names(attention, f"{attention}.{out}", ffn_in, *maps)


PRE_NORM = split("self_attn", "o_proj", "post_attention_layernorm")
FUSED = Names("self_attn", "self_attn.o_proj", "post_attention_layernorm")
NEOX = Names("attention", "attention.dense", "post_attention_layernorm")

PROJECTIONS: dict[str, Names] = {
    "llama": PRE_NORM,
    "mistral": PRE_NORM,
    "qwen2": PRE_NORM,
    "qwen3": PRE_NORM,
    "smollm3": PRE_NORM,
    "phi3": FUSED,
    "gemma3_text": split("self_attn", "o_proj", "pre_feedforward_layernorm"),
    "olmo2": split("self_attn", "o_proj", "mlp"),
    "opt": split("self_attn", "out_proj", "final_layer_norm"),
    "gpt_neox": NEOX,
}


@dataclasses.dataclass(frozen=True)
class Projections:
    """The modules of one block. query, key, value are None where they are fused."""

    attention: nn.Module
    out: nn.Module
    ffn_in: nn.Module
    ffn_out: nn.Module
    query: nn.Module | None
    key: nn.Module | None
    value: nn.Module | None


def projections_of(table: SiteTable, block: int) -> Projections:
    names, layer = PROJECTIONS[table.model_type], table.blocks[block]

    def optional(name: str | None) -> nn.Module | None:
        return None if name is None else layer.get_submodule(name)

    return Projections(
        attention=layer.get_submodule(names.attention),
        out=layer.get_submodule(names.out),
        ffn_in=layer.get_submodule(names.ffn_in),
        ffn_out=table.place(block, Site.FC2).module,
        query=optional(names.query),
        key=optional(names.key),
        value=optional(names.value),
    )
