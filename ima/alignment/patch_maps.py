"""Patch maps: what each perceptual token of a few media is near to, for looking at (docs/alignment.md).

At half of the depth: of each token the words in context that it is nearest to, as the contextual lens finds them, and
its cosine with each content word of the medium's own text, which the LLM read alone. Tokens are centred over media,
words by the mean of the bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.contextual_lens import of_bank
from ima.alignment.kept_percepts import KeptPercepts, centred
from ima.alignment.pairing import Pairing
from ima.alignment.word_bank import Kept, WordBank

NUM_MEDIA, NUM_WORDS = 6, 3
Words = list[tuple[str, int]]  # a content word, the position of its last token


def shown_of(pairing: Pairing) -> list[str]:
    """The first example of each of the first units of the draw: different things."""
    first = [pairing.unit_of.index(unit) for unit in range(min(NUM_MEDIA, pairing.num_units))]
    return [pairing.ids[index] for index in first]


class PatchMaps:
    """words: of each shown medium; `kept` is the tap's sink of the pass over their texts alone."""

    def __init__(self, ids: Sequence[str], words: dict[str, Words], layer: int, width: int) -> None:
        self.ids, self.words, self.layer = list(ids), words, layer
        self.entries = [(name, word) for name in self.ids for word, _ in words[name]]
        wanted: dict[str, list[tuple[int, int]]] = {name: [] for name in self.ids}
        places = [(name, place) for name in self.ids for _, place in words[name]]
        for entry, (name, place) in enumerate(places):
            wanted[name].append((place, entry))
        self.kept = Kept(wanted, [layer], len(self.entries), width)

    def made(self, percepts: KeptPercepts, everyone: Sequence[str], bank: WordBank) -> list[dict[str, Any]]:
        """everyone: the media that the centre is of. Of each shown medium its text's words and its tokens, each with
        its nearest words and its cosines with the text's."""
        tokens = dict(zip(everyone, centred(percepts.at(self.layer, everyone)), strict=True))
        middle_D = bank.state_LCD[bank.layers.index(self.layer)].float().mean(0)
        word_WD = normalize(self.kept.state_LCD[0].float() - middle_D, dim=1)
        near = of_bank(bank)
        out = []
        for name in self.ids:
            mine = [index for index, (owner, _) in enumerate(self.entries) if owner == name]
            x_KD = tokens[name]
            found = [] if not len(x_KD) else nearest_words(near(x_KD), bank.words)
            cosine_KW = x_KD @ word_WD[mine].T
            out.append(
                {
                    "sample": name,
                    "text_words": [self.entries[index][1] for index in mine],
                    "tokens": [
                        {"words": words, "cosines": [round(value, 4) for value in cosines]}
                        for words, cosines in zip(found, cosine_KW.tolist(), strict=True)
                    ],
                }
            )
        return out


def nearest_words(similarity_KW: Tensor, words: Sequence[str]) -> list[list[tuple[str, float]]]:
    top = torch.topk(similarity_KW, min(NUM_WORDS, len(words)), dim=1)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[(words[i], round(value, 4)) for i, value in zip(ids, values, strict=True)] for ids, values in rows]
