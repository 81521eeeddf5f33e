"""The reference pass: an earlier pass over a fixed, seeded subset of the split.

Some variants measure a state against its layer: its norm against the median norm, each dimension against its standard
deviation, a mean token against the mean of its role. These numbers must be known before the statistics can stream.
`Scales` is the tap's sink that collects them, per layer and site, in fp64: a histogram of token norms, sums per
dimension, and the sum of mean tokens per role. They add up over batches and ranks in any split. The tokens are those of
P and T, each once; where a site is computed for some tokens only (`ima.alignment.tap`), they are those tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ima.alignment.views import MASSIVE, view_masks
from ima.core.distributed import num_ranks
from ima.core.types import Site

# Norms go to a histogram of log-spaced bins: quantiles are exact to half a bin, 0.5 %.
BIN_WIDTH = 0.01
LOG_LOW, LOG_HIGH = math.log(1e-6), math.log(1e8)
NUM_BINS = round((LOG_HIGH - LOG_LOW) / BIN_WIDTH) + 2


def norm_bins(norms: Tensor) -> Tensor:
    return ((norms.clamp_min(1e-30).log() - LOG_LOW) / BIN_WIDTH + 1).long().clamp(0, NUM_BINS - 1)


def quantiles_of(hist_XH: Tensor, qs: Sequence[float]) -> Tensor:
    """[Q, X] quantiles of histograms, within half a bin; NaN for an empty one."""
    reached_XH = hist_XH.cpu().double().cumsum(-1)
    total_X = reached_XH[..., -1]
    wanted_XQ = total_X[..., None] * torch.tensor(qs, dtype=torch.float64)
    index_XQ = torch.searchsorted(reached_XH, wanted_XQ)
    value_XQ = torch.exp(LOG_LOW + (index_XQ - 0.5) * BIN_WIDTH)
    return torch.where(total_X[..., None] > 0, value_XQ, torch.nan).movedim(-1, 0)


@dataclasses.dataclass
class ReferenceSums:
    """The sums of one layer and site. mean_sum_2D: the mean tokens of P and T; count_2: the examples that have them."""

    hist_H: Tensor
    sum_D: Tensor
    square_D: Tensor
    num_tokens: Tensor
    mean_sum_2D: Tensor
    count_2: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str) -> ReferenceSums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(NUM_BINS), zeros(width), zeros(width), zeros(1), zeros(2, width), zeros(2))

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class Scale:
    """What one layer and site is measured against, in fp32. massive: the norm above which a token is massive.
    inverse_D: 1 / standard deviation, or 0 for a dimension that never varies, which is thereby left out. known: whether
    the reference pass saw a token there."""

    massive: float
    inverse_D: Tensor
    mean_sum_2D: Tensor
    count_2: Tensor
    known: bool = True


def centred(scales: Sequence[Scale], means_LB2D: Tensor, inside_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each mean minus the mean over the other examples of the subset, and known_LB2: whether there is another one (the
    result is zero where not). inside_B: whether an example is in the subset itself; `scales`: those of each layer."""
    sum_L2D = torch.stack([scale.mean_sum_2D for scale in scales])
    count_L2 = torch.stack([scale.count_2 for scale in scales])
    own_B1 = inside_B.to(count_L2)[:, None]
    others_LB2 = count_L2[:, None] - own_B1
    known_LB2 = others_LB2 > 0
    factor_LB2 = known_LB2 / others_LB2.clamp_min(1)
    # m - (sum - own m) / others
    made_LB2D = torch.mul(means_LB2D, (known_LB2 + own_B1 * factor_LB2)[..., None])
    return made_LB2D.addcmul_(factor_LB2[..., None], sum_L2D[:, None], value=-1), known_LB2


