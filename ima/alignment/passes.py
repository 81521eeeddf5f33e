"""What is kept of a batch while the layers go by: mean tokens per view, norms, cosines with earlier layers.

`Pass` sees the states of one site, `add_variants` makes the views that need more than roles (methods 11). Everything
is fp32 whatever the model computes in. Scratch memory is reused from pass to pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ima.alignment.scales import Scale, Scales
from ima.alignment.views import NUM_GROUPS, Plan, group_of, view_masks

STEPS = (1, 8)


@dataclasses.dataclass
class Places:
    """Who is who in one batch. mask_BRS, weight_BRS: of the views that roles alone decide, the weights sum to one;
    onehot_GB: jackknife groups; inside_B: of the subset that the scales are from."""

    mask_BRS: Tensor
    weight_BRS: Tensor
    has_BR: Tensor
    onehot_GB: Tensor
    inside_B: Tensor

    @classmethod
    def of(cls, roles_BS: Tensor, sample_ids: Sequence[str], num_views: int, scales: Scales | None) -> Places:
        mask_BRS = view_masks(roles_BS)[:, :num_views]
        count_BR = mask_BRS.sum(-1)
        weight_BRS = mask_BRS.float() / count_BR.clamp_min(1)[..., None]
        device = roles_BS.device
        groups = torch.tensor([group_of(sample_id) for sample_id in sample_ids], device=device)
        inside = [scales is not None and sample_id in scales.sample_ids for sample_id in sample_ids]
        onehot_GB = torch.nn.functional.one_hot(groups, NUM_GROUPS).T.float()
        return cls(mask_BRS, weight_BRS, (count_BR > 0).float(), onehot_GB, torch.tensor(inside, device=device))


@dataclasses.dataclass
class Seen:
    """What a pass leaves of one site: mean tokens per view and whether there are any, token norms, and the cosine
    between layers l and l + n of each token (`cosines[n]`: the l and their cosines). `scales`: by layer."""

    layers: list[int]
    means_LBRD: Tensor
    has_LBR: Tensor
    norms_LBS: Tensor
    cosines: dict[int, tuple[list[int], Tensor]]
    massive: tuple[Tensor, Tensor] | None  # means_LB2D and has_LB2 without massive tokens
    scales: list[Scale]


class Pass:
    """Looks at the states of one site in passing. Kept are a mean token per view and layer, and the last max(STEPS)
    states. Scratch memory is reused from pass to pass: fresh pages cost more than the arithmetic."""

    def __init__(self, places: Places, consecutive: bool, num_layers: int, scratch: dict[str, Tensor]) -> None:
        self.places, self.consecutive, self.num_layers = places, consecutive, num_layers
        self.weight_BRS, self.scratch = places.weight_BRS, scratch
        self.width = 0
        self.layers: list[int] = []
        self.norms_BS: dict[int, Tensor] = {}
        self.recent: dict[int, Tensor] = {}
        self.cosines_BS: dict[int, dict[int, Tensor]] = {n: {} for n in STEPS}
        self.massive: list[tuple[Tensor, Tensor]] = []
        self.scales: list[Scale] = []

    def room(self, name: str, *shape: int) -> Tensor:
        """Scratch of this shape; its content is what was left there."""
        size = math.prod(shape)
        if name not in self.scratch or self.scratch[name].numel() < size:
            self.scratch[name] = torch.empty(size, dtype=torch.float32, device=self.weight_BRS.device)
        return self.scratch[name][:size].view(shape)

    def see(self, layer: int, x_BSD: Tensor, scale: Scale | None = None, nomassive: bool = False) -> None:
        self.width = x_BSD.shape[-1]
        place = f"state {len(self.layers) % (max(STEPS) + 1)}"  # a ring: one more than the furthest step looks back
        x_BSD = self.room(place, *x_BSD.shape).copy_(x_BSD)
        torch.bmm(self.weight_BRS, x_BSD, out=self.means_LBRD()[len(self.layers)])
        self.layers.append(layer)
        self.norms_BS[layer] = dot(x_BSD, x_BSD).sqrt()
        if scale is not None:
            self.scales.append(scale)
            if nomassive:
                mask_B2S = self.places.mask_BRS[:, :2] & (self.norms_BS[layer] <= scale.massive)[:, None]
                count_B2 = mask_B2S.sum(-1)
                weight_B2S = mask_B2S.float() / count_B2.clamp_min(1)[..., None]
                self.massive.append((torch.bmm(weight_B2S, x_BSD), (count_B2 > 0).float()))
        if not self.consecutive:
            return
        for n in STEPS:
            if layer - n in self.recent:
                norms = self.norms_BS[layer], self.norms_BS[layer - n]
                self.cosines_BS[n][layer - n] = cosine(dot(x_BSD, self.recent[layer - n]), *norms)
        self.recent[layer] = x_BSD
        self.recent.pop(layer - max(STEPS), None)

    def means_LBRD(self) -> Tensor:
        return self.room("means", self.num_layers, *self.weight_BRS.shape[:2], self.width)

    def finish(self) -> Seen:
        self.recent = {}
        norms = torch.stack([self.norms_BS[layer] for layer in self.layers])
        cosines = {n: (list(found), torch.stack(list(found.values()))) for n, found in self.cosines_BS.items() if found}
        has_LBR = self.places.has_BR.expand(len(self.layers), -1, -1)
        means_LBRD = self.means_LBRD()[: len(self.layers)]
        massive = None
        if self.massive:
            massive = torch.stack([mean for mean, _ in self.massive]), torch.stack([has for _, has in self.massive])
        return Seen(self.layers, means_LBRD, has_LBR, norms, cosines, massive, self.scales)


def add_variants(seen: Seen, plan: Plan, places: Places) -> None:
    """Append the views that need more than roles. Where an example has none, its mean is the zero vector."""
    means_LB2D, has_LB2 = seen.means_LBRD[:, :, :2], seen.has_LBR[:, :, :2]
    means, has = [seen.means_LBRD], [seen.has_LBR]
    for variant in (view.rpartition(".")[2] for view in plan.views[plan.num_by_role :: 2]):
        if variant == "nomassive":
            assert seen.massive is not None
            made, there = seen.massive
        elif variant == "scaled":
            made = means_LB2D * torch.stack([scale.inverse_D for scale in seen.scales])[:, None, None]
            there = has_LB2
        elif variant == "centred":
            pairs = zip(seen.scales, means_LB2D, strict=True)
            found = [scale.centres(mean_B2D, places.inside_B) for scale, mean_B2D in pairs]
            there = has_LB2 * torch.stack([known_B2 for _, known_B2 in found])
            made = (means_LB2D - torch.stack([centre_B2D for centre_B2D, _ in found])) * there[..., None]
        else:
            follows = torch.tensor([b == a + 1 for a, b in zip([-2, *seen.layers], seen.layers, strict=False)])
            there = has_LB2 * follows.to(has_LB2)[:, None, None]
            made = (means_LB2D - torch.cat([means_LB2D[:1], means_LB2D[:-1]])) * there[..., None]
        means.append(made)
        has.append(there)
    if len(means) > 1:
        seen.means_LBRD, seen.has_LBR = torch.cat(means, dim=2), torch.cat(has, dim=2)


def dot(a_BSD: Tensor, b_BSD: Tensor) -> Tensor:
    """Inner products over the last dimension, fp32. On the CPU numpy reads both once; torch would write the product."""
    if a_BSD.device.type == "cpu":
        return torch.from_numpy(np.vecdot(a_BSD.numpy(), b_BSD.numpy()))
    return (a_BSD * b_BSD).sum(-1)


def cosine(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    return product / (norm_a * norm_b).clamp_min(torch.finfo(torch.float32).tiny)
