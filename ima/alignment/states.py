"""Hidden states as tensors, for an analysis of one's own; and the scores of states that a person brings along.

`KeepStates` is a sink of the tap that keeps everything (the statistics of a run keep sums only: see `streaming`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ima.alignment.rows import alignment_rows
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import Plan
from ima.core.errors import UserError
from ima.core.tensor_file import write_tensors
from ima.core.types import Role, Row, Site

TEXT = (Role.PROMPT, Role.ANSWER)
GROUPS: dict[str, tuple[Role, ...]] = {"percept": (Role.PERCEPT,), "text": TEXT} | {
    role.name.lower(): (role,) for role in Role if role not in (Role.PERCEPT, Role.PAD)
}


@dataclasses.dataclass
class HiddenStates:
    """States of N samples in fp32, padded to the longest: `states[site, layer]` is (N, S, width), roles_NS says what
    each position is. Layer 0 is what enters the first block, layer l the output of block l; sites inside a block begin
    at layer 1."""

    sample_ids: list[str]
    roles_NS: Tensor
    states: dict[tuple[Site, int], Tensor]

    @property
    def layers(self) -> list[int]:
        return sorted({layer for _, layer in self.states})

    def of(self, layer: int, role: str = "percept", site: str = "resid_post") -> list[Tensor]:
        """Per sample the states (n, width) of the tokens of `role` (percept, text, prompt, answer, special, ...)."""
        mask_NS = self.mask(role)
        x_NSD = self._at(layer, site)
        return [x_SD[mask_S] for x_SD, mask_S in zip(x_NSD, mask_NS, strict=True)]

    def mean(self, layer: int, role: str = "percept", site: str = "resid_post") -> Tensor:
        """(N, width): the mean state of each sample's tokens of `role`; NaN where a sample has none."""
        mask_NS = self.mask(role)[..., None].to(torch.float32)
        return (self._at(layer, site) * mask_NS).sum(1) / mask_NS.sum(1).where(mask_NS.sum(1) > 0, torch.nan)

    def mask(self, role: str) -> Tensor:
        """(N, S): where the tokens of `role` stand."""
        if role not in GROUPS:
            raise UserError(f"role: {role!r} is none of {', '.join(GROUPS)}")
        return torch.isin(self.roles_NS, torch.tensor([int(each) for each in GROUPS[role]]))

    def dump(self, path: str | Path) -> Path:
        """A safetensors file with `roles` and one tensor `<site>.<layer>` for each, for those who want files."""
        tensors = {f"{site}.{layer}": x.contiguous() for (site, layer), x in self.states.items()}
        write_tensors(Path(path), tensors | {"roles": self.roles_NS.to(torch.int64)}, {"format": "pt"})
        return Path(path)

    def _at(self, layer: int, site: str) -> Tensor:
        key = (Site(site), layer)
        if key not in self.states:
            raise UserError(f"layer: {layer} at {site} was not kept; there are layers {self.layers}")
        return self.states[key]


class KeepStates:
    """A sink that keeps the states of all passes on the CPU."""

    def __init__(self) -> None:
        self.sample_ids: list[str] = []
        self.roles: list[Tensor] = []
        self.kept: dict[tuple[Site, int], list[Tensor]] = {}

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self.sample_ids += sample_ids
        self.roles.append(roles_BS.cpu())

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        x_BSD = x_BSD.float()
        if seen_BS is not None:  # at the others it is no state
            x_BSD = torch.where(seen_BS[..., None], x_BSD, torch.nan)
        self.kept.setdefault((site, layer), []).append(x_BSD.cpu().clone())

    def end(self) -> None:
        """Nothing to do."""

    def states(self) -> HiddenStates:
        length = max((part.shape[1] for part in self.roles), default=0)

        def joined(parts: Sequence[Tensor]) -> Tensor:
            """Along the samples; positions are padded on the right with zeros (of roles: PAD)."""
            pads = [(0, 0) * (part.dim() - 2) + (0, length - part.shape[1]) for part in parts]
            return torch.cat([torch.nn.functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])

        kept = {key: joined(parts) for key, parts in sorted(self.kept.items(), key=lambda item: item[0][1])}
        return HiddenStates(self.sample_ids, joined(self.roles), kept)


def states_rows(states: Sequence[Tensor], roles_NS: Tensor, variants: Sequence[str] = ("nosink",)) -> list[Row]:
    """The alignment scores (IMA, similarities, cones, norms, consecutive) of hidden states that a person brings along.

    states: one (N, S, D) for each layer, from what enters the first block on (as `output_hidden_states` gives them).
    roles_NS: `Role` of each position; PAD counts nowhere. Raises UserError where shapes do not fit.
    """
    if not states or any(x.shape[:2] != roles_NS.shape for x in states):
        shapes = sorted({tuple(x.shape) for x in states})
        raise UserError(f"states: shapes {shapes} do not fit roles of {tuple(roles_NS.shape)}; give (N, S, D) a layer")
    stats = AlignmentStats(len(states), plan=Plan(tuple(variants)))
    stats.begin(roles_NS, [str(index) for index in range(len(roles_NS))])
    for layer, x_NSD in enumerate(states):
        stats.see(layer, Site.RESID_POST, x_NSD.detach())
    stats.end()
    return list(alignment_rows(stats, {"run": "states"}))
