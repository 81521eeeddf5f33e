"""The work of a pass in numbers: FLOPs by part, and what an intervention leaves out of them.

A multiply-add counts as 2 FLOPs. Nothing here knows an intervention or a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

Decision = dict[str, Tensor]  # part (attn, ffn, block, hidden, head<h>) -> skip_BS


@dataclasses.dataclass(frozen=True)
class Flops:
    """By part. `lens`: what an entropy looks through before it decides."""

    query: float = 0.0
    key: float = 0.0
    value: float = 0.0
    out: float = 0.0
    scores: float = 0.0
    values: float = 0.0
    ffn: float = 0.0
    head: float = 0.0
    lens: float = 0.0

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Chance:
    """That a decoded token is left out. Draws of one seed agree, so that of those the larger chance holds."""

    seed: int
    share: float


@dataclasses.dataclass(frozen=True)
class Savings:
    """What an intervention leaves out, by block.

    prompt: the positions of the prompt whose parts are not computed, (1, S) each. decoded: the chance that a decoded
    token's part is not computed (parts: attn, ffn, block, and hidden for its keys). dropped: blocks that do not run at
    all. added: what it computes in addition to the block, for one token's decision.
    """

    prompt: Mapping[int, Decision] = dataclasses.field(default_factory=dict)
    decoded: Mapping[int, Mapping[str, Chance]] = dataclasses.field(default_factory=dict)
    dropped: frozenset[int] = frozenset()
    added: Mapping[int, Flops] = dataclasses.field(default_factory=dict)


NOTHING = Savings()


def weight_of(module: nn.Module) -> Tensor:
    module = getattr(module, "base_layer", module)  # LoRA at its side is as good as free
    assert isinstance(module, nn.Linear)
    return module.weight
