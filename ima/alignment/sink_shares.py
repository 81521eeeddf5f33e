"""How many tokens are sinks, where they stand, and what similarity is without them (variant `nosinkdim`).

A tap's sink over the same pass as the streamed statistics. sink_share: share of P and of T tokens, by layer;
sink_share_at: of P by position among the perceptual tokens (`n` is the position), over the layers from 1 on;
rms_share: by the published rule |x_d| / rms > 20 in some dimension, where the width allows it (the ratio cannot exceed
its root).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.rows import NOTHING, Base
from ima.alignment.scores import Curve, Side, positive, products, with_leave_outs
from ima.alignment.sinks import sink_mask
from ima.alignment.views import NUM_GROUPS, group_of
from ima.core.distributed import num_ranks
from ima.core.types import Role, Row, Site

MAX_POSITIONS = 256
RMS, RMS_WIDTH = 20.0, 1600
ROLES = ("P", "T")


class SinkShares:
    def __init__(
        self, dims: Sequence[int], num_layers: int, width: int, clusters: Mapping[str, str] | None = None
    ) -> None:
        self.dims, self.clusters, self.width = list(dims), clusters or {}, width
        self.layers: set[int] = set()
        self.counts_LR3 = torch.zeros(num_layers, 2, 3, dtype=torch.float64)  # tokens, sinks, above RMS
        self.position_LK2 = torch.zeros(num_layers, MAX_POSITIONS, 2, dtype=torch.float64)
        self.sum_LGRD = torch.zeros(num_layers, NUM_GROUPS, 2, width, dtype=torch.float64)
        self.count_LGR = torch.zeros(num_layers, NUM_GROUPS, 2, dtype=torch.float64)
        self.matched_LG2 = torch.zeros(num_layers, NUM_GROUPS, 2, dtype=torch.float64)

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        percept_BS = roles_BS == Role.PERCEPT
        self._roles_BS = roles_BS
        self._mask_BRS = torch.stack([percept_BS, (roles_BS == Role.PROMPT) | (roles_BS == Role.ANSWER)], dim=1)
        self._place_BS = (percept_BS.long().cumsum(1) - 1).clamp(0, MAX_POSITIONS - 1)
        self._groups_B = torch.tensor([group_of(self.clusters.get(name, name)) for name in sample_ids])

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        if site is not Site.RESID_POST:
            return
        self.layers.add(layer)
        sink_BS = sink_mask(x_BSD, self._roles_BS, self.dims)
        mask_BRS = self._mask_BRS
        found = [mask_BRS, mask_BRS & sink_BS[:, None]]
        if self.width > RMS_WIDTH:
            rms_BS = x_BSD.float().square().mean(-1).sqrt()
            found.append(mask_BRS & (x_BSD.abs().amax(-1).float() > RMS * rms_BS)[:, None])
        for column, each_BRS in enumerate(found):
            self.counts_LR3[layer, :, column] += each_BRS.sum((0, 2)).cpu()
        percept_BS, place_N = mask_BRS[:, 0], self._place_BS[mask_BRS[:, 0]].cpu()
        self.position_LK2[layer, :, 0] += torch.bincount(place_N, minlength=MAX_POSITIONS)
        self.position_LK2[layer, :, 1] += torch.bincount(
            place_N, sink_BS[percept_BS].cpu().double(), minlength=MAX_POSITIONS
        )
        kept_BRS = (mask_BRS & ~sink_BS[:, None]).float()
        num_BR = kept_BRS.sum(-1)
        mean_BRD = torch.bmm(kept_BRS / num_BR.clamp_min(1)[..., None], x_BSD.float()).double().cpu()
        unit_BRD, there_BR = normalize(mean_BRD, dim=-1), (num_BR > 0).double().cpu()
        both_B = there_BR.prod(1)
        own_B = (unit_BRD[:, 0] * unit_BRD[:, 1]).sum(-1) * both_B
        self.sum_LGRD[layer].index_add_(0, self._groups_B, unit_BRD)
        self.count_LGR[layer].index_add_(0, self._groups_B, there_BR)
        self.matched_LG2[layer].index_add_(0, self._groups_B, torch.stack([own_B, both_B], dim=1))

    def end(self) -> None:
        """Nothing to do."""

    def reduce(self) -> None:
        import torch.distributed as dist

        if num_ranks() > 1:
            parts: list[list[Tensor]] = [[] for _ in range(num_ranks())]
            dist.all_gather_object(parts, self._sums())
            for index, mine in enumerate(self._sums()):
                mine.copy_(torch.stack([part[index] for part in parts]).sum(0))
            layers: list[set[int]] = [set() for _ in range(num_ranks())]
            dist.all_gather_object(layers, self.layers)
            self.layers = set().union(*layers)

    def _sums(self) -> list[Tensor]:
        return [self.counts_LR3, self.position_LK2, self.sum_LGRD, self.count_LGR, self.matched_LG2]

    def similarity(self) -> tuple[Curve, Curve]:
        """(all pairs, an example with itself) without sinks."""
        count_P, count_T = (with_leave_outs(self.count_LGR[..., role]) for role in (0, 1))
        p, t = (Side.of(self.sum_LGRD[:, :, role]) for role in (0, 1))
        used_LG = self.count_LGR.sum(-1) > 0
        n_L = torch.minimum(count_P[0], count_T[0])
        every = Curve.of(products(p, t) / positive(count_P * count_T), used_LG, n_L)
        own, num = (with_leave_outs(self.matched_LG2[..., column]) for column in (0, 1))
        return every, Curve.of(own / positive(num), self.matched_LG2[..., 1] > 0, num[0])

    def rows(self, base: Base) -> Iterator[Row]:
        fields = base | {"site": Site.RESID_POST.value, "variant": "raw"}
        for dim in self.dims:
            yield Row(score="sink_dimension", value=dim, **fields)
        yield Row(score="num_sink_dimensions", value=len(self.dims), role_b="T.text", **fields)
        layers = sorted(self.layers)
        for r, role in enumerate(ROLES):
            for layer in layers:
                total, sinks, above = self.counts_LR3[layer, r].tolist()
                at = fields | {"role_a": role, "layer_a": layer, "n": int(total)}
                yield Row(score="sink_share", value=ratio(sinks, total), note=None if total else NOTHING, **at)
                if self.width > RMS_WIDTH:
                    yield Row(score="rms_share", value=ratio(above, total), **at)
        tokens_K2 = self.position_LK2[[layer for layer in layers if layer > 0]].sum(0)
        for place in range(int((tokens_K2[:, 0] > 0).sum())):
            share = ratio(float(tokens_K2[place, 1]), float(tokens_K2[place, 0]))
            yield Row(score="sink_share_at", value=share, role_a="P", n=place, **fields)
        named = fields | {"role_a": "P", "role_b": "T", "variant": "nosinkdim"}
        for score, curve in zip(("sim", "sim_matched"), self.similarity(), strict=True):
            for layer in layers:
                value, se, n = float(curve.value_L[layer]), float(curve.se_L[layer]), int(curve.n_L[layer])
                note = None if value == value else NOTHING
                yield Row(score=score, value=value, se=se, n=n, layer_a=layer, layer_b=layer, note=note, **named)
            value, se = curve.mean(1) if len(layers) == len(curve.value_L) else (math.nan, math.nan)
            yield Row(score=score.replace("sim", "ima"), value=value, se=se, n=curve.n, **named)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
