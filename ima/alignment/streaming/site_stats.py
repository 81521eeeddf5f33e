"""The sums that the streaming statistics keep: one `SiteStats` per site.

This is the result of a measurement before any score is made of it. Every tensor is a plain sum over examples, so that
batches and ranks are combined by adding. Both implementations fill it, the fast one (`AlignmentStats`) in fp32 and the
plain definition (`PlainStats`) in fp64, and `scores` reads either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ima.alignment.reference_pass import NUM_BINS
from ima.alignment.views import NORM_VIEWS, NUM_GROUPS, Plan

STEPS = (1, 8)  # layers apart, in consecutive similarity


class SiteStats:
    """The sums of one site. Layers are 0..num_layers - 1, D is the width of the site.

    unit_sum_LGRD: the sum of the unit mean tokens of each of plan.views (zero for centred views: only their matched
    cosine has a meaning); count_LGR: the examples that have the view at the layer; nonzero_LGR: those of them whose
    mean is not the zero vector; matched_LGQ and matched_count_LGQ: the cosine of an example's own two views, for each
    of plan.pairs; norm_hist_LRH: a histogram of token norms; step_sum_LGR[n] and step_count_LGR[n]: the cosine of a
    token at layer l with the same token at layer l + n.
    """

    def __init__(
        self,
        num_layers: int,
        width: int,
        device: torch.device | str = "cpu",
        consecutive: bool = True,
        plan: Plan | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.plan = plan or Plan()
        views, norms, pairs = len(self.plan.views), len(NORM_VIEWS), len(self.plan.pairs)
        self.num_layers, self.width = num_layers, width
        self.unit_sum_LGRD = zeros(num_layers, NUM_GROUPS, views, width)
        self.count_LGR = zeros(num_layers, NUM_GROUPS, views)
        self.nonzero_LGR = zeros(num_layers, NUM_GROUPS, views)
        self.matched_LGQ = zeros(num_layers, NUM_GROUPS, pairs)
        self.matched_count_LGQ = zeros(num_layers, NUM_GROUPS, pairs)
        self.norm_hist_LRH = torch.zeros(num_layers, norms, NUM_BINS, dtype=torch.int64, device=device)
        steps = [n for n in STEPS if n < num_layers] if consecutive else []
        self.step_sum_LGR = {n: zeros(num_layers - n, NUM_GROUPS, norms) for n in steps}
        self.step_count_LGR = {n: zeros(num_layers - n, NUM_GROUPS, norms) for n in steps}

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name. The sums of two parts of the data, added elementwise, are the sums of both."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name, steps in (("step_sum", self.step_sum_LGR), ("step_count", self.step_count_LGR)):
            named |= {f"{name}_{n}": value for n, value in steps.items()}
        return named

    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    def add_(self, other: SiteStats) -> None:
        theirs = other.tensors()
        for name, value in self.tensors().items():
            value += theirs[name]
