"""The plain definition of the streamed alignment statistics.

`PlainStats` is a tap's sink like `AlignmentStats` and fills the same sums (`SiteStats`), example by example and layer
by layer, in fp64, as the formulas are written: `sum += unit(mean(h[mask]))`. It is slow and is used by no run. It says
what the fast implementation has to compute, and tests compare the two. Whoever changes the meaning of a statistic
changes it here first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ima.alignment.reference_pass import NUM_BINS, Scale, Scales, norm_bins
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.views import MATCHED_ONLY, NORM_VIEWS, Plan, group_of, split_view
from ima.core.types import Role, Site

ROLES_OF = {
    "P": (Role.PERCEPT,),
    "T": (Role.PROMPT, Role.ANSWER),
    "T.answer": (Role.ANSWER,),
    "T.prompt": (Role.PROMPT,),
}


def unit(x_XD: Tensor) -> Tensor:
    """Vectors of length one; the zero vector stays zero, so that its cosine with anything is 0."""
    norm_X1 = vector_norm(x_XD, dim=-1, keepdim=True)
    return x_XD / norm_X1.where(norm_X1 > 0, 1.0)


@dataclasses.dataclass
class Example:
    """One example at one site. h_SD and seen_S by layer: its states in fp64, and the positions that have one there.
    scales: of each layer, where a variant needs them; inside: whether the example is one of those they were made of."""

    roles_S: Tensor
    h_SD: dict[int, Tensor]
    seen_S: dict[int, Tensor]
    scales: dict[int, Scale]
    inside: bool

    def mask(self, layer: int, role: str, variant: str = "raw") -> Tensor:
        """The positions that a view takes the mean of."""
        wanted = torch.tensor([int(each) for each in ROLES_OF[role]])
        mask_S = torch.isin(self.roles_S, wanted) & self.seen_S[layer]
        if variant == "nosink":
            mask_S[(self.roles_S != Role.PAD).long().argmax()] = False  # the first position that is not PAD
        if variant == "nomassive":
            mask_S &= vector_norm(self.h_SD[layer], dim=-1) <= self.scales[layer].massive
        return mask_S

    def mean(self, layer: int, role: str, variant: str) -> Tensor | None:
        """The mean token of a view. None where the example has none."""
        if layer not in self.h_SD:
            return None
        mask_S = self.mask(layer, role, variant)
        if not mask_S.any():
            return None
        mean_D = self.h_SD[layer][mask_S].mean(0)
        if variant == "scaled":
            scale = self.scales[layer]
            return mean_D * scale.inverse_D if scale.known else None
        if variant == "centred":
            return self.centred(mean_D, self.scales[layer], ("P", "T").index(role))
        if variant == "update":
            before_D = self.mean(layer - 1, role, "raw")
            return None if before_D is None else mean_D - before_D
        return mean_D

    def centred(self, mean_D: Tensor, scale: Scale, side: int) -> Tensor | None:
        """Minus the mean over the other examples of the earlier pass. None where there is no other."""
        sum_D, count = scale.mean_sum_2D[side].double(), int(scale.count_2[side])
        if self.inside:
            sum_D, count = sum_D - mean_D, count - 1
        return mean_D - sum_D / count if count > 0 else None

    def add_to(self, stats: SiteStats, group: int) -> None:
        for layer in self.h_SD:
            self.add_means(stats, group, layer)
            for r, role in enumerate(NORM_VIEWS):
                self.add_tokens(stats, group, layer, r, role)

    def add_means(self, stats: SiteStats, group: int, layer: int) -> None:
        means = {view: self.mean(layer, *split_view(view)) for view in stats.plan.views}
        for r, (view, mean_D) in enumerate(means.items()):
            if mean_D is not None:
                stats.count_LGR[layer, group, r] += 1
                stats.nonzero_LGR[layer, group, r] += bool(mean_D.any())
                if split_view(view)[1] not in MATCHED_ONLY:
                    stats.unit_sum_LGRD[layer, group, r] += unit(mean_D)
        for q, (a, b) in enumerate(stats.plan.pairs):
            mean_a_D, mean_b_D = means[a], means[b]
            if mean_a_D is not None and mean_b_D is not None:
                stats.matched_count_LGQ[layer, group, q] += 1
                stats.matched_LGQ[layer, group, q] += unit(mean_a_D) @ unit(mean_b_D)

    def add_tokens(self, stats: SiteStats, group: int, layer: int, r: int, role: str) -> None:
        mask_S = self.mask(layer, role)
        bins_N = norm_bins(vector_norm(self.h_SD[layer][mask_S], dim=-1))
        stats.norm_hist_LRH[layer, r] += torch.bincount(bins_N, minlength=NUM_BINS)
        for n in stats.step_sum_LGR:
            if layer + n in self.h_SD:
                both_S = mask_S & self.seen_S[layer + n]
                units_ND, later_ND = (unit(self.h_SD[at][both_S]) for at in (layer, layer + n))
                stats.step_sum_LGR[n][layer, group, r] += (units_ND * later_ND).sum()
                stats.step_count_LGR[n][layer, group, r] += both_S.sum()


class PlainStats:
    """Takes what `AlignmentStats` takes. Partial results are combined with `SiteStats.add_`."""

    def __init__(
        self,
        num_layers: int,
        consecutive: bool = True,
        plan: Plan | None = None,
        scales: Scales | None = None,
        clusters: Mapping[str, str] | None = None,
    ) -> None:
        self.clusters = clusters or {}
        self.num_layers, self.consecutive, self.plan, self.scales = num_layers, consecutive, plan or Plan(), scales
        self.sites: dict[Site, SiteStats] = {}

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._roles_BS, self._sample_ids = roles_BS, list(sample_ids)
        self._states: dict[Site, dict[int, tuple[Tensor, Tensor]]] = {}

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        seen_BS = torch.ones_like(self._roles_BS, dtype=torch.bool) if seen_BS is None else seen_BS
        self._states.setdefault(site, {})[layer] = x_BSD, seen_BS

    def end(self) -> None:
        for site, states in self._states.items():
            plan = self.plan if site is Site.RESID_POST else self.plan.without("update")
            scales: dict[int, Scale] = {}
            if self.scales is not None and plan.needs_scales:
                scales = {layer: self.scales.of(layer, site) for layer in states}
            if site not in self.sites:
                width, device = next(iter(states.values()))[0].shape[-1], self._roles_BS.device
                self.sites[site] = SiteStats(self.num_layers, width, device, self.consecutive, plan, torch.float64)
            for b, sample_id in enumerate(self._sample_ids):
                h_SD = {layer: x_BSD[b].double() for layer, (x_BSD, _) in states.items()}
                seen_S = {layer: seen_BS[b] for layer, (_, seen_BS) in states.items()}
                inside = self.scales is not None and sample_id in self.scales.sample_ids
                group = group_of(self.clusters.get(sample_id, sample_id))
                Example(self._roles_BS[b], h_SD, seen_S, scales, inside).add_to(self.sites[site], group)
        self._states = {}
