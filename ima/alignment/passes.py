"""What is kept of a batch while the layers go by: mean tokens per view, norms, cosines with earlier layers.

`Pass` sees the states of one site and makes the views that need more than roles (methods 11), too. Everything is
fp32 whatever the model computes in.
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
from ima.llm.sites import version_of
from ima.types import Site

STEPS = (1, 8)


@dataclasses.dataclass
class Places:
    """Who is who in one batch. mask_BRS, weight_BRS: of the views that roles alone decide, the weights sum to one;
    groups, onehot_GB: jackknife groups; inside_B: of the subset that the scales are from."""

    mask_BRS: Tensor
    weight_BRS: Tensor
    has_BR: Tensor
    groups: list[int]
    onehot_GB: Tensor
    inside_B: Tensor

    @classmethod
    def of(cls, roles_BS: Tensor, sample_ids: Sequence[str], num_views: int, scales: Scales | None) -> Places:
        mask_BRS = view_masks(roles_BS)[:, :num_views]
        count_BR = mask_BRS.sum(-1)
        weight_BRS = mask_BRS.float() / count_BR.clamp_min(1)[..., None]
        device = roles_BS.device
        groups = [group_of(sample_id) for sample_id in sample_ids]
        inside = [scales is not None and sample_id in scales.sample_ids for sample_id in sample_ids]
        onehot_GB = torch.nn.functional.one_hot(torch.tensor(groups, device=device), NUM_GROUPS).T.float()
        has_BR = (count_BR > 0).float()
        return cls(mask_BRS, weight_BRS, has_BR, groups, onehot_GB, torch.tensor(inside, device=device))


@dataclasses.dataclass
class Seen:
    """What a pass leaves of one site. means: of some of the plan's views each, the mean tokens, zero where an example
    has none; has_LBR: which it has. norms_LBR are those of the means, dots_LBQ the products of the plan's pairs.
    norms_LBS: of tokens; cosines[n]: the l and the cosines between layers l and l + n of each token."""

    layers: list[int]
    means: list[tuple[slice, Tensor]]
    has_LBR: Tensor
    norms_LBR: Tensor
    dots_LBQ: Tensor
    norms_LBS: Tensor
    cosines: dict[int, tuple[list[int], Tensor]]


class Scratch:
    """Memory that is used again from pass to pass: fresh pages cost more than the arithmetic."""

    NUM_STATES = 3

    def __init__(self) -> None:
        self.kept: dict[object, Tensor] = {}
        self.places: list[int] = []
        self.states: list[tuple[Tensor, int, Tensor]] = []  # the last few, as they came and in fp32

    def room(self, name: object, shape: Sequence[int], like: Tensor) -> Tensor:
        """A place of this shape, fp32; its content is what was left there."""
        size = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = torch.empty(size, dtype=torch.float32, device=like.device)
        return self.kept[name][:size].view(shape)

    def floats(self, x_BSD: Tensor) -> Tensor:
        """The state in fp32. The last few stay in places that all sites share, and so in the CPU's cache."""
        if x_BSD.dtype == torch.float32:
            return x_BSD
        version = version_of(x_BSD)
        for known, known_version, found in self.states:
            if known.data_ptr() == x_BSD.data_ptr() and known.shape == x_BSD.shape and known_version == version:
                return found
        full = len(self.states) == self.NUM_STATES
        place = self.places.pop(0) if full else len(self.states)
        if full:
            self.states.pop(0)
        self.places.append(place)
        made = self.room(place, x_BSD.shape, x_BSD).copy_(x_BSD)
        self.states.append((x_BSD, version, made))
        return made

    def forget(self) -> None:
        self.states, self.places = [], []


