"""The groups of measures that a config adds (`alignment=[maps,null,sinks]`): what they stream, and their rows.

maps       which layer of P fits which layer of T       null        pairing scores against permuted units
sinks      massive activations, and IMA without them     connector   what the adapter keeps of its encoder
probes     what a linear map reads off the states        lens        which words in real text tokens are near to
attention  which tokens give their attention to which   twin        the headline where the percepts are the text
patches    what the tokens of a few media are near to, drawn on them
The first five are made of the mean tokens that the headline keeps, so they cost little more than their arithmetic; the
lens keeps single tokens of some media and needs the bank of words; attention and the twin have passes of their own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ima.alignment.attention_mass import NUM_EXAMPLES, AttentionMass, attention_rows
from ima.alignment.calibration import NUM_PROCRUSTES_LAYERS, null_rows
from ima.alignment.connector import connector_rows
from ima.alignment.contextual_lens import ContextualLens, LensSamples
from ima.alignment.kept_means import KeptMeans, Means, TextBank
from ima.alignment.kept_percepts import KeptPercepts
from ima.alignment.layer_maps import map_rows
from ima.alignment.lens_shares import Nouns
from ima.alignment.naming import Namer
from ima.alignment.patch_maps import PatchMaps, shown_of
from ima.alignment.probes import probe_rows
from ima.alignment.rows import Base
from ima.alignment.scores import norm_quantiles
from ima.alignment.sink_shares import SinkShares
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.tap import Sink
from ima.alignment.text_twin import twin_rows
from ima.alignment.views import evenly, lowest
from ima.alignment.word_bank import WordBank, half
from ima.core.progress import progress
from ima.core.types import Row, Site
from ima.models.llm.frozen import FrozenLLM

NEED_WORDS = {"lens", "patches"}
# What a group costs, said before it starts.
COSTS = {
    "maps": "one small product for each pair of layers",
    "null": "200 permutations of each score and layer; Procrustes a decomposition each, so at nine layers",
    "sinks": "one more reading of each state in the pass",
    "connector": "a few decompositions of examples x examples",
    "probes": "ridge regressions at every layer, out of fold",
    "lens": "the nearest of some thousand words of each token at nine layers; of the whole vocabulary at five",
    "attention": f"a pass over {NUM_EXAMPLES} examples that also computes attention weights, before the measurement",
    "patches": "the nearest words of the tokens of a few media, and their pictures",
    "twin": "a pass over the paired examples with the embeddings of their texts as percepts, before the measurement",
}
NUM_LENS_MEDIA, NUM_LENS_LAYERS = 256, 9


@dataclasses.dataclass(frozen=True)
class Beside:
    """What is known of the examples of a pairing beside their states. features_EN: mean tokens of the encoder; None
    where there are none. labels: noun, category -> of each example, "" for none. nouns: all that each shows; namer: of
    their vocabulary; words: the bank of the lens, where it was asked for; num_features: encoder tokens of a medium."""

    features_EN: Tensor | None
    labels: dict[str, list[str]]
    nouns: list[Nouns] = dataclasses.field(default_factory=list)
    namer: Namer | None = None
    words: WordBank | None = None
    num_features: int = 0


class Groups:
    """The chosen groups of one measurement."""

    def __init__(
        self,
        names: Sequence[str],
        llm: FrozenLLM,
        bank: TextBank,
        clusters: Mapping[str, str],
        beside: Beside,
    ) -> None:
        self.names, self.llm, self.bank, self.beside = list(names), llm, bank, beside
        self.clusters = clusters
        self.shares = (
            SinkShares(bank.dims, llm.num_blocks + 1, llm.stream_width, clusters) if "sinks" in names else None
        )
        self.prompts: KeptMeans | None = None
        if "probes" in names:
            self.prompts = KeptMeans(bank.pairing.ids, bank.layers, bank.dims, "prompt")
        self.attention: AttentionMass | None = None  # of a pass of its own, over `attended`
        self.twin: KeptMeans | None = None  # likewise
        if "twin" in names:
            self.twin = KeptMeans(bank.pairing.ids, bank.layers, bank.dims)
        self.percepts: KeptPercepts | None = None
        self.patches: PatchMaps | None = None  # made with its texts' words, before the measurement
        self.mapped: list[dict[str, Any]] = []
        if NEED_WORDS & set(names):
            layers = {*(evenly(bank.layers, NUM_LENS_LAYERS) if "lens" in names else ()), *self._map_layers()}
            self.percepts = KeptPercepts(bank.pairing.ids[:NUM_LENS_MEDIA], sorted(layers))

    @property
    def attended(self) -> list[str]:
        """The examples whose attention is looked at."""
        return lowest(self.bank.pairing.ids, NUM_EXAMPLES, 0, "attention") if "attention" in self.names else []

    @property
    def kept(self) -> list[SinkShares | KeptMeans | KeptPercepts]:
        return [sink for sink in (self.shares, self.prompts, self.percepts) if sink is not None]

    @property
    def sinks(self) -> list[Sink]:
        return [*self.kept]

    def reduce(self) -> None:
        for sink in (*self.kept, self.attention, self.twin):
            if sink is not None:
                sink.reduce()

    def rows(self, stats: AlignmentStats, media: Means, base: Base, seconds: dict[str, float]) -> list[Row]:
        """Each group's rows; its time is added to `seconds`."""
        makers: dict[str, Callable[[], Iterator[Row]]] = {
            "maps": lambda: map_rows(self.bank, media, stats.sites[Site.RESID_POST], base),
            "null": lambda: null_rows(self.bank, media, base, self._some_layers(), self.beside.features_EN),
            "sinks": lambda: self.shares.rows(base) if self.shares is not None else iter(()),
            "connector": lambda: self._connector(stats, media, base),
            "probes": lambda: self._probes(media, base),
            "lens": lambda: self._lens(base),
            "patches": self._patches,
            "twin": lambda: self._twin(base),
            "attention": lambda: attention_rows(self.attention, self.clusters, base),
        }
        out: list[Row] = []
        with progress(len(self.names), "groups", "group") as advance:
            for name in self.names:
                print(f"alignment group {name}: {COSTS[name]}", flush=True)
                start = time.perf_counter()
                out += makers[name]()
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
                advance(1)
        return out

    def _some_layers(self) -> Sequence[int]:
        return evenly(self.bank.layers, NUM_PROCRUSTES_LAYERS)

    def _lens(self, base: Base) -> Iterator[Row]:
        pairing, beside, words = self.bank.pairing, self.beside, self.beside.words
        assert self.percepts is not None and words is not None, "the lens was asked for"
        shown = LensSamples(pairing.ids, pairing.clusters, beside.nouns, beside.namer)
        shown = shown.only([index < NUM_LENS_MEDIA for index in range(len(pairing.ids))])
        return ContextualLens(words, self.percepts, shown, self.llm).rows(base)

    def _map_layers(self) -> list[int]:
        middle = half(self.llm.num_blocks)
        return [middle] if "patches" in self.names and middle in self.bank.layers else []

    @property
    def drawn(self) -> list[str]:
        """The examples that patch maps are drawn of."""
        return shown_of(self.bank.pairing) if self._map_layers() else []

    def _patches(self) -> Iterator[Row]:
        """No rows: what is drawn stands in `mapped`."""
        if self.patches is not None and self.percepts is not None and self.beside.words is not None:
            everyone = self.bank.pairing.ids[:NUM_LENS_MEDIA]
            self.mapped = self.patches.made(self.percepts, everyone, self.beside.words)
        return iter(())

    def _twin(self, base: Base) -> Iterator[Row]:
        assert self.twin is not None, "the twin was asked for"
        return twin_rows(self.bank, self.twin.means(self.bank.pairing.ids), base)

    def _connector(self, stats: AlignmentStats, media: Means, base: Base) -> Iterator[Row]:
        if 0 not in self.bank.layers:
            return iter(())
        norm = float(norm_quantiles(stats.sites[Site.RESID_POST], "P")[1][0])
        first = media.all_ELD[:, self.bank.layers.index(0)]
        norms = norm, self.llm.embedding_norm
        return connector_rows(first, self.beside.features_EN, self.bank.pairing.clusters, norms, base)

    def _probes(self, media: Means, base: Base) -> Iterator[Row]:
        prompts = self.prompts.means(self.bank.pairing.ids) if self.prompts is not None else None
        return probe_rows(self.bank, self.beside.labels, media, prompts, self.beside.features_EN, base)
