"""Sinks, named: the few dimensions in which some tokens carry massive activations, and the tokens that do so.

A token is massive in a dimension where |x_d| exceeds 1,000 times the median |x| of its example's P and T tokens at that
layer. (The median of the example, not of the layer over all of them, so that no earlier pass is needed and batches do
not matter; taken over at most 63 evenly spaced dimensions, which is exact to a few percent where sinks differ by a
factor.) Sink dimensions are those in which, over text alone, some token is massive at half or more of the layers
L/4..3L/4 that are looked at. A token is a sink at a layer where it is massive in a sink dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ima.core.types import Role, Site

TIMES = 1000.0
NUM_DIMENSIONS = 32


def limits(x_BSD: Tensor, roles_BS: Tensor) -> Tensor:
    """limit_B: above which |x_d| is massive; infinite for an example without P and T."""
    wanted = torch.tensor([int(Role.PERCEPT), int(Role.PROMPT), int(Role.ANSWER)], device=roles_BS.device)
    mask_BS = torch.isin(roles_BS, wanted)
    some_BSE = x_BSD[..., :: max(1, x_BSD.shape[-1] // NUM_DIMENSIONS)].abs().float()
    median_B = some_BSE.masked_fill(~mask_BS[..., None], torch.nan).flatten(1).nanmedian(1).values
    return TIMES * median_B.nan_to_num(torch.inf)


def sink_mask(x_BSD: Tensor, roles_BS: Tensor, dims: Sequence[int]) -> Tensor:
    """sink_BS: whether a token is a sink. Without sink dimensions none is."""
    if not dims:
        return torch.zeros_like(roles_BS, dtype=torch.bool)
    return (x_BSD[..., list(dims)].abs().float() > limits(x_BSD, roles_BS)[:, None, None]).any(-1)


def middle(layers: Sequence[int], num_blocks: int) -> list[int]:
    return [layer for layer in layers if num_blocks / 4 <= layer <= 3 * num_blocks / 4]


class SinkDimensions:
    """A tap's sink, over text alone: counts at how many middle layers some token is massive in a dimension."""

    def __init__(self, layers: Sequence[int], num_blocks: int) -> None:
        self.layers = middle(layers, num_blocks)
        self.massive_D: dict[int, Tensor] = {}

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._roles_BS = roles_BS

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        if site is not Site.RESID_POST or layer not in self.layers:
            return
        real_BS1 = (self._roles_BS != Role.PAD)[..., None]
        over_BSD = x_BSD.abs().float() > limits(x_BSD, self._roles_BS)[:, None, None]
        found_D = (over_BSD & real_BS1).any(1).any(0).cpu()
        self.massive_D[layer] = self.massive_D.get(layer, torch.zeros_like(found_D)) | found_D

    def end(self) -> None:
        """Nothing to do."""

    def found(self) -> list[int]:
        if not self.massive_D:
            return []
        counts_D = torch.stack(list(self.massive_D.values())).sum(0)
        return [int(d) for d in (2 * counts_D >= len(self.layers)).nonzero()[:, 0]]
