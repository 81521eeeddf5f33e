"""Additive alignment statistics, streamed: no hidden state outlives the pass that made it.

The all-pairs similarity of methods 1 factorises, mean_ab cos(m_a, m_b) = (mean u)(mean u) with u = m / |m|, so one
sum of unit vectors per layer, view and jackknife group is all that is kept. Sums add up over batches and ranks in
any split and order. Everything is fp32 whatever the model computes in.

A **view** is a choice of positions by role: P (PERCEPT), T (PROMPT and ANSWER), T.answer, T.prompt, and both P and T
without the sink (the first position that is not PAD; BOS is SPECIAL and in no view). Zero vectors have cosine 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ima.types import Role, Site

VIEWS = ("P", "T", "T.answer", "T.prompt", "P.nosink", "T.nosink")
PAIRS = (("P", "T"), ("P", "T.answer"), ("P", "T.prompt"), ("P.nosink", "T.nosink"))
NORM_VIEWS = VIEWS[:4]
NUM_GROUPS = 32
STEPS = (1, 8)
# Norms go to a histogram of log-spaced bins: quantiles are exact to half a bin, 0.5 %.
BIN_WIDTH = 0.01
LOG_LOW, LOG_HIGH = math.log(1e-6), math.log(1e8)
NUM_BINS = round((LOG_HIGH - LOG_LOW) / BIN_WIDTH) + 2


def view_masks(roles_BS: Tensor) -> Tensor:
    """mask_BRS (bool): which positions each of VIEWS selects."""
    percept, prompt, answer = (roles_BS == role for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER))
    real = roles_BS != Role.PAD
    sink = real & (real.long().cumsum(1) == 1)
    text = prompt | answer
    return torch.stack([percept, text, answer, prompt, percept & ~sink, text & ~sink], dim=1)


def group_of(sample_id: str) -> int:
    """Jackknife group of a sample: a hash, so that it is the same in every run, order and rank."""
    return hashlib.sha256(sample_id.encode()).digest()[0] % NUM_GROUPS


class SiteStats:
    """Sums of one site. Layers are 0..num_layers - 1, width D is that of the site.

    unit_sum_LGRD: unit mean tokens; count_GR: examples that have the view; matched_LGQ / matched_count_GQ: cosine of
    an example's own two views for each of PAIRS; norm_hist_LRH: histogram of token norms; step_sum[n]_LGR /
    token_count_GR: cosine between layer l and l + n of the same token.
    """

    def __init__(
        self, num_layers: int, width: int, device: torch.device | str = "cpu", consecutive: bool = True
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        views, norms, pairs = len(VIEWS), len(NORM_VIEWS), len(PAIRS)
        self.num_layers, self.width = num_layers, width
        self.unit_sum_LGRD = zeros(num_layers, NUM_GROUPS, views, width)
        self.count_GR = zeros(NUM_GROUPS, views)
        self.matched_LGQ = zeros(num_layers, NUM_GROUPS, pairs)
        self.matched_count_GQ = zeros(NUM_GROUPS, pairs)
        self.norm_hist_LRH = torch.zeros(num_layers, norms, NUM_BINS, dtype=torch.int64, device=device)
        steps = [n for n in STEPS if n < num_layers] if consecutive else []
        self.step_sum_LGR = {n: zeros(num_layers - n, NUM_GROUPS, norms) for n in steps}
        self.token_count_GR = zeros(NUM_GROUPS, norms)

    def tensors(self) -> dict[str, Tensor]:
        """All state; adding it elementwise to that of another split of the data gives the state of both."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return named | {f"step_sum_{n}": value for n, value in self.step_sum_LGR.items()}

    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    def add_(self, other: SiteStats) -> None:
        theirs = other.tensors()
        for name, value in self.tensors().items():
            value += theirs[name]


