"""The contextual lens: which words in real text are a perceptual token's nearest neighbours inside the LLM.

lens_share, lens_chance, lens_over_chance     of tokens with the medium's noun among their 5 nearest distinct words;
                                              by chance; the difference with a bootstrap over clusters (_low, _high);
                                              layer_a: of P, layer_b: of the bank; variants `centred` and `raw`
lens_share_first, lens_chance_first           the same for the nearest word alone
lens_share_broader                            a broader term of the noun among the five and no name of it
lens_nouns_reached                            nouns that a token of their own media names
lens_one_token, lens_one_token_chance         on nouns with a name of one token: the lens (variant `centred`), the
                                              logit lens (`logit`), the nearest input embedding (`embedding`)
lens_share_mean, lens_over_chance_mean        over layers from 1 on
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.kept_percepts import KeptPercepts, centred
from ima.alignment.lens_shares import Nouns, Shares, Wanted, by_word, others
from ima.alignment.logit_lens import Head
from ima.alignment.naming import Namer
from ima.alignment.rows import Base
from ima.alignment.views import evenly
from ima.alignment.word_bank import WordBank
from ima.core.types import Row, Site
from ima.models.llm.frozen import FrozenLLM

K = 5
CHUNK = 1024
LEAST = 8  # media
NUM_COMPARED, NUM_COMPARED_LAYERS = 64, 5
Nearness = Callable[[Tensor], Tensor]  # x_ND -> similarity_NW
NO_NOUNS = "the facts of these samples name no nouns of a vocabulary that is known here"


@dataclasses.dataclass(frozen=True)
class LensSamples:
    """ids, clusters, nouns: of each medium; namer: None where no vocabulary is known."""

    ids: list[str]
    clusters: list[str]
    nouns: list[Nouns]
    namer: Namer | None

    def only(self, keep: Sequence[bool]) -> LensSamples:
        chosen = [index for index, there in enumerate(keep) if there]
        ids, clusters = ([side[i] for i in chosen] for side in (self.ids, self.clusters))
        return LensSamples(ids, clusters, [self.nouns[i] for i in chosen], self.namer)


class Vocabulary:
    """The input vocabulary as words: tokens that read alike, but for blanks and case, are one word."""

    def __init__(self, llm: FrozenLLM, namer: Namer) -> None:
        self.llm = llm
        num = llm.model.get_input_embeddings().num_embeddings
        texts = [text.strip().lower() for text in llm.tokenizer.batch_decode([[token] for token in range(num)])]
        self.words = sorted(set(texts))
        number = {word: index for index, word in enumerate(self.words)}
        self.word_V = torch.tensor([number[text] for text in texts])
        self.order_V = self.word_V.argsort(stable=True)
        self.named = [namer(word)[0] if word.isalpha() else frozenset() for word in self.words]

    def by_word(self, similarity_NV: Tensor) -> Tensor:
        return by_word(similarity_NV[:, self.order_V], self.word_V[self.order_V], len(self.words))

    @cached_property
    def embeddings_VD(self) -> Tensor:
        num = self.llm.model.get_input_embeddings().num_embeddings
        with torch.no_grad():
            parts = [self.llm.embed(ids[None].to(self.llm.device))[0] for ids in torch.arange(num).split(8192)]
            return normalize(torch.cat(parts).float(), dim=1).cpu()

    @property
    def nearness(self) -> dict[str, Nearness]:
        head = Head(self.llm)
        return {
            "logit": lambda x_ND: self.by_word(head(x_ND)[:, : len(self.word_V)].cpu()),
            "embedding": lambda x_ND: self.by_word(normalize(x_ND, dim=1) @ self.embeddings_VD.T),
        }


def of_bank(bank: WordBank, is_centred: bool = True) -> Nearness:
    unit_CD = bank.at(bank.middle, is_centred)
    return lambda x_ND: by_word(normalize(x_ND, dim=1) @ unit_CD.T, bank.word_C, len(bank.words))


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is looked for among the k nearest words; apart: what must not be there beside it."""

    wanted: Wanted
    k: int = K
    apart: Wanted | None = None

    def hits(self, similarity_NW: Tensor) -> Tensor:
        hit_NS = self.wanted.hits(similarity_NW, self.k)
        return hit_NS if self.apart is None else hit_NS & ~self.apart.hits(similarity_NW, self.k)


