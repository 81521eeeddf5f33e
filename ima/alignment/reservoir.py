"""A seeded sample of examples whose states are kept, for what does not factorise over examples.

The samples with the lowest place in a seeded draw stay, at most `num`, so that any batch split, order and number of
ranks keeps the same ones and two reservoirs merge into one. Kept are the P and T tokens (not SPECIAL) of the block
outputs at chosen layers, on the CPU in the dtype of the model, which is exact. Memory: num x layers x tokens x width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ima.alignment.reference_pass import Scale, Scales, centred
from ima.alignment.views import draw_of
from ima.core.distributed import num_ranks
from ima.core.types import Role, Site

KEPT_ROLES = (Role.PERCEPT, Role.PROMPT, Role.ANSWER)


@dataclasses.dataclass(frozen=True)
class Kept:
    """One example. place: in the draw. roles_S: of its P and T tokens in their order; sink_S: the first position of
    the sequence; states_LSD: at the reservoir's layers."""

    place: str
    sample_id: str
    roles_S: Tensor
    sink_S: Tensor
    states_LSD: Tensor

    def of_role(self, role: str) -> Tensor:
        """mask_S of "P" or "T"."""
        percept_S = self.roles_S == Role.PERCEPT
        return percept_S if role == "P" else ~percept_S


class Reservoir:
    """A tap's sink."""

    def __init__(self, num: int, layers: Sequence[int], seed: int = 0) -> None:
        self.num, self.layers, self.seed = num, tuple(sorted(set(layers))), seed
        self.kept: dict[str, Kept] = {}
        self._wanted: list[tuple[int, str]] = []

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        limit = max((kept.place for kept in self.kept.values()), default="") if len(self.kept) >= self.num else "~"
        places = [(row, draw_of(sample_id, self.seed, "reservoir")) for row, sample_id in enumerate(sample_ids)]
        self._wanted = sorted([(row, place) for row, place in places if place < limit], key=lambda item: item[1])
        self._wanted = self._wanted[: self.num]
        self._sample_ids = list(sample_ids)
        roles_BS = roles_BS.cpu()
        self._chosen_BS = torch.isin(roles_BS, torch.tensor([int(role) for role in KEPT_ROLES]))
        self._roles_BS = roles_BS
        self._sink_BS = (roles_BS != Role.PAD) & ((roles_BS != Role.PAD).long().cumsum(1) == 1)
        self._states: dict[int, list[Tensor]] = {}

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        if site is Site.RESID_POST and layer in self.layers and self._wanted:
            assert seen_BS is None, "the residual stream is of all tokens, so that layers hold the same ones"
            x_WSD = x_BSD[[row for row, _ in self._wanted]].cpu()
            rows = enumerate(self._wanted)
            self._states[layer] = [x_WSD[index, self._chosen_BS[row]].clone() for index, (row, _) in rows]

    def end(self) -> None:
        if not self._states:
            return
        found = [layer for layer in self.layers if layer in self._states]
        assert found == list(self.layers), "the tap shows every layer of the reservoir"
        for index, (row, place) in enumerate(self._wanted):
            states_LSD = torch.stack([self._states[layer][index] for layer in found])
            chosen_S = self._chosen_BS[row]
            kept = Kept(
                place, self._sample_ids[row], self._roles_BS[row][chosen_S], self._sink_BS[row][chosen_S], states_LSD
            )
            self.kept[kept.sample_id] = kept
        self._states = {}
        self._drop()

    def merge(self, other: dict[str, Kept]) -> None:
        self.kept |= other
        self._drop()

    def _drop(self) -> None:
        ordered = sorted(self.kept.values(), key=lambda kept: (kept.place, kept.sample_id))
        self.kept = {kept.sample_id: kept for kept in ordered[: self.num]}

    def reduce(self) -> None:
        """The samples of all ranks, on every rank."""
        import torch.distributed as dist

        if num_ranks() > 1:
            parts: list[dict[str, Kept]] = [{} for _ in range(num_ranks())]
            dist.all_gather_object(parts, self.kept)
            for part in parts:
                self.merge(part)
        else:
            self._drop()

    def num_bytes(self) -> int:
        return sum(kept.states_LSD.numel() * kept.states_LSD.element_size() for kept in self.kept.values())