class AlignmentStats:
    """A tap's sink that feeds one `SiteStats` per site; widths are taken from the first state seen."""

    def __init__(self, num_layers: int, consecutive: bool = True) -> None:
        self.num_layers, self.consecutive = num_layers, consecutive
        self._scratch: dict[Site, dict[str, Tensor]] = {}
        self.sites: dict[Site, SiteStats] = {}
        self.num_examples = 0
        self.num_state_bytes_seen = 0

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        mask_BRS = view_masks(roles_BS)
        self._mask_BRS = mask_BRS
        count_BR = mask_BRS.sum(-1)
        self._weight_BRS = mask_BRS.float() / count_BR.clamp_min(1)[..., None]
        self._has_BR = (count_BR > 0).float()
        groups = torch.tensor([group_of(sample_id) for sample_id in sample_ids], device=roles_BS.device)
        self._onehot_GB = torch.nn.functional.one_hot(groups, NUM_GROUPS).T.float()
        self._seen: dict[Site, Pass] = {}
        self.num_examples += len(sample_ids)

    def see(self, layer: int, site: Site, x_BSD: Tensor) -> None:
        self.num_state_bytes_seen += x_BSD.numel() * x_BSD.element_size()
        if site not in self._seen:
            scratch = self._scratch.setdefault(site, {})
            self._seen[site] = Pass(self._weight_BRS, self.consecutive, self.num_layers, scratch)
        self._seen[site].see(layer, x_BSD)

    def end(self) -> None:
        for site, passed in self._seen.items():
            seen = passed.finish()
            if site not in self.sites:
                width, device = seen.means_LBRD.shape[-1], seen.means_LBRD.device
                self.sites[site] = SiteStats(self.num_layers, width, device, self.consecutive)
            accumulate(self.sites[site], seen, self._mask_BRS, self._has_BR, self._onehot_GB)
        self._seen = {}

    def num_bytes(self) -> int:
        return sum(stats.num_bytes() for stats in self.sites.values())

    def reduce(self) -> None:
        """Sum over ranks, in place on every rank; nothing to do without torch.distributed."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            widths: list[dict[Site, int]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(widths, {site: stats.width for site, stats in self.sites.items()})
            device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
            for site, width in sorted({item for known in widths for item in known.items()}):
                # A rank without samples takes part with zeros, and all go through the sites in one order.
                empty = SiteStats(self.num_layers, width, device, self.consecutive)
                self.sites[site] = self.sites.pop(site, empty)
            counts = torch.tensor([self.num_examples, self.num_state_bytes_seen], dtype=torch.float64)
            for stats in self.sites.values():
                for value in stats.tensors().values():
                    counts = counts.to(value.device)
                    dist.all_reduce(value)
            dist.all_reduce(counts)
            self.num_examples, self.num_state_bytes_seen = (int(value) for value in counts.tolist())


@dataclasses.dataclass
class Seen:
    """What a pass leaves of one site: mean tokens per view, token norms, and the cosine between layers l and l + n of
    each token (`cosines[n]`: the l and their cosines)."""

    layers: list[int]
    means_LBRD: Tensor
    norms_LBS: Tensor
    cosines: dict[int, tuple[list[int], Tensor]]


class Pass:
    """Looks at the states of one site in passing. Kept are a mean token per view and layer, and the last max(STEPS)
    states. Scratch memory is reused from pass to pass: fresh pages cost more than the arithmetic."""

    def __init__(self, weight_BRS: Tensor, consecutive: bool, num_layers: int, scratch: dict[str, Tensor]) -> None:
        self.weight_BRS, self.consecutive, self.num_layers = weight_BRS, consecutive, num_layers
        self.scratch = scratch
        self.width = 0
        self.layers: list[int] = []
        self.norms_BS: dict[int, Tensor] = {}
        self.recent: dict[int, Tensor] = {}
        self.cosines_BS: dict[int, dict[int, Tensor]] = {n: {} for n in STEPS}

    def room(self, name: str, *shape: int) -> Tensor:
        """Scratch of this shape; its content is what was left there."""
        size = math.prod(shape)
        if name not in self.scratch or self.scratch[name].numel() < size:
            self.scratch[name] = torch.empty(size, dtype=torch.float32, device=self.weight_BRS.device)
        return self.scratch[name][:size].view(shape)

    def see(self, layer: int, x_BSD: Tensor) -> None:
        self.width = x_BSD.shape[-1]
        place = f"state {len(self.layers) % (max(STEPS) + 1)}"  # a ring: one more than the furthest step looks back
        x_BSD = self.room(place, *x_BSD.shape).copy_(x_BSD)
        torch.bmm(self.weight_BRS, x_BSD, out=self.means_LBRD()[len(self.layers)])
        self.layers.append(layer)
        self.norms_BS[layer] = dot(x_BSD, x_BSD).sqrt()
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
        return Seen(self.layers, self.means_LBRD()[: len(self.layers)], norms, cosines)


def dot(a_BSD: Tensor, b_BSD: Tensor) -> Tensor:
    """Inner products over the last dimension, fp32. On the CPU numpy reads both once; torch would write the product."""
    if a_BSD.device.type == "cpu":
        return torch.from_numpy(np.vecdot(a_BSD.numpy(), b_BSD.numpy()))
    return (a_BSD * b_BSD).sum(-1)


def cosine(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    return product / (norm_a * norm_b).clamp_min(torch.finfo(torch.float32).tiny)


def accumulate(stats: SiteStats, seen: Seen, mask_BRS: Tensor, has_BR: Tensor, onehot_GB: Tensor) -> None:
    """Add one pass to the sums. A mean of norm zero (also of an empty view) has the unit vector zero."""
    layers = torch.tensor(seen.layers, device=has_BR.device)
    means_LBRD = seen.means_LBRD
    norms_LBR = torch.linalg.vector_norm(means_LBRD, dim=-1)
    cosines_LBQ = []
    for q, (view_a, view_b) in enumerate(PAIRS):
        a, b = VIEWS.index(view_a), VIEWS.index(view_b)
        dot_LB = (means_LBRD[:, :, a] * means_LBRD[:, :, b]).sum(-1)
        cosines_LBQ.append(cosine(dot_LB, norms_LBR[:, :, a], norms_LBR[:, :, b]))
        stats.matched_count_GQ[:, q] += onehot_GB @ (has_BR[:, a] * has_BR[:, b])
    stats.matched_LGQ.index_add_(0, layers, onehot_GB @ torch.stack(cosines_LBQ, dim=-1))

    means_LBRD *= torch.where(norms_LBR > 0, 1 / norms_LBR.clamp_min(torch.finfo(torch.float32).tiny), 0.0)[..., None]
    onehot_LGB = onehot_GB.expand(len(seen.layers), -1, -1)
    if len(seen.layers) == stats.num_layers:
        stats.unit_sum_LGRD.flatten(2).baddbmm_(onehot_LGB, means_LBRD.flatten(2))
    else:
        summed_LGRD = torch.bmm(onehot_LGB, means_LBRD.flatten(2)).unflatten(2, means_LBRD.shape[2:])
        stats.unit_sum_LGRD.index_add_(0, layers, summed_LGRD)
    stats.count_GR += onehot_GB @ has_BR

    mask_BRS = mask_BRS[:, : len(NORM_VIEWS)]
    bins_LBS = ((seen.norms_LBS.clamp_min(1e-30).log() - LOG_LOW) / BIN_WIDTH + 1).long().clamp(0, NUM_BINS - 1)
    flat_LBS = bins_LBS + layers[:, None, None] * NUM_BINS
    for index in range(len(NORM_VIEWS)):
        chosen = flat_LBS[:, mask_BRS[:, index]].flatten()
        counts = torch.bincount(chosen, minlength=stats.num_layers * NUM_BINS)
        stats.norm_hist_LRH[:, index] += counts.view(-1, NUM_BINS)

    mask = mask_BRS.float()
    stats.token_count_GR += onehot_GB @ mask.sum(-1)
    for n, (starts, cosines_LBS) in seen.cosines.items():
        if n in stats.step_sum_LGR:
            summed_LBR = torch.einsum("lbs,brs->lbr", cosines_LBS, mask)
            where = torch.tensor(starts, device=layers.device)
            stats.step_sum_LGR[n].index_add_(0, where, torch.matmul(onehot_GB, summed_LBR))