def shares_of(tokens: Sequence[Tensor], near: Nearness, asks: Sequence[Ask], shown: LensSamples) -> list[Shares]:
    """tokens: x_KD of each medium, at least one."""
    count_M = torch.tensor([len(x_KD) for x_KD in tokens])
    medium_N = torch.repeat_interleave(torch.arange(len(tokens)), count_M)
    hits = [torch.zeros(len(tokens), len(ask.wanted.sets), dtype=torch.float64) for ask in asks]
    for x_ND, mine_N in zip(torch.cat(list(tokens)).split(CHUNK), medium_N.split(CHUNK), strict=True):
        similarity_NW = near(x_ND)
        for ask, sum_MS in zip(asks, hits, strict=True):
            sum_MS.index_add_(0, mine_N, ask.hits(similarity_NW).double())
    out = []
    for ask, sum_MS in zip(asks, hits, strict=True):
        own_M = torch.tensor([ask.wanted.sets.index(nouns) for nouns in shown.nouns])
        out.append(Shares(sum_MS / count_M[:, None], own_M, others(ask.wanted, shown.nouns), shown.clusters))
    return out


class ContextualLens:
    """percepts: tokens of the media of `shown`, at the layers that are looked at."""

    def __init__(self, bank: WordBank, percepts: KeptPercepts, shown: LensSamples, llm: FrozenLLM) -> None:
        self.bank, self.percepts, self.llm = bank, percepts, llm
        self.everything, self.namer = shown, shown.namer
        self.reasons: list[str] = []
        if self.namer is None:
            self.shown = shown.only([False] * len(shown.ids))
            return
        self.named = [self.namer(word) for word in bank.words]
        in_bank = frozenset().union(*(nouns for nouns, _ in self.named))
        left = dataclasses.replace(shown, nouns=[nouns & in_bank for nouns in shown.nouns])
        lost = len(frozenset().union(*shown.nouns) - in_bank)
        self.reasons = [f"{lost} nouns have no word in the bank"] if lost else []
        self.shown = left.only([bool(nouns) and bool(percepts.kept[i].shape[1]) for i, nouns in
                                zip(shown.ids, left.nouns, strict=True)])  # fmt: skip

    def rows(self, base: Base) -> Iterator[Row]:
        fields = base | {"site": Site.RESID_POST.value, "role_a": "P", "role_b": "T.text"}
        if len(self.shown.ids) < LEAST:
            note = NO_NOUNS if self.namer is None else f"{len(self.shown.ids)} media with nouns; at least {LEAST}"
            for score in ("lens_share", "lens_chance", "lens_over_chance", "lens_share_mean", "lens_over_chance_mean"):
                yield Row(score=score, value=math.nan, n=len(self.shown.ids), note=note, variant="centred", **fields)
            return
        found: dict[int, Shares] = {}
        for layer in self.percepts.layers:
            at = fields | {"layer_a": layer, "layer_b": self.bank.middle}
            found[layer] = yield from self._at(layer, at)
        inner = [shares for layer, shares in found.items() if layer > 0]
        if inner:
            mean = dataclasses.replace(inner[0], share_MS=torch.stack([one.share_MS for one in inner]).mean(0))
            yield from self._three(mean, ("lens_share_mean", None, "lens_over_chance_mean"),
                                   fields | {"variant": "centred"})  # fmt: skip
        yield from self._compared(fields)

    def _three(self, shares: Shares, names: tuple[str, str | None, str | None], fields: Base) -> Iterator[Row]:
        note = "; ".join([f"{len(set(self.shown.nouns))} sets of nouns", *self.reasons])
        at = fields | {"n": len(shares)}
        share, chance, over = names
        yield Row(score=share, value=float(shares.value_M.mean()), se=shares.error(), note=note, **at)
        found = shares.difference() if over is not None else None
        none = "no media of other nouns"
        if chance is not None:
            value = shares.chance_value()
            yield Row(score=chance, value=value, note=note if value == value else none, **at)
        if over is not None and found is not None:
            for end, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
                why = none if found.value != found.value else "one cluster"
                yield Row(score=f"{over}{end}", value=value, note=None if value == value else why, **at)

    def _at(self, layer: int, fields: Base) -> Generator[Row, None, Shares]:
        """Gives back what the headline of the lens is made of."""
        shown = self.shown
        tokens = self.percepts.at(layer, shown.ids)
        sets = list(dict.fromkeys([*shown.nouns, *(frozenset({noun}) for nouns in shown.nouns for noun in nouns)]))
        sets.sort(key=sorted)
        wanted = Wanted.of(sets, [nouns for nouns, _ in self.named])
        terms = Wanted.of(sets, [broad for _, broad in self.named])
        asks = [Ask(wanted), Ask(wanted, 1), Ask(terms, K, wanted)]
        shares, first, broader = shares_of(centred(tokens), of_bank(self.bank), asks, shown)
        at = fields | {"variant": "centred"}
        yield from self._three(shares, ("lens_share", "lens_chance", "lens_over_chance"), at)
        yield from self._three(first, ("lens_share_first", "lens_chance_first", None), at)
        yield from self._three(broader, ("lens_share_broader", None, None), at)
        reached = {
            noun
            for row, nouns in enumerate(shown.nouns)
            for noun in nouns
            if shares.share_MS[row, sets.index(frozenset({noun}))] > 0
        }
        every = len(frozenset().union(*shown.nouns))
        yield Row(score="lens_nouns_reached", value=len(reached) / every, n=every, **at)
        (raw,) = shares_of(tokens, of_bank(self.bank, False), [Ask(wanted)], shown)
        yield from self._three(raw, ("lens_share", "lens_chance", "lens_over_chance"), fields | {"variant": "raw"})
        return shares

    def _compared(self, fields: Base) -> Iterator[Row]:
        assert self.namer is not None
        vocabulary = Vocabulary(self.llm, self.namer)
        one_token = frozenset().union(*vocabulary.named)
        left = dataclasses.replace(self.shown, nouns=[nouns & one_token for nouns in self.shown.nouns])
        kept = [bool(nouns) for nouns in left.nouns]
        shown = left.only(kept)
        shown = shown.only([index < NUM_COMPARED for index in range(len(shown.ids))])
        note = f"{len(shown.ids)} media with a noun of one token; at least {LEAST}"
        if len(shown.ids) < LEAST:
            yield Row(score="lens_one_token", value=math.nan, n=len(shown.ids), note=note, variant="centred", **fields)
            return
        sets = sorted(set(shown.nouns), key=sorted)
        ways: dict[str, tuple[Nearness, Wanted]] = {
            "centred": (of_bank(self.bank), Wanted.of(sets, [nouns for nouns, _ in self.named]))
        }
        wanted = Wanted.of(sets, vocabulary.named)
        ways |= {name: (near, wanted) for name, near in vocabulary.nearness.items()}
        for layer in evenly(self.percepts.layers, NUM_COMPARED_LAYERS):
            tokens = self.percepts.at(layer, shown.ids)
            middle = centred(self.percepts.at(layer, self.shown.ids))
            place = {name: index for index, name in enumerate(self.shown.ids)}
            sides = {"centred": [middle[place[name]] for name in shown.ids]}
            for name, (near, looked_for) in ways.items():
                (shares,) = shares_of(sides.get(name, tokens), near, [Ask(looked_for)], shown)
                at = fields | {"layer_a": layer, "variant": name, "layer_b": layer}
                at |= {"layer_b": self.bank.middle} if name == "centred" else {}
                yield from self._three(shares, ("lens_one_token", "lens_one_token_chance", None), at)
