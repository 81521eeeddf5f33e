"""Additive alignment statistics, streamed: no hidden state outlives the pass that made it.

The similarity over all pairs factorises: the mean over a and b of cos(m_a, m_b) is (mean u)(mean u) with u = m / |m|.
So one sum of unit vectors per layer, view and jackknife group is all that is kept (`SiteStats`), and sums add up over
batches and ranks in any split and order. `AlignmentStats` is the tap's sink: it starts a `LayerPass` per site, queues
the chunks of layers that are ready, and adds each pass to the sums (`accumulate`). Everything is fp32, whatever dtype
the model computes in. Zero vectors have cosine 0. Where a site is computed for some tokens only (`ima.alignment.tap`),
a view consists of those tokens, and an example without any is as one without the role. `plain` is the definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ima.alignment.reference_pass import NUM_BINS, Scales, norm_bins
from ima.alignment.streaming.batch_roles import BatchRoles, PassResult, cosine
from ima.alignment.streaming.chunks import BufferPool, Float32Buffer, LayerChunk, consecutive_runs
from ima.alignment.streaming.layer_pass import LayerPass
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.streaming.work_queue import WorkQueue
from ima.alignment.views import NORM_VIEWS, Plan
from ima.core.distributed import num_ranks
from ima.core.types import Site
from ima.models.llm.sites import version_of


class AlignmentStats:
    """A tap's sink that feeds one `SiteStats` per site. The width of a site is taken from its first state. `scales`: of
    the earlier pass, where a variant of the plan needs them. `examples`: if wanted, the mean over layers 1..L of each
    example's own matched cosine at the block outputs, one number for each pair of the plan. `clusters`: of each
    sample, for the jackknife groups. Nothing else here grows with the number of examples."""

    def __init__(
        self,
        num_layers: int,
        consecutive: bool = True,
        plan: Plan | None = None,
        scales: Scales | None = None,
        examples: bool = False,
        clusters: Mapping[str, str] | None = None,
    ) -> None:
        self.clusters = clusters
        self.num_layers, self.consecutive, self.plan, self.scales = num_layers, consecutive, plan or Plan(), scales
        self.examples: dict[str, list[float]] | None = {} if examples else None
        assert scales is not None or not self.plan.needs_scales, "these variants need scales of an earlier pass"
        self._queue = WorkQueue()
        self._buffers: dict[Site, BufferPool] = {}
        self._float32 = Float32Buffer()
        self._passes: dict[Site, LayerPass] = {}
        self._last_output: tuple[int, Tensor, int] | None = None  # layer, state, its version
        self.sites: dict[Site, SiteStats] = {}
        self.num_examples = 0
        self.num_state_bytes_seen = 0

    def plan_at(self, site: Site) -> Plan:
        """`update` exists at the block outputs only: what a block adds is their difference."""
        return self.plan if site is Site.RESID_POST else self.plan.without("update")

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._queue.clear()
        self._sample_ids = list(sample_ids)
        self._roles = BatchRoles.of(roles_BS, sample_ids, self.plan.num_by_role, self.scales, self.clusters)
        self._clear()
        self.num_examples += len(sample_ids)

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        self.num_state_bytes_seen += x_BSD.numel() * x_BSD.element_size()
        if site not in self._passes:
            self._start(site, x_BSD)
        scale = self.scales.of(layer, site) if self.scales is not None and self.plan.needs_scales else None
        version = version_of(x_BSD)
        copy_from = None
        if site is Site.RESID_PRE and self._is_last_output(layer, x_BSD, version):
            copy_from = self._passes[Site.RESID_POST]
        for chunk in self._passes[site].add(layer, x_BSD, scale, version, copy_from, seen_BS):
            self._process(site, chunk)
        if site is Site.RESID_POST:
            self._last_output = layer, x_BSD, version

    def _process(self, site: Site, chunk: LayerChunk) -> None:
        if chunk.copy_from is not None:
            for earlier in chunk.copy_from.take_pending():
                self._process(Site.RESID_POST, earlier)
        self._queue.run(queue_key(site), chunk.states[0].device, self._passes[site].process, chunk)

    def _start(self, site: Site, x_BSD: Tensor) -> None:
        """Start the pass of a site."""
        width, device, plan = x_BSD.shape[-1], x_BSD.device, self.plan_at(site)
        if site not in self.sites:
            self.sites[site] = SiteStats(self.num_layers, width, device, self.consecutive, plan)
            self._buffers[site] = BufferPool()
        self._passes[site] = LayerPass(
            self._roles, self.consecutive, self.num_layers, plan, self._buffers[site], self._float32
        )

    def _is_last_output(self, layer: int, x_BSD: Tensor, version: int) -> bool:
        """Whether the input of a block is the very output of the block before. It is, unless something intervenes."""
        if self._last_output is None or self._last_output[0] != layer - 1:
            return False
        _, last_BSD, last_version = self._last_output
        same = x_BSD.data_ptr() == last_BSD.data_ptr() and x_BSD.stride() == last_BSD.stride()
        return same and x_BSD.shape == last_BSD.shape and version == last_version

    def end(self) -> None:
        for site, passed in self._passes.items():
            for chunk in passed.take_pending():
                self._process(site, chunk)
            self._queue.run(queue_key(site), self.sites[site].count_LGR.device, self._add, site, passed)
        self._queue.wait()
        self._clear()

    def _clear(self) -> None:
        self._passes, self._last_output = {}, None

    def _add(self, site: Site, passed: LayerPass) -> None:
        seen = passed.finish()
        matched_LBQ = accumulate(self.sites[site], seen, self._roles)
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


def queue_key(site: Site) -> str:
    """Block inputs copy results of block outputs, so both have one key and are processed in order."""
    return (Site.RESID_POST if site is Site.RESID_PRE else site).value


def accumulate(stats: SiteStats, seen: PassResult, roles: BatchRoles) -> Tensor:
    """Add the result of one pass to the sums. A mean of norm zero (also of an empty view) has the unit vector zero.
    Returns the matched cosines [L, B, Q], NaN where an example lacks one of the two views."""
    onehot_GB, views, has_LBR = roles.onehot_GB, stats.plan.views, seen.has_LBR
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
        for indices, rows in consecutive_runs(list(enumerate(seen.layers))):
            sum_LGRD = stats.unit_sum_LGRD[rows, :, at]
            add_units(sum_LGRD, means_LBRD[indices], inverse_LBR[indices, :, at], roles)

    mask_BRS = roles.mask_BRS[:, : len(NORM_VIEWS)]
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


def add_units(sum_LGRD: Tensor, means_LBRD: Tensor, inverse_LBR: Tensor, roles: BatchRoles) -> None:
    """Add each example's unit mean tokens to its group. On the CPU example by example: that moves as much memory as a
    product with onehot_GB, with 32 times fewer multiplications."""
    if sum_LGRD.device.type == "cpu":
        for index, group in enumerate(roles.groups):
            sum_LGRD[:, group].addcmul_(means_LBRD[:, index], inverse_LBR[:, index, :, None])
    else:
        units_LBX = (means_LBRD * inverse_LBR[..., None]).flatten(2)
        sum_LGRD += torch.matmul(roles.onehot_GB, units_LBX).unflatten(2, means_LBRD.shape[2:])