class Pass:
    """Looks at the states of one site in passing. A state is made fp32 where it is needed, in memory that stays in the
    CPU's cache, and all that can be said of it alone is computed at once. Kept are a mean token per view and layer, and
    the last max(STEPS) states as they came: nobody may write to them while the pass lasts."""

    def __init__(
        self, site: Site, places: Places, consecutive: bool, num_layers: int, plan: Plan, scratch: Scratch
    ) -> None:
        self.site, self.places, self.consecutive, self.plan = site, places, consecutive, plan
        self.num_layers, self.scratch = num_layers, scratch
        self.layers: list[int] = []
        self.norms_BS: dict[int, Tensor] = {}
        self.recent: dict[int, tuple[Tensor, int]] = {}
        self.cosines_BS: dict[int, dict[int, Tensor]] = {n: {} for n in STEPS}
        self.means: dict[str, Tensor] = {}
        has_BR = places.has_BR
        num, self.tail = len(has_BR), plan.num_by_token - 2  # where nomassive is, if at all
        self.has_LBR = has_BR[:, :1].new_zeros(num_layers, num, len(plan.views))
        self.has_LBR[..., : plan.num_by_role] = has_BR
        self.norms_LBR = torch.ones_like(self.has_LBR)
        self.dots_LBQ = self.has_LBR.new_zeros(num_layers, num, len(plan.pairs))
        self.weight_BRS = places.weight_BRS
        if "nomassive" in plan.variants:  # as where no token is massive
            self.weight_BRS = torch.cat([places.weight_BRS, places.weight_BRS[:, :2]], dim=1)
            self.has_LBR[..., self.tail : self.tail + 2] = has_BR[:, :2]

    def room(self, name: str, *shape: int) -> Tensor:
        return self.scratch.room((self.site, name), shape, self.has_LBR)

    def see(self, layer: int, x_BSD: Tensor, scale: Scale | None, version: int) -> None:
        """`version`: of the state when it was shown, which may be earlier."""
        index, plan = len(self.layers), self.plan
        self.layers.append(layer)
        x32_BSD = self.scratch.floats(x_BSD)
        norms_BS = self.norms_BS[layer] = dot(x32_BSD, x32_BSD).sqrt_()
        weight_BRS = self.weight_BRS
        if scale is not None and "nomassive" in plan.variants:
            weight_BRS = self._without_massive(index, norms_BS <= scale.massive)
        if not self.means:
            self._make_room(x_BSD.shape[-1])
        means_BRD = self.means["tokens"][index]
        torch.bmm(weight_BRS, x32_BSD, out=means_BRD)
        self._look_at_means(index, means_BRD, scale)
        assert version_of(x_BSD) == version, "a state was written to after it was shown"
        if not self.consecutive:
            return
        for n in STEPS:
            if layer - n in self.recent:
                before_BSD, before = self.recent[layer - n]
                assert version_of(before_BSD) == before, "a state was written to after it was shown"
                product_BS = dot(x32_BSD, self.scratch.floats(before_BSD))
                self.cosines_BS[n][layer - n] = cosine(product_BS, norms_BS, self.norms_BS[layer - n])
        self._remember(layer, x_BSD, version)

    def borrow(self, layer: int, x_BSD: Tensor, other: Pass, version: int) -> None:
        """The state is what `other` saw last, a layer before: all that can be said of it is known."""
        index, theirs = len(self.layers), len(other.layers) - 1
        before = other.layers[theirs]
        self.layers.append(layer)
        self.norms_BS[layer] = other.norms_BS[before]
        if not self.means:
            self._make_room(x_BSD.shape[-1])
        for name, means_LBRD in self.means.items():
            means_LBRD[index].copy_(other.means[name][theirs])
        num_views, num_pairs = len(self.plan.views), len(self.plan.pairs)
        self.has_LBR[index] = other.has_LBR[theirs, :, :num_views]
        self.norms_LBR[index] = other.norms_LBR[theirs, :, :num_views]
        self.dots_LBQ[index] = other.dots_LBQ[theirs, :, :num_pairs]
        if not self.consecutive:
            return
        for n in STEPS:
            if layer - n in self.recent:
                self.cosines_BS[n][layer - n] = other.cosines_BS[n][before - n]
        self._remember(layer, x_BSD, version)

    def _remember(self, layer: int, x_BSD: Tensor, version: int) -> None:
        self.recent[layer] = x_BSD, version
        self.recent.pop(layer - max(STEPS), None)

    def _make_room(self, width: int) -> None:
        num, plan = len(self.places.has_BR), self.plan
        self.means["tokens"] = self.room("tokens", self.num_layers, num, plan.num_by_token, width)
        for variant in ("scaled", "update"):
            if variant in plan.variants:
                self.means[variant] = self.room(variant, self.num_layers, num, 2, width)

    def _without_massive(self, index: int, small_BS: Tensor) -> Tensor:
        """Where no token is massive the weights are those that are there (asked on the CPU, where it costs nothing)."""
        mask_B2S = self.places.mask_BRS[:, :2]
        kept_B2S = mask_B2S & small_BS[:, None]
        if small_BS.device.type == "cpu" and torch.equal(kept_B2S, mask_B2S):
            return self.weight_BRS
        count_B2 = kept_B2S.sum(-1)
        self.has_LBR[index, :, self.tail : self.tail + 2] = count_B2 > 0
        return torch.cat([self.weight_BRS[:, :-2], kept_B2S / count_B2.clamp_min(1)[..., None]], dim=1)

    def _look_at_means(self, index: int, means_BRD: Tensor, scale: Scale | None) -> None:
        """Norms and products of the mean tokens, and the variants that follow from those of P and T."""
        plan, has_BR = self.plan, self.has_LBR[index]
        num, means_B2D, has_B2 = plan.num_by_token, means_BRD[:, :2], has_BR[:, :2]
        norms_BR, dots_BQ = self.norms_LBR[index], self.dots_LBQ[index]
        norms_BR[:, :num] = dot(means_BRD, means_BRD).sqrt_()
        dots_BQ[:, :3] = dot(means_BRD[:, :1], means_BRD[:, 1:4])
        if num > 4:
            dots_BQ[:, 3 : num // 2 + 1] = dot(means_BRD[:, 4::2], means_BRD[:, 5::2])

        def follows(variant: str, made_B2D: Tensor) -> None:
            at = plan.at(variant)
            norms_BR[:, at] = dot(made_B2D, made_B2D).sqrt_()
            dots_BQ[:, at.start // 2 + 1] = dot(made_B2D[:, 0], made_B2D[:, 1])

        if "scaled" in plan.variants:
            assert scale is not None
            follows("scaled", torch.mul(means_B2D, scale.inverse_D, out=self.means["scaled"][index]))
            has_BR[:, plan.at("scaled")] = has_B2
        if "centred" in plan.variants:
            assert scale is not None
            centred_B2D, known_B2 = scale.centred(means_B2D, self.places.inside_B)
            there_B2 = has_B2 * known_B2
            follows("centred", centred_B2D.mul_(has_B2[..., None]))
            has_BR[:, plan.at("centred")] = there_B2
        if "update" in plan.variants:
            made_B2D = self.means["update"][index]
            if index and self.layers[index - 1] == self.layers[index] - 1:
                torch.sub(means_B2D, self.means["tokens"][index - 1][:, :2], out=made_B2D)
                has_BR[:, plan.at("update")] = has_B2
            else:
                made_B2D.zero_()
            follows("update", made_B2D)

    def finish(self) -> Seen:
        self.recent = {}
        num = len(self.layers)
        norms_LBS = torch.stack([self.norms_BS[layer] for layer in self.layers])
        cosines = {n: (list(found), torch.stack(list(found.values()))) for n, found in self.cosines_BS.items() if found}
        at = {"tokens": slice(0, self.plan.num_by_token)}
        means = [(at.get(name) or self.plan.at(name), means_LBRD[:num]) for name, means_LBRD in self.means.items()]
        return Seen(
            self.layers, means, self.has_LBR[:num], self.norms_LBR[:num], self.dots_LBQ[:num], norms_LBS, cosines
        )


def dot(a_BSD: Tensor, b_BSD: Tensor) -> Tensor:
    """Inner products over the last dimension. On the CPU numpy reads both once; torch would write the product."""
    if a_BSD.device.type == "cpu":
        return torch.from_numpy(np.vecdot(a_BSD.numpy(), b_BSD.numpy()))
    return (a_BSD * b_BSD).sum(-1)


def cosine(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    return product / (norm_a * norm_b).clamp_min(torch.finfo(torch.float32).tiny)
