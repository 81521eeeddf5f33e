"""The linear maps of attention and the way into the FFN of one block, by the record of its family.

A family whose queries, keys and values come out of one fused matrix has no map of their own for them.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from ima.core.types import Site
from ima.models.llm.sites import SiteTable


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
    names, layer = table.family.names, table.blocks[block]

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
