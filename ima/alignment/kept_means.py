"""Mean tokens of the examples of a pairing, kept by layer: what pairing scores are made of.

`KeptMeans` is a tap's sink for P (of the pass that is measured) and for T.text (of a pass of the text alone, each
distinct text once). Of each example two means are kept, of all its tokens and of those that are no sinks; NaN where it
has none. Memory: 2 x examples x layers x width in fp32, on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ima.alignment.pairing import Pairing
from ima.alignment.sinks import SinkDimensions, sink_mask
from ima.alignment.tap import Tap
from ima.core.distributed import num_ranks
from ima.core.types import Role, Site
from ima.models.llm.frozen import FrozenLLM

Kept = TypeVar("Kept")


@dataclasses.dataclass(frozen=True)
class Means:
    """all_ELD, nosink_ELD: fp32, in the order of the pairing (examples or texts)."""

    all_ELD: Tensor
    nosink_ELD: Tensor


@dataclasses.dataclass(frozen=True)
class TextBank:
    """T.text of a pairing at `layers`, and the sink dimensions of the LLM. Of a frozen LLM it never changes."""

    pairing: Pairing
    layers: list[int]
    dims: list[int]
    texts: Means


def text_bank(llm: FrozenLLM, pairing: Pairing, layers: Sequence[int] | None, show: Callable[[Tap], None]) -> TextBank:
    """show: runs a pass over the text of each representative alone under the tap that it is given. Two passes: which
    dimensions are sinks must be known before means are taken without them."""
    chosen = sorted(set(range(llm.num_blocks + 1) if layers is None else layers))
    dimensions = SinkDimensions(chosen, llm.num_blocks)
    show(Tap(llm, [dimensions], layers=dimensions.layers))
    dims = dimensions.found()
    names = [pairing.ids[index] for index in pairing.representatives]
    kept = KeptMeans(names, chosen, dims, tokens="answer")
    show(Tap(llm, [kept], layers=chosen))
    return TextBank(pairing, chosen, dims, kept.means(names))


def answer_mask(roles_BS: Tensor) -> Tensor:
    """ANSWER; all of T where an example has no answer."""
    answer_BS = roles_BS == Role.ANSWER
    return torch.where(answer_BS.any(1, keepdim=True), answer_BS, roles_BS == Role.PROMPT)


Tokens = Literal["percept", "answer", "prompt"]
MASKS: dict[Tokens, Callable[[Tensor], Tensor]] = {
    "percept": lambda roles_BS: roles_BS == Role.PERCEPT,
    "answer": answer_mask,
    "prompt": lambda roles_BS: roles_BS == Role.PROMPT,
}


class KeptMeans:
    """wanted: ids that are kept; others are passed over. tokens: of P, of the answer, of the prompt."""

    def __init__(
        self, wanted: Sequence[str], layers: Sequence[int], dims: Sequence[int], tokens: Tokens = "percept"
    ) -> None:
        self.wanted, self.layers, self.dims, self.tokens = frozenset(wanted), tuple(layers), list(dims), tokens
        self.kept: dict[str, Tensor] = {}
        self._rows: list[int] = []

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._rows = [row for row, name in enumerate(sample_ids) if name in self.wanted]
        self._ids = [sample_ids[row] for row in self._rows]
        self._whole = len(self._rows) == len(sample_ids)
        self._roles_WS = roles_BS if self._whole else roles_BS[self._rows]
        self._mask_WS = MASKS[self.tokens](self._roles_WS)
        self._means: dict[int, Tensor] = {}

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        if site is not Site.RESID_POST or layer not in self.layers or not self._rows:
            return
        assert seen_BS is None, "the residual stream is of all tokens"
        x_WSD = x_BSD if self._whole else x_BSD[self._rows]
        without_WS = self._mask_WS & ~sink_mask(x_WSD, self._roles_WS, self.dims)
        mask_W2S = torch.stack([self._mask_WS, without_WS], dim=1).float()
        count_W2 = mask_W2S.sum(-1)
        weight_W2S = mask_W2S / count_W2.where(count_W2 > 0, torch.nan)[..., None]
        self._means[layer] = torch.bmm(weight_W2S, x_WSD.float())

    def end(self) -> None:
        if self._means:
            made_W2LD = torch.stack([self._means[layer] for layer in self.layers], dim=2).cpu()
            self.kept |= dict(zip(self._ids, made_W2LD, strict=True))
        self._means = {}

    def reduce(self) -> None:
        """The examples of all ranks, on every rank."""
        self.kept = of_all_ranks(self.kept)

    def means(self, ids: Sequence[str]) -> Means:
        """Raises KeyError for an example that no pass has shown."""
        made_E2LD = torch.stack([self.kept[name] for name in ids])
        return Means(made_E2LD[:, 0], made_E2LD[:, 1])


def of_all_ranks(kept: dict[str, Kept]) -> dict[str, Kept]:
    """What every rank has kept of its examples, on every rank."""
    import torch.distributed as dist

    if num_ranks() == 1:
        return kept
    parts: list[dict[str, Kept]] = [{} for _ in range(num_ranks())]
    dist.all_gather_object(parts, kept)
    return {name: value for part in parts for name, value in part.items()}
