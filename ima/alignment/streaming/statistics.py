"""Additive alignment statistics, streamed: no hidden state outlives the pass that made it.

The all-pairs similarity factorises, mean_ab cos(m_a, m_b) = (mean u)(mean u) with u = m / |m|, so one
sum of unit vectors per layer, view and jackknife group is all that is kept. Sums add up over batches and ranks in
any split and order. Everything is fp32 whatever the model computes in. Views are those of `ima.alignment.views`. Zero
vectors have cosine 0. Where a site is computed for some tokens only (`ima.alignment.tap`), a view is of those of its
tokens, and an example whose view has none there is as one without the role.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ima.alignment.reference_pass import NUM_BINS, Scales, norm_bins
from ima.alignment.streaming.chunks import Floats, Rooms, Stretch, side_by_side
from ima.alignment.streaming.layer_pass import Pass
from ima.alignment.streaming.places import Places, Seen, cosine
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.streaming.work_queue import Lanes
from ima.alignment.views import NORM_VIEWS, Plan
from ima.core.distributed import num_ranks
from ima.core.types import Site
from ima.models.llm.sites import version_of


class AlignmentStats:
    """A tap's sink that feeds one `SiteStats` per site; widths are taken from the first state seen. `scales`: of an
    earlier pass, where a variant of the plan needs them. `examples`: where asked for, per example the mean over layers
    1..L of its own matched cosine at the block outputs, for each pair of the plan: one number each, the only thing here
    that grows with the examples."""

    def __init__(
        self,
        num_layers: int,
        consecutive: bool = True,
        plan: Plan | None = None,
        scales: Scales | None = None,
        examples: bool = False,
    ) -> None:
        self.num_layers, self.consecutive, self.plan, self.scales = num_layers, consecutive, plan or Plan(), scales
        self.examples: dict[str, list[float]] | None = {} if examples else None
        assert scales is not None or not self.plan.needs_scales, "these variants need scales of an earlier pass"
        self._lanes = Lanes()
        self._rooms: dict[Site, Rooms] = {}
        self._floats = Floats()
        self._seen: dict[Site, Pass] = {}
        self._last_output: tuple[int, Tensor, int] | None = None  # layer, state, its version
        self.sites: dict[Site, SiteStats] = {}
        self.num_examples = 0
        self.num_state_bytes_seen = 0

    def plan_at(self, site: Site) -> Plan:
        """What a block adds is the difference of block outputs."""
        return self.plan if site is Site.RESID_POST else self.plan.without("update")

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._lanes.drop()
        self._sample_ids = list(sample_ids)
        self._places = Places.of(roles_BS, sample_ids, self.plan.num_by_role, self.scales)
        self._forget()
        self.num_examples += len(sample_ids)

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        self.num_state_bytes_seen += x_BSD.numel() * x_BSD.element_size()
        if site not in self._seen:
            self._start(site, x_BSD)
        scale = self.scales.of(layer, site) if self.scales is not None and self.plan.needs_scales else None
        version = version_of(x_BSD)
        lender = None
        if site is Site.RESID_PRE and self._is_last_output(layer, x_BSD, version):
            lender = self._seen[Site.RESID_POST]
        for stretch in self._seen[site].add(layer, x_BSD, scale, version, lender, seen_BS):
            self._look(site, stretch)
        if site is Site.RESID_POST:
            self._last_output = layer, x_BSD, version

    def _look(self, site: Site, stretch: Stretch) -> None:
        if stretch.lender is not None:
            for earlier in stretch.lender.rest():
                self._look(Site.RESID_POST, earlier)
        self._lanes.run(lane_of(site), stretch.states[0].device, self._seen[site].look, stretch)

    def _start(self, site: Site, x_BSD: Tensor) -> None:
        """Room for a site in this pass."""
        width, device, plan = x_BSD.shape[-1], x_BSD.device, self.plan_at(site)
        if site not in self.sites:
            self.sites[site] = SiteStats(self.num_layers, width, device, self.consecutive, plan)
            self._rooms[site] = Rooms()
        self._seen[site] = Pass(self._places, self.consecutive, self.num_layers, plan, self._rooms[site], self._floats)

    def _is_last_output(self, layer: int, x_BSD: Tensor, version: int) -> bool:
        """Whether what enters a block is what the block before it put out, as it is unless something intervenes."""
        if self._last_output is None or self._last_output[0] != layer - 1:
            return False
        _, last_BSD, last_version = self._last_output
        same = x_BSD.data_ptr() == last_BSD.data_ptr() and x_BSD.stride() == last_BSD.stride()
        return same and x_BSD.shape == last_BSD.shape and version == last_version

    def end(self) -> None:
        for site, passed in self._seen.items():
            for stretch in passed.rest():
                self._look(site, stretch)
            self._lanes.run(lane_of(site), self.sites[site].count_LGR.device, self._add, site, passed)
        self._lanes.wait()
        self._forget()

    def _forget(self) -> None:
        self._seen, self._last_output = {}, None

    def _add(self, site: Site, passed: Pass) -> None:
        seen = passed.finish()
        matched_LBQ = accumulate(self.sites[site], seen, self._places)
        if self.examples is not None and site is Site.RESID_POST:
            inner_BQ = matched_LBQ[[layer > 0 for layer in seen.layers]].mean(0)
            self.examples |= dict(zip(self._sample_ids, inner_BQ.tolist(), strict=True))

    def num_bytes(self) -> int:
        return sum(stats.num_bytes() for stats in self.sites.values())

    def reduce(self) -> None:
        """Sum over ranks, in place on every rank; nothing to do without torch.distributed."""
        import torch.distributed as dist

        if num_ranks() > 1:
            widths: list[dict[Site, int]] = [{} for _ in range(num_ranks())]
            dist.all_gather_object(widths, {site: stats.width for site, stats in self.sites.items()})
            device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
            for site, width in sorted({item for known in widths for item in known.items()}):
                # A rank without samples takes part with zeros, and all go through the sites in one order.
                empty = SiteStats(self.num_layers, width, device, self.consecutive, self.plan_at(site))
                self.sites[site] = self.sites.pop(site, empty)
            if self.examples is not None:
                parts: list[dict[str, list[float]]] = [{} for _ in range(num_ranks())]
                dist.all_gather_object(parts, self.examples)
                self.examples = {name: values for part in parts for name, values in part.items()}
            counts = torch.tensor([self.num_examples, self.num_state_bytes_seen], dtype=torch.float64)
            for stats in self.sites.values():
                for value in stats.tensors().values():
                    counts = counts.to(value.device)
                    dist.all_reduce(value)
            dist.all_reduce(counts)
            self.num_examples, self.num_state_bytes_seen = (int(value) for value in counts.tolist())


def lane_of(site: Site) -> str:
    """What enters a block is borrowed from what comes out of one, and so in order with it."""
    return (Site.RESID_POST if site is Site.RESID_PRE else site).value


def accumulate(stats: SiteStats, seen: Seen, places: Places) -> Tensor:
    """Add one pass to the sums. A mean of norm zero (also of an empty view) has the unit vector zero. Returns the
    matched cosines [L, B, Q], NaN where an example lacks a side."""
    onehot_GB, views, has_LBR = places.onehot_GB, stats.plan.views, seen.has_LBR
    layers = torch.tensor(seen.layers, device=has_LBR.device)
    cosines, both = [], []
    for index, (view_a, view_b) in enumerate(stats.plan.pairs):
        a, b = views.index(view_a), views.index(view_b)
        cosines.append(cosine(seen.dots_LBQ[..., index], seen.norms_LBR[..., a], seen.norms_LBR[..., b]))
        both.append(has_LBR[..., a] * has_LBR[..., b])
    matched_LBQ, both_LBQ = torch.stack(cosines, dim=-1), torch.stack(both, dim=-1)
    stats.matched_LGQ.index_add_(0, layers, onehot_GB @ matched_LBQ)
    stats.matched_count_LGQ.index_add_(0, layers, onehot_GB @ both_LBQ)
    stats.count_LGR.index_add_(0, layers, onehot_GB @ has_LBR)
    stats.nonzero_LGR.index_add_(0, layers, onehot_GB @ (seen.norms_LBR > 0).float())
    inverse_LBR = torch.where(seen.norms_LBR > 0, 1 / seen.norms_LBR.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    for at, means_LBRD in seen.means:
        for indices, rows in side_by_side(list(enumerate(seen.layers))):
            sum_LGRD = stats.unit_sum_LGRD[rows, :, at]
            add_units(sum_LGRD, means_LBRD[indices], inverse_LBR[indices, :, at], places)

    mask_BRS = places.mask_BRS[:, : len(NORM_VIEWS)]
    b_N, r_N, s_N = mask_BRS.nonzero(as_tuple=True)
    bins_LN = norm_bins(seen.norms_LBS)[:, b_N, s_N]
    flat_LN = bins_LN + (layers[:, None] * len(NORM_VIEWS) + r_N) * NUM_BINS
    flat_X = flat_LN.flatten() if seen.seen_LBS is None else flat_LN[seen.seen_LBS[:, b_N, s_N]]
    stats.norm_hist_LRH.view(-1).index_add_(0, flat_X, torch.ones_like(flat_X))

    mask = mask_BRS.float()
    count_LBR = mask.sum(-1)[None]
    for n, (starts, cosines_LBS) in seen.cosines.items():
        if n in stats.step_sum_LGR:
            if seen.seen_LBS is not None:  # the token has to be there at both layers
                ends = [[seen.layers.index(start + step) for start in starts] for step in (0, n)]
                both_LBS = (seen.seen_LBS[ends[0]] & seen.seen_LBS[ends[1]]).float()
                cosines_LBS = cosines_LBS * both_LBS
                count_LBR = torch.einsum("lbs,brs->lbr", both_LBS, mask)
            summed_LBR = torch.einsum("lbs,brs->lbr", cosines_LBS, mask)
            where = torch.tensor(starts, device=layers.device)
            stats.step_sum_LGR[n].index_add_(0, where, torch.matmul(onehot_GB, summed_LBR))
            counted_LGR = torch.matmul(onehot_GB, count_LBR).expand(len(starts), -1, -1)
            stats.step_count_LGR[n].index_add_(0, where, counted_LGR)
    return matched_LBQ.where(both_LBQ > 0, torch.nan)


def add_units(sum_LGRD: Tensor, means_LBRD: Tensor, inverse_LBR: Tensor, places: Places) -> None:
    """Add each example's unit mean tokens to its group. On the CPU example by example: that reads and writes what a
    product with onehot_GB does, and multiplies 32 times less."""
    if sum_LGRD.device.type == "cpu":
        for index, group in enumerate(places.groups):
            sum_LGRD[:, group].addcmul_(means_LBRD[:, index], inverse_LBR[:, index, :, None])
    else:
        units_LBX = (means_LBRD * inverse_LBR[..., None]).flatten(2)
        sum_LGRD += torch.matmul(places.onehot_GB, units_LBX).unflatten(2, means_LBRD.shape[2:])
