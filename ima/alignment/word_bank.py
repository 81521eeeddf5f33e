"""The bank of the contextual lens: the frozen LLM's own states of words in real text (docs/alignment.md).

An entry is the state of the last token of a word, given all that stands before it. Texts that begin alike share their
states, so each distinct beginning is kept once; of a word at most MAX_CONTEXTS beginnings, those of the lowest place in
a seeded draw, so that the order of the texts does not matter. The first position of a sequence is no entry: it is a
sink. States are unit vectors in fp16, at the outputs of four blocks evenly spread over the depth.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.naming import Namer
from ima.alignment.tap import Tap
from ima.alignment.views import draw_of
from ima.core.tensor_file import write_tensors
from ima.core.types import Role, Site
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pieces import Before

MAX_CONTEXTS = 50
NUM_TEXTS = 2000
BATCH_SIZE = 64
CARRIERS = ("the {}", "we see the {}", "about {}")  # short: half of what the bank costs are their words
COMMON = (
    "time year people way day man thing woman life child world school family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city name team minute idea body information back parent face others"
)
PIECE = re.compile(r"\s*[^\W_]+(?:['’-][^\W_]+)*|\s*[^\w\s]+|\s*_+|\s+")


@dataclasses.dataclass(frozen=True)
class Context:
    """ids: of the text up to the last token of `word`, BOS included."""

    word: str
    sentence: str
    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class WordBank:
    """C contexts, W distinct words in alphabetical order. word_C: of each context its word; state_LCD: fp16."""

    words: list[str]
    word_C: Tensor
    sentences: list[str]
    layers: list[int]
    state_LCD: Tensor

    @property
    def middle(self) -> int:
        """The layer of the bank that is reported: half of the depth, which is where the last of the layers is."""
        return half(self.layers[-1])

    def at(self, layer: int, centred: bool = True) -> Tensor:
        """unit_CD in fp32; centred: minus the mean over the bank, and unit vectors again."""
        unit_CD = self.state_LCD[self.layers.index(layer)].float()
        return normalize(unit_CD - unit_CD.mean(0), dim=1) if centred else normalize(unit_CD, dim=1)

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        """facts: whose states these are."""
        contexts = [[self.words[word], sentence] for word, sentence in zip(self.word_C, self.sentences, strict=True)]
        entries = json.dumps(contexts, ensure_ascii=False)
        tensors = {f"layer.{layer}": x.contiguous() for layer, x in zip(self.layers, self.state_LCD, strict=True)}
        said = {name: str(facts[name]) for name in ("llm", "llm_width", "llm_blocks", "dataset") if name in facts}
        write_tensors(path, tensors, said | {"format": "pt", "contexts": entries})


def half(num_blocks: int) -> int:
    """Of a depth, rounded up."""
    return (num_blocks + 1) // 2


def bank_layers(num_blocks: int) -> list[int]:
    """Four, evenly spread, rounded half up; fewer in a shallow LLM."""
    return sorted({int(num_blocks * quarter / 4 + 0.5) for quarter in range(1, 5)} - {0})


def texts_of(references: Iterable[str], forms: Iterable[str]) -> list[str]:
    """The default texts: references of the training split (at most NUM_TEXTS, drawn), words in carrier sentences."""
    drawn = sorted(set(references), key=lambda text: (draw_of(text, 0, "bank"), text))[:NUM_TEXTS]
    said = [carrier.format(word) for carrier in CARRIERS for word in (*forms, *COMMON.split())]
    return sorted({*drawn, *said})


def contexts_of(
    texts: Iterable[str], encode: Callable[[str, Before], list[int]], bos_id: int | None, namer: Namer | None
) -> list[Context]:
    """Of each distinct beginning one, in the order of words and beginnings."""
    found: dict[tuple[int, ...], Context] = {}
    encoded = functools.cache(encode)
    for text in sorted(set(texts)):
        ids = [] if bos_id is None else [bos_id]
        words: list[str] = []
        said = ""
        for piece in PIECE.findall(text.strip()):
            before = Before.TEXT if said else Before.NOTHING
            ids += encoded(piece, before)
            said += piece
            word = piece.strip().lower().replace("’", "'")
            if not word[:1].isalnum():
                words = []  # a name does not reach over a comma
                continue
            words.append(word)
            if len(ids) > 1:
                name = namer.ending(words) if namer is not None else word
                found.setdefault(tuple(ids), Context(name, said, tuple(ids)))
    by_word: dict[str, list[Context]] = {}
    for context in found.values():
        by_word.setdefault(context.word, []).append(context)
    kept: list[Context] = []
    for word in sorted(by_word):
        drawn = sorted(by_word[word], key=lambda one: (draw_of(str(one.ids), 0, "context"), one.ids))[:MAX_CONTEXTS]
        kept += sorted(drawn, key=lambda one: one.ids)
    return kept


def sequences_of(contexts: Sequence[Context]) -> list[tuple[tuple[int, ...], list[int]]]:
    """(ids, the contexts that end inside them): the beginnings of a longer one need no pass of their own."""
    order = sorted(range(len(contexts)), key=lambda index: contexts[index].ids)
    out: list[tuple[tuple[int, ...], list[int]]] = []
    waiting: list[int] = []
    for place, index in enumerate(order):
        mine = contexts[index].ids
        waiting.append(index)
        following = contexts[order[place + 1]].ids if place + 1 < len(order) else ()
        if following[: len(mine)] != mine:  # the end of a chain of beginnings
            out.append((mine, waiting))
            waiting = []
    return sorted(out, key=lambda item: (len(item[0]), item[0]))


class Kept:
    """A tap's sink: unit states of the wanted positions, in fp16. wanted: name of a sequence -> (position, entry)."""

    def __init__(self, wanted: dict[str, list[tuple[int, int]]], layers: Sequence[int], num: int, width: int) -> None:
        self.wanted, self.layers = wanted, list(layers)
        self.state_LCD = torch.zeros(len(self.layers), num, width, dtype=torch.float16)

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        found = [(row, *one) for row, name in enumerate(sample_ids) for one in self.wanted[name]]
        self._row, self._place, self._entry = torch.tensor(found).T

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        if site is Site.RESID_POST and layer in self.layers:
            chosen = x_BSD[self._row.to(x_BSD.device), self._place.to(x_BSD.device)].float()
            self.state_LCD[self.layers.index(layer), self._entry] = normalize(chosen, dim=1).half().cpu()

    def end(self) -> None:
        """Nothing to do."""