class Tokens:
    """The kept tokens as scores want them: fp32, by layer, role and variant. Examples are in the order of the draw."""

    def __init__(
        self, reservoir: Reservoir, scales: Scales | None = None, clusters: Mapping[str, str] | None = None
    ) -> None:
        self.reservoir, self.layers, self.scales = reservoir, reservoir.layers, scales
        self.clusters = clusters or {}
        self.kept = list(reservoir.kept.values())
        self._made: tuple[int, dict[tuple[str, str], list[Tensor]]] = (-1, {})

    def alone(self) -> Tokens:
        """The same for another thread."""
        return Tokens(self.reservoir, self.scales, self.clusters)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model that computed the states."""
        return self.kept[0].states_LSD.dtype if self.kept else torch.float32

    @property
    def ids(self) -> list[str]:
        return [kept.sample_id for kept in self.kept]

    def clusters_of(self, ids: Sequence[str]) -> list[str]:
        """What the errors of examples are grouped by."""
        return [self.clusters.get(name, name) for name in ids]

    def of(self, layer: int, role: str, variant: str = "raw") -> list[Tensor]:
        """Per example its tokens [n, D], perhaps none. Those of the last layer asked for are kept; of a variant that
        leaves out what another one does it is the same list."""
        if self._made[0] != layer:
            self._made = layer, {}
        made = self._made[1]
        if (role, variant) not in made:
            made[role, variant] = self._make(layer, role, variant)
        return made[role, variant]

    def _make(self, layer: int, role: str, variant: str) -> list[Tensor]:
        if variant == "raw":
            index = self.layers.index(layer)
            return [kept.states_LSD[index, kept.of_role(role)].float() for kept in self.kept]
        raw = self.of(layer, role)
        if variant == "scaled":
            inverse_D = self.scale(layer).inverse_D.cpu()
            return [x * inverse_D for x in raw]
        kept = self._kept_tokens(raw, layer, role, variant)
        if all(bool(there_N.all()) for there_N in kept):
            return raw
        if variant != "nosink":
            without = self._kept_tokens(raw, layer, role, "nosink")
            if all(torch.equal(one, other) for one, other in zip(kept, without, strict=True)):
                return self.of(layer, role, "nosink")
        return [x[there_N] for x, there_N in zip(raw, kept, strict=True)]

    def _kept_tokens(self, raw: list[Tensor], layer: int, role: str, variant: str) -> list[Tensor]:
        if variant == "nosink":
            return [~kept.sink_S[kept.of_role(role)] for kept in self.kept]
        massive = self.scale(layer).massive
        return [x.norm(dim=-1) <= massive for x in raw]

    def scale(self, layer: int) -> Scale:
        assert self.scales is not None, "this variant needs scales of an earlier pass"
        return self.scales.of(layer, Site.RESID_POST)

    def means(self, layer: int, variant: str = "raw") -> tuple[Tensor, Tensor, list[str]]:
        """(means of P [E, D], of T, ids) of the examples that have both. "centred": minus the mean of the other
        examples of the scales' pass."""
        inner = "raw" if variant == "centred" else variant
        pairs = zip(self.of(layer, "P", inner), self.of(layer, "T", inner), self.ids, strict=True)
        both = [(p.mean(0), t.mean(0), name) for p, t, name in pairs if len(p) and len(t)]
        if not both:
            return torch.zeros(0, 1), torch.zeros(0, 1), []
        means_E2D = torch.stack([torch.stack([p, t]) for p, t, _ in both])
        ids = [name for _, _, name in both]
        if variant == "centred":
            scale = self.scale(layer)
            assert self.scales is not None
            inside_E = torch.tensor([name in self.scales.sample_ids for name in ids])
            on_cpu = dataclasses.replace(scale, mean_sum_2D=scale.mean_sum_2D.cpu(), count_2=scale.count_2.cpu())
            centred_1E2D, known_1E2 = centred([on_cpu], means_E2D[None], inside_E)
            kept_E = known_1E2[0].all(1)
            means_E2D = centred_1E2D[0][kept_E]
            ids = [name for name, there in zip(ids, kept_E.tolist(), strict=True) if there]
        return means_E2D[:, 0], means_E2D[:, 1], ids