@dataclasses.dataclass(frozen=True)
class CountedTokens:
    """The tokens of a batch that count. rows_N: the flat positions of P and T; weight_WN: the weights that sum them to
    the mean tokens of P, to those of T, and to the sum of all; count_R: how many examples have P, how many T."""

    rows_N: Tensor
    weight_WN: Tensor
    count_R: Tensor

    @classmethod
    def of(cls, mask_BRS: Tensor) -> CountedTokens:
        count_BR = mask_BRS.sum(-1)
        weight_RBS = (mask_BRS.double() / count_BR.clamp_min(1)[..., None]).transpose(0, 1)
        any_BS = mask_BRS.any(1)
        weight_RN = weight_RBS[:, any_BS]
        weight_WN = torch.cat([weight_RN, torch.ones_like(weight_RN[:1])])
        return cls(any_BS.flatten().nonzero()[:, 0], weight_WN, (count_BR > 0).sum(0))


class Scales:
    """`sample_ids`: the subset, which is known beforehand and is the same on all ranks."""

    def __init__(self, sample_ids: Sequence[str]) -> None:
        self.sample_ids = frozenset(sample_ids)
        self.sums: dict[tuple[int, Site], ReferenceSums] = {}
        self._scales: dict[tuple[int, Site], Scale] = {}
        self._scratch: Tensor | None = None

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._mask_BRS = view_masks(roles_BS)[:, :2]
        self._all = CountedTokens.of(self._mask_BRS)

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        counted = self._all if seen_BS is None else CountedTokens.of(self._mask_BRS & seen_BS[:, None])
        key, width = (layer, site), x_BSD.shape[-1]
        if key not in self.sums:
            self.sums[key] = ReferenceSums.empty(width, x_BSD.device)
        sums = self.sums[key]
        tokens_ND = self._buffer(len(counted.rows_N), width, x_BSD.device)
        tokens_ND.copy_(x_BSD.reshape(-1, width).index_select(0, counted.rows_N))
        sums.hist_H += torch.bincount(norm_bins(torch.linalg.vector_norm(tokens_ND, dim=1)), minlength=NUM_BINS)
        sum_WD = counted.weight_WN @ tokens_ND
        sums.mean_sum_2D += sum_WD[:2]
        sums.sum_D += sum_WD[2]
        sums.square_D += counted.weight_WN[2] @ tokens_ND.square_()
        sums.num_tokens += len(tokens_ND)
        sums.count_2 += counted.count_R

    def _buffer(self, num: int, width: int, device: torch.device) -> Tensor:
        """An fp64 buffer that every state reuses: fresh pages cost more than the arithmetic."""
        if self._scratch is None or self._scratch.numel() < num * width:
            self._scratch = torch.empty(num * width, dtype=torch.float64, device=device)
        return self._scratch[: num * width].view(num, width)

    def end(self) -> None:
        self._scales, self._scratch = {}, None

    def reduce(self) -> None:
        """Sum over ranks, in place on every rank; nothing to do without torch.distributed."""
        import torch.distributed as dist

        if num_ranks() == 1:
            return
        widths: list[dict[tuple[int, Site], int]] = [{} for _ in range(num_ranks())]
        dist.all_gather_object(widths, {key: sums.sum_D.numel() for key, sums in self.sums.items()})
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        for key, width in sorted({item for known in widths for item in known.items()}):
            self.sums[key] = self.sums.pop(key, ReferenceSums.empty(width, device))
            for value in self.sums[key].tensors():
                dist.all_reduce(value)
        self._scales = {}

    def of(self, layer: int, site: Site) -> Scale:
        key = layer, site
        if key not in self._scales:
            assert key in self.sums, "the reference pass saw other layers or sites"
            sums = self.sums[key]
            num = sums.num_tokens.clamp_min(1)
            variance_D = (sums.square_D / num - (sums.sum_D / num).square()).clamp_min(0)
            # Below what rounding leaves of a dimension that is constant.
            varies_D = variance_D > 1e-12 * sums.square_D / num
            inverse_D = torch.where(varies_D, variance_D.clamp_min(1e-300).rsqrt(), 0.0)
            known = bool(sums.num_tokens > 0)
            massive = MASSIVE * float(quantiles_of(sums.hist_H, (0.5,)))
            self._scales[key] = Scale(massive, inverse_D.float(), sums.mean_sum_2D.float(), sums.count_2.float(), known)
        return self._scales[key]
