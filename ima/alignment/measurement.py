"""From the config group `alignment` to what a pass streams, and from that to all rows.

A `Measurement` holds the tap's sinks and their layers, and the reference pass if a variant needs one.
`Measurement.rows` turns the results into rows. Scores that cannot be computed from running sums are computed there,
after the pass, from a fixed, seeded subset of examples, the reservoir.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.alignment.cone_file import write_sums
from ima.alignment.groups import Beside, Groups
from ima.alignment.headline import headline_rows
from ima.alignment.kept_means import KeptMeans, TextBank
from ima.alignment.logit_lens import Lens, look, translation, translation_rows, vocabulary_rows
from ima.alignment.reference_pass import Scales
from ima.alignment.reservoir import Reservoir, Tokens
from ima.alignment.reservoir_rows import reservoir_rows
from ima.alignment.rows import Base, alignment_rows, example_lines
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.tap import Sink, Tap
from ima.alignment.tsne import tsne_rows
from ima.alignment.views import Plan, evenly, lowest
from ima.config.settings import Alignment
from ima.core.errors import UserError
from ima.core.files import write_atomic
from ima.core.progress import progress
from ima.core.types import Row, Site
from ima.models.llm.frozen import FrozenLLM

NUM_RESERVOIR_LAYERS = 9
MIN_CLUSTERS = 20


class Measurement:
    """bank: of the texts alone, where media are paired with texts that have not read them; clusters: of each sample.

    Raises UserError for a reservoir at layers or sites that are not looked at."""

    def __init__(
        self,
        alignment: Alignment,
        llm: FrozenLLM,
        sample_ids: Sequence[str],
        clusters: Mapping[str, str] | None = None,
        bank: TextBank | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.alignment, self.llm, self.bank = alignment, llm, bank
        self.clusters = clusters or {}
        self.num_clusters = len({self.clusters.get(name, name) for name in sample_ids})
        self.paired: KeptMeans | None = None
        if bank is not None:
            self.paired = KeptMeans(bank.pairing.ids, bank.layers, bank.dims)
        self.groups: Groups | None = None
        if bank is not None and beside is not None and alignment.groups:
            self.groups = Groups(alignment.groups, llm, bank, self.clusters, beside)
        self.plan = Plan(tuple(alignment.variants))
        self.sites = tuple(Site(site) for site in alignment.sites)
        num_layers = llm.num_blocks + 1
        self.scales: Scales | None = None
        if self.plan.needs_scales:
            self.scales = Scales(lowest(sample_ids, alignment.num_scale_samples, alignment.seed, "scales"))
        self.stats = AlignmentStats(
            num_layers, alignment.consecutive, self.plan, self.scales, alignment.examples, self.clusters
        )
        self.reservoir: Reservoir | None = None
        if alignment.num_reservoir:
            self.reservoir = Reservoir(alignment.num_reservoir, self._reservoir_layers(num_layers), alignment.seed)

    def _reservoir_layers(self, num_layers: int) -> tuple[int, ...]:
        seen = sorted(set(range(num_layers) if self.alignment.layers is None else self.alignment.layers))
        if Site.RESID_POST not in self.sites:
            raise UserError("alignment.num_reservoir: the reservoir is of resid_post; add that to alignment.sites")
        if self.alignment.reservoir_layers is None:
            return evenly(seen, NUM_RESERVOIR_LAYERS)
        for layer in self.alignment.reservoir_layers:
            if layer not in seen:
                raise UserError(f"alignment.reservoir_layers: {layer} is not looked at; choose among {seen}")
        return self.alignment.reservoir_layers

    def tap(self) -> Tap:
        sinks: list[Sink] = [self.stats]
        if self.reservoir is not None:
            sinks.append(self.reservoir)
        if self.paired is not None:
            sinks.append(self.paired)
        sinks += self.groups.sinks if self.groups is not None else []
        return Tap(self.llm, sinks, self.sites, self.alignment.layers)

    def first_tap(self) -> Tap | None:
        """Of the earlier pass over the samples `scales.sample_ids`."""
        return Tap(self.llm, [self.scales], self.sites, self.alignment.layers) if self.scales else None

    def reduce(self) -> None:
        """The statistics of all ranks, on every rank."""
        self.stats.reduce()
        if self.reservoir is not None:
            self.reservoir.reduce()
        if self.paired is not None:
            self.paired.reduce()
        if self.groups is not None:
            self.groups.reduce()

    def rows(self, base: Base, seconds: dict[str, float]) -> tuple[list[Row], Lens | None]:
        """Everything, and what the lens showed; the time each part took is added to `seconds`."""
        rows, lens = self._rows(base, seconds)
        return [self._with_error(row) for row in rows], lens

    def _with_error(self, row: Row) -> Row:
        """Errors are by cluster; of fewer than 20 they mean nothing."""
        few = self.num_clusters < MIN_CLUSTERS and row.se is not None
        return dataclasses.replace(row, se=math.nan) if few else row

    def _rows(self, base: Base, seconds: dict[str, float]) -> tuple[list[Row], Lens | None]:
        rows = list(alignment_rows(self.stats, base))
        if self.bank is not None and self.paired is not None:
            start = time.perf_counter()
            media = self.paired.means(self.bank.pairing.ids)
            rows += headline_rows(self.bank, media, base)
            spent(seconds, "pairs", start)
            if self.groups is not None:
                rows += self.groups.rows(self.stats, media, base, seconds)
        if self.reservoir is None:
            return rows, None
        tokens, lens = Tokens(self.reservoir, self.scales, self.clusters), None
        alignment = self.alignment
        with progress(3, "reservoir", "part") as advance:
            start = time.perf_counter()
            rows += reservoir_rows(tokens, base)
            advance(1)
            start = spent(seconds, "reservoir", start)
            if alignment.num_vocabulary_layers and tokens.kept:
                lens = look(tokens, self.llm, evenly(tokens.layers, alignment.num_vocabulary_layers))
                rows += vocabulary_rows(lens, base)
                if 0 in tokens.layers:
                    rows += translation_rows(translation(tokens, self.llm), tokens.clusters_of(tokens.ids), base)
            advance(1)
            start = spent(seconds, "vocabulary", start)
            if alignment.num_tsne_layers and tokens.kept:
                inner = [layer for layer in tokens.layers if layer > 0]
                rows += tsne_rows(tokens, evenly(inner, alignment.num_tsne_layers), alignment.seed, base)
            advance(1)
            spent(seconds, "tsne", start)
        return rows, lens


def spent(seconds: dict[str, float], what: str, start: float) -> float:
    now = time.perf_counter()
    seconds[what] = seconds.get(what, 0.0) + now - start
    return now


def write_measurement(folder: Path, measurement: Measurement, lens: Lens | None, facts: dict[str, Any]) -> None:
    """`alignment.safetensors` for the cones, `alignment.json` with the words that perceptual tokens decode to,
    `examples.jsonl` with each example's own alignment, `words.safetensors` with the bank of the contextual lens."""
    write_sums(folder, measurement.stats, facts)
    if measurement.stats.examples is not None:
        lines = "".join(json.dumps(line) + "\n" for line in example_lines(measurement.stats))
        write_atomic(folder / "examples.jsonl", lines)
    if measurement.groups is not None and measurement.groups.beside.words is not None:
        measurement.groups.beside.words.write(folder / "words.safetensors", facts)
    if lens is not None:
        write_atomic(folder / "alignment.json", json.dumps(facts | {"top_tokens": lens.shown}) + "\n")
