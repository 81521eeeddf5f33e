"""Single perceptual tokens of some examples, kept by layer: what lenses and patch maps look at.

Memory: examples x layers x perceptual tokens x width in the dtype of the model, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.kept_means import of_all_ranks
from ima.core.types import Role, Site


class KeptPercepts:
    """A tap's sink. wanted: ids that are kept; others are passed over."""

    def __init__(self, wanted: Sequence[str], layers: Sequence[int]) -> None:
        self.wanted, self.layers = frozenset(wanted), sorted(set(layers))
        self.kept: dict[str, Tensor] = {}

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._rows = [row for row, name in enumerate(sample_ids) if name in self.wanted]
        self._ids = [sample_ids[row] for row in self._rows]
        self._mask_BS = roles_BS == Role.PERCEPT
        self._states: dict[int, list[Tensor]] = {}

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        if site is Site.RESID_POST and layer in self.layers:
            assert seen_BS is None, "the residual stream is of all tokens"
            self._states[layer] = [x_BSD[row, self._mask_BS[row]].cpu().clone() for row in self._rows]

    def end(self) -> None:
        for index, name in enumerate(self._ids):
            self.kept[name] = torch.stack([self._states[layer][index] for layer in self.layers])
        self._states = {}

    def reduce(self) -> None:
        """The examples of all ranks, on every rank."""
        self.kept = of_all_ranks(self.kept)

    def at(self, layer: int, ids: Sequence[str]) -> list[Tensor]:
        """x_KD in fp32 of each example."""
        index = self.layers.index(layer)
        return [self.kept[name][index].float() for name in ids]


def centred(tokens: Sequence[Tensor]) -> list[Tensor]:
    """Unit vectors minus their mean over media (of each medium's mean), and unit vectors again; media without tokens
    stay as they are."""
    units = [normalize(x_KD, dim=1) for x_KD in tokens]
    means = [x_KD.mean(0) for x_KD in units if len(x_KD)]
    if not means:
        return units
    centre_D = torch.stack(means).mean(0)
    return [normalize(x_KD - centre_D, dim=1) for x_KD in units]
