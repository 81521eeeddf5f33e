"""What is kept of a batch while the layers go by: mean tokens per view, norms, cosines with earlier layers.

`Pass` sees the states of one site and makes the views that need more than roles (methods 11), too. Everything is
fp32 whatever the model computes in. Scratch memory is reused from pass to pass.
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
    between layers l and l + n of each token (`cosines[n]`: the l and their cosines). Where an example has none of a
    view, its mean is the zero vector."""

    layers: list[int]
    means_LBRD: Tensor
    has_LBR: Tensor
    norms_LBS: Tensor
    cosines: dict[int, tuple[list[int], Tensor]]


class Pass:
    """Looks at the states of one site in passing. Kept are a mean token per view and layer, and the last max(STEPS)
    states. Scratch memory is reused from pass to pass: fresh pages cost more than the arithmetic."""

    def __init__(
        self, places: Places, consecutive: bool, num_layers: int, plan: Plan, scratch: dict[str, Tensor]
    ) -> None:
        self.places, self.consecutive, self.num_layers, self.plan = places, consecutive, num_layers, plan
        self.scratch = scratch
        self.width = 0
        self.layers: list[int] = []
        self.norms_BS: dict[int, Tensor] = {}
        self.recent: dict[int, Tensor] = {}
        self.cosines_BS: dict[int, dict[int, Tensor]] = {n: {} for n in STEPS}
        self.scales: list[Scale] = []
        self.has_LBR = places.has_BR.new_zeros(num_layers, len(places.has_BR), len(plan.views))
        self.has_LBR[..., : plan.num_by_role] = places.has_BR

    def room(self, name: str, *shape: int) -> Tensor:
        """Scratch of this shape; its content is what was left there."""
        size = math.prod(shape)
        if name not in self.scratch or self.scratch[name].numel() < size:
            self.scratch[name] = torch.empty(size, dtype=torch.float32, device=self.has_LBR.device)
        return self.scratch[name][:size].view(shape)

    def see(self, layer: int, x_BSD: Tensor, scale: Scale | None = None) -> None:
        index, plan, weight_BRS = len(self.layers), self.plan, self.places.weight_BRS
        self.width = x_BSD.shape[-1]
        place = f"state {index % (max(STEPS) + 1)}"  # a ring: one more than the furthest step looks back
        x_BSD = self.room(place, *x_BSD.shape).copy_(x_BSD)
        means_BRD = self.means_LBRD()[index]
        means_BRD[:, : plan.num_by_role].baddbmm_(weight_BRS, x_BSD, beta=0)
        self.layers.append(layer)
        self.norms_BS[layer] = dot(x_BSD, x_BSD).sqrt()
        if scale is not None:
            self.scales.append(scale)
            if "nomassive" in plan.variants:
                self._see_nomassive(index, x_BSD, self.norms_BS[layer] <= scale.massive)
        if not self.consecutive:
            return
        for n in STEPS:
            if layer - n in self.recent:
                norms = self.norms_BS[layer], self.norms_BS[layer - n]
                self.cosines_BS[n][layer - n] = cosine(dot(x_BSD, self.recent[layer - n]), *norms)
        self.recent[layer] = x_BSD
        self.recent.pop(layer - max(STEPS), None)

    def _see_nomassive(self, index: int, x_BSD: Tensor, small_BS: Tensor) -> None:
        """Where no token is massive the means are those that are there (asked on the CPU, where it costs nothing)."""
        chosen, means_BRD, has_BR = self.plan.at("nomassive"), self.means_LBRD()[index], self.has_LBR[index]
        mask_B2S = self.places.mask_BRS[:, :2]
        kept_B2S = mask_B2S & small_BS[:, None]
        if x_BSD.device.type == "cpu" and torch.equal(kept_B2S, mask_B2S):
            means_BRD[:, chosen], has_BR[:, chosen] = means_BRD[:, :2], has_BR[:, :2]
            return
        count_B2 = kept_B2S.sum(-1)
        means_BRD[:, chosen].baddbmm_(kept_B2S.float() / count_B2.clamp_min(1)[..., None], x_BSD, beta=0)
        has_BR[:, chosen] = (count_B2 > 0).float()

    def means_LBRD(self) -> Tensor:
        return self.room("means", self.num_layers, len(self.places.has_BR), len(self.plan.views), self.width)

    def finish(self) -> Seen:
        self.recent = {}
        norms = torch.stack([self.norms_BS[layer] for layer in self.layers])
        cosines = {n: (list(found), torch.stack(list(found.values()))) for n, found in self.cosines_BS.items() if found}
        means_LBRD, has_LBR = self.means_LBRD()[: len(self.layers)], self.has_LBR[: len(self.layers)]
        self._add_variants(means_LBRD, has_LBR)
        return Seen(self.layers, means_LBRD, has_LBR, norms, cosines)

    def _add_variants(self, means_LBRD: Tensor, has_LBR: Tensor) -> None:
        """Fill the views that follow from the mean tokens of P and T alone."""
        means_LB2D, has_LB2, plan = means_LBRD[:, :, :2], has_LBR[:, :, :2], self.plan
        if "scaled" in plan.variants:
            inverse_LD = torch.stack([scale.inverse_D for scale in self.scales])
            torch.mul(means_LB2D, inverse_LD[:, None, None], out=means_LBRD[:, :, plan.at("scaled")])
            has_LBR[..., plan.at("scaled")] = has_LB2
        if "centred" in plan.variants:
            for index, scale in enumerate(self.scales):
                centre_B2D, known_B2 = scale.centres(means_LB2D[index], self.places.inside_B)
                there_B2 = has_LB2[index] * known_B2
                made_B2D = (means_LB2D[index] - centre_B2D).mul_(there_B2[..., None])
                means_LBRD[index][:, plan.at("centred")] = made_B2D
                has_LBR[index][:, plan.at("centred")] = there_B2
        if "update" in plan.variants:
            follows = [b == a + 1 for a, b in zip([-2, *self.layers], self.layers, strict=False)]
            there_LB2 = has_LB2 * torch.tensor(follows).to(has_LB2)[:, None, None]
            made_LB2D = means_LBRD[:, :, plan.at("update")]
            made_LB2D[:1] = 0
            torch.sub(means_LB2D[1:], means_LB2D[:-1], out=made_LB2D[1:])
            made_LB2D *= there_LB2[..., None]
            has_LBR[..., plan.at("update")] = there_LB2


def dot(a_BSD: Tensor, b_BSD: Tensor) -> Tensor:
    """Inner products over the last dimension, fp32. On the CPU numpy reads both once; torch would write the product."""
    if a_BSD.device.type == "cpu":
        return torch.from_numpy(np.vecdot(a_BSD.numpy(), b_BSD.numpy()))
    return (a_BSD * b_BSD).sum(-1)


def cosine(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    return product / (norm_a * norm_b).clamp_min(torch.finfo(torch.float32).tiny)
