"""A pass of an LLM as others see it: what generation is asked for, roles and samples of the running pass."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import Tensor

from ima.core.types import Role, Site


@dataclasses.dataclass(frozen=True)
class Generation:
    """Settings of decoding: greedy for num_beams 1, else beam search; nothing is sampled."""

    max_new_tokens: int = 12
    num_beams: int = 1


class Taken(Protocol):
    """Positions of a pass at which a site is computed; at the others it is not. A module there is given them alone
    (`num_given` rows, some of them perhaps not wanted), which `put` brings back to their places, or all."""

    @property
    def wanted_BS(self) -> Tensor: ...

    @property
    def num_given(self) -> int: ...

    def put(self, y: Tensor, /) -> Tensor:
        """(B, S, D), zeros where nothing was taken."""


@dataclasses.dataclass
class PassContext:
    """The pass that runs now: roles_BS and sample_ids of its rows (None where the caller did not say), and how many
    positions came before it (cached decoding), num_real_past_B of them real. `memo` lives as long as the pass,
    `history` as long as the decoding. taken: by block and site, where an intervention leaves the site out for some
    positions. silent: a pass inside another one, which is not shown to taps."""

    roles_BS: Tensor
    sample_ids: tuple[str, ...] | None = None
    num_past: int = 0
    num_real_past_B: Tensor | None = None
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)
    history: dict[Any, Any] = dataclasses.field(default_factory=dict)
    taken: dict[tuple[int, Site], Taken] = dataclasses.field(default_factory=dict)
    silent: bool = False

    @property
    def places_BS(self) -> Tensor:
        """Place of each position among the real tokens of its sample, from 0: the same however it is padded."""
        places_BS = ((self.roles_BS != Role.PAD).long().cumsum(1) - 1).clamp_min(0)
        return places_BS if self.num_real_past_B is None else places_BS + self.num_real_past_B[:, None]