@torch.no_grad()
def word_bank(llm: FrozenLLM, contexts: Sequence[Context], advance: Callable[[int], None]) -> WordBank:
    """Reads every sequence once. advance: told how many were read."""
    words = sorted({context.word for context in contexts})
    number = {word: index for index, word in enumerate(words)}
    layers = bank_layers(llm.num_blocks)
    runs = sequences_of(contexts)
    names = [f"bank/{index}" for index in range(len(runs))]
    wanted = {
        name: [(len(contexts[one].ids) - 1, one) for one in inside]
        for name, (_, inside) in zip(names, runs, strict=True)
    }
    kept = Kept(wanted, layers, len(contexts), llm.stream_width)
    with Tap(llm, [kept], layers=layers) as tap:
        for start in range(0, len(runs), BATCH_SIZE):
            part = runs[start : start + BATCH_SIZE]
            length = max(len(ids) for ids, _ in part)
            ids_BT = torch.full((len(part), length), llm.pad_id)
            roles_BT = torch.full((len(part), length), int(Role.PAD))
            for row, (ids, _) in enumerate(part):
                ids_BT[row, : len(ids)], roles_BT[row, : len(ids)] = torch.tensor(ids), int(Role.PROMPT)
            mine = names[start : start + BATCH_SIZE]
            roles_BT = roles_BT.to(llm.device)
            with tap.batch(roles_BT, mine):
                llm(llm.embed(ids_BT.to(llm.device)), roles_BT, mine)
            advance(len(part))
    word_C = torch.tensor([number[context.word] for context in contexts], dtype=torch.long)
    return WordBank(words, word_C, [context.sentence for context in contexts], layers, kept.state_LCD)
