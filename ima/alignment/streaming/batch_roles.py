"""The roles of one batch in the form that statistics need, and what one layer pass returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ima.alignment.reference_pass import Scales
from ima.alignment.views import NUM_GROUPS, ROLE_VIEWS, group_of, view_masks


@dataclasses.dataclass
class BatchRoles:
    """One batch. mask_BRS: the positions of each view that the roles alone decide; weight_BRS: the same as weights that
    sum to one; has_BR: whether the example has the view; any_sink: whether `nosink` differs from `raw`; groups and
    onehot_GB: the jackknife group of each example; inside_B: whether the example is one that the scales are made of."""

    mask_BRS: Tensor
    weight_BRS: Tensor
    has_BR: Tensor
    any_sink: bool
    groups: list[int]
    onehot_GB: Tensor
    inside_B: Tensor

    @classmethod
    def of(
        cls,
        roles_BS: Tensor,
        sample_ids: Sequence[str],
        num_views: int,
        scales: Scales | None,
        clusters: Mapping[str, str] | None = None,
    ) -> BatchRoles:
        """clusters: of each sample; by default each is its own."""
        mask_BRS = view_masks(roles_BS)
        any_sink = not torch.equal(mask_BRS[:, :2], mask_BRS[:, len(ROLE_VIEWS) :])
        mask_BRS = mask_BRS[:, :num_views]
        count_BR = mask_BRS.sum(-1)
        weight_BRS = mask_BRS.float() / count_BR.clamp_min(1)[..., None]
        device = roles_BS.device
        groups = [group_of((clusters or {}).get(sample_id, sample_id)) for sample_id in sample_ids]
        inside = [scales is not None and sample_id in scales.sample_ids for sample_id in sample_ids]
        onehot_GB = torch.nn.functional.one_hot(torch.tensor(groups, device=device), NUM_GROUPS).T.float()
        has_BR = (count_BR > 0).float()
        return cls(mask_BRS, weight_BRS, has_BR, any_sink, groups, onehot_GB, torch.tensor(inside, device=device))


@dataclasses.dataclass
class PassResult:
    """The result of one pass at one site. means: mean tokens, each entry for a slice of the plan's views, zero where an
    example has none; has_LBR: which views an example has; norms_LBR: the norms of the means; dots_LBQ: the products of
    the plan's pairs; norms_LBS: the norms of tokens; cosines[n]: layers l, and the cosines of each token between l and
    l + n; seen_LBS: the positions that have a state, None for all."""

    layers: list[int]
    means: list[tuple[slice, Tensor]]
    has_LBR: Tensor
    norms_LBR: Tensor
    dots_LBQ: Tensor
    norms_LBS: Tensor
    cosines: dict[int, tuple[list[int], Tensor]]
    seen_LBS: Tensor | None = None


def dot(a_BSD: Tensor, b_BSD: Tensor) -> Tensor:
    """Inner products over the last dimension. On the CPU numpy reads both once; torch would write the product."""
    if a_BSD.device.type == "cpu":
        return torch.from_numpy(np.vecdot(a_BSD.numpy(), b_BSD.numpy()))
    return (a_BSD * b_BSD).sum(-1)


def cosine(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    return product / (norm_a * norm_b).clamp_min(torch.finfo(torch.float32).tiny)
