"""Attention mass: which share of their attention tokens of one kind give to those of another, by block and head.

Of each example: the mean over its queries of a kind of what they give to all keys of a kind (the kinds of keys share
out the whole), and of the same divided by the number of such keys that the query may read. Then the mean over examples.
Queries: P, `T.prompt`, `T.answer` (positions that predict a token of the answer), `T.noun` (those that predict its
first word that is no function word). Keys: `sink` is the first real position, whatever it is; the others are without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ima.alignment.kept_means import of_all_ranks
from ima.alignment.rows import Base
from ima.alignment.scores import mean_with_error
from ima.core.types import Role, Row
from ima.models.llm.frozen import FrozenLLM
from ima.tasks.metrics.nouns import FUNCTION_WORDS

QUERIES = ("P", "T.prompt", "T.answer", "T.noun")
KEYS = ("sink", "P", "T.prompt", "T.answer", "special")
NUM_EXAMPLES = 64


def content_words(llm: FrozenLLM, text_ids: Sequence[int], roles: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The words of an answer that are no function words, each with which of the answer's tokens make it up; of a text
    with its roles."""
    ids = [token for token, role in zip(text_ids, roles, strict=True) if role == Role.ANSWER]
    ends = [len(llm.tokenizer.decode(list(ids[: index + 1]))) for index in range(len(ids))]
    spans = list(zip([0, *ends[:-1]], ends, strict=True)) if ids else []
    text = llm.tokenizer.decode(list(ids))
    return [
        (found[0], [index for index, (start, end) in enumerate(spans) if start < found.end() and end > found.start()])
        for found in re.finditer(r"[^\W_]+", text)
        if found[0].lower() not in FUNCTION_WORDS
    ]


def first_content(llm: FrozenLLM, text_ids: Sequence[int], roles: Sequence[int]) -> list[int]:
    """Which of an answer's tokens make up its first content word."""
    found = content_words(llm, text_ids, roles)
    return found[0][1] if found else []


def kinds(roles_BS: Tensor, nouns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """query_BAS, key_BKS: the positions of each kind. nouns: of each row, which of its answer's tokens."""
    real_BS = roles_BS != Role.PAD
    answer_BS = roles_BS == Role.ANSWER
    noun_BS = torch.zeros_like(real_BS)
    for row, places in enumerate(nouns):
        if places:
            noun_BS[row, answer_BS[row].nonzero()[list(places), 0]] = True
    before = [torch.nn.functional.pad(x_BS[:, 1:], (0, 1)) & real_BS for x_BS in (answer_BS, noun_BS)]
    percept_BS, prompt_BS = roles_BS == Role.PERCEPT, roles_BS == Role.PROMPT
    sink_BS = real_BS & (real_BS.long().cumsum(1) == 1)
    rest_BS = real_BS & ~percept_BS & ~prompt_BS & ~answer_BS
    keys = [sink_BS, *(x_BS & ~sink_BS for x_BS in (percept_BS, prompt_BS, answer_BS, rest_BS))]
    return torch.stack([percept_BS, prompt_BS, *before], dim=1), torch.stack(keys, dim=1)


class AttentionMass:
    """Looks at the attention weights of some examples. nouns: of each of them which tokens of its answer."""

    def __init__(self, nouns: Mapping[str, Sequence[int]], num_blocks: int) -> None:
        self.nouns, self.num_blocks = dict(nouns), num_blocks
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}  # mass_LAHK, each_LAHK

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self._ids = list(sample_ids)
        query_BAS, key_BKS = kinds(roles_BS.cpu(), [self.nouns.get(name, ()) for name in self._ids])
        self._query_BAS, self._key_BSK = query_BAS.double(), key_BKS.double().transpose(1, 2)
        seen_BSK = self._key_BSK.cumsum(1)  # keys up to a query, itself among them
        self._each_BSK = (1 / seen_BSK).nan_to_num(posinf=0.0)
        self._there_BSK = (seen_BSK > 0).double()
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def see(self, block: int, weights_BHSS: Tensor) -> None:
        mass_BHSK = weights_BHSS.double().cpu() @ self._key_BSK[:, None]
        num_BA = self._query_BAS.sum(2)
        mean_BAHK = torch.einsum("bas,bhsk->bahk", self._query_BAS, mass_BHSK)
        mean_BAHK = mean_BAHK / num_BA.where(num_BA > 0, torch.nan)[:, :, None, None]
        able_BAK = torch.einsum("bas,bsk->bak", self._query_BAS, self._there_BSK)
        each_BAHK = torch.einsum("bas,bhsk->bahk", self._query_BAS, mass_BHSK * self._each_BSK[:, None])
        each_BAHK = each_BAHK / able_BAK.where(able_BAK > 0, torch.nan)[:, :, None]
        self._found[block] = mean_BAHK, each_BAHK

    def end(self) -> None:
        if len(self._found) == self.num_blocks:
            sides = [torch.stack([self._found[b][i] for b in range(self.num_blocks)], dim=1) for i in (0, 1)]
            self.kept |= {name: (sides[0][row], sides[1][row]) for row, name in enumerate(self._ids)}
        self._found = {}

    def reduce(self) -> None:
        """The examples of all ranks, on every rank."""
        self.kept = of_all_ranks(self.kept)


def attention_rows(mass: AttentionMass | None, clusters: Mapping[str, str], base: Base) -> Iterator[Row]:
    """attention_mass, attention_per_token: by block (layer_a: of its output), mean over heads; variant head00, head01
    ...: what each head gives to percepts."""
    if mass is None or not mass.kept:
        note = "an intervention computes attention in its own way" if mass is None else "no block showed its attention"
        for score in ("attention_mass", "attention_per_token"):
            yield Row(score=score, value=math.nan, role_a="T.answer", role_b="P", note=note, n=0, **base)
        return
    names = sorted(mass.kept)
    groups = [clusters.get(name, name) for name in names]
    mass_ELAHK, each_ELAHK = (torch.stack([mass.kept[name][side] for name in names]) for side in (0, 1))
    for layer in range(mass.num_blocks):
        for a, query in enumerate(QUERIES):
            for k, key in enumerate(KEYS):
                at = base | {"layer_a": layer + 1, "layer_b": layer + 1, "role_a": query, "role_b": key}
                for score, side_ELAHK in (("attention_mass", mass_ELAHK), ("attention_per_token", each_ELAHK)):
                    value_EH = side_ELAHK[:, layer, a, :, k]
                    yield filled(score, value_EH.mean(1), groups, at | {"variant": "raw"})
                    if score == "attention_mass" and key == "P":
                        for head in range(value_EH.shape[1]):
                            yield filled(score, value_EH[:, head], groups, at | {"variant": f"head{head:02d}"})


def filled(score: str, value_E: Tensor, clusters: Sequence[str], fields: Base) -> Row:
    value, se, n = mean_with_error(value_E, clusters)
    return Row(
        score=score, value=value, se=se, n=n, note=None if n else "no query of this kind can read such", **fields
    )
