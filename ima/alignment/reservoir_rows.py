"""Scores of the reservoir as rows: those that cannot be computed from running sums.

medsim, maxsim, minsim, meansim, maxmeansim   of token pairs: `_matched` within one example, `_across` of two
cka_read, cka_debiased_read, mutual_knn_read, procrustes_read: of the mean tokens of P and T, example by example
retrieval_read                                does P's mean find its own text among all; by chance it is 1 / n
mir_fid, mir                                  Modality Integration Rate: a layer's part, and log10 of the sum
`_read`: T of the same pass has read P through attention, so these are above chance for an untrained adapter too; what
pairs media with text that has not read them is in `headline`. Each per layer of the reservoir; `<score>_mean` is the
mean over its layers from 1 on, which the note lists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from ima.alignment import geometry
from ima.alignment.reservoir import Tokens
from ima.alignment.rows import NOTHING, Base
from ima.alignment.scores import mean_with_error
from ima.alignment.streaming.work_queue import WorkQueue
from ima.alignment.token_pairs import SCORES, pair_scores, within_and_across
from ima.core.types import Row, Site

Value = tuple[float, float, int]
GEOMETRY = {
    "cka_read": geometry.cka,
    "cka_debiased_read": geometry.cka_debiased,
    "mutual_knn_read": geometry.mutual_neighbours,
}
PAIR_VARIANTS = ("raw", "nosink", "nomassive", "scaled")
RETRIEVAL_VARIANTS = (*PAIR_VARIANTS, "centred")
WITHOUT_SCALES = ("raw", "nosink")


def reservoir_rows(tokens: Tokens, base: Base) -> Iterator[Row]:
    """Variants that need scales are left out where there are none."""
    known = tokens.scales is not None
    fields = base | {"site": Site.RESID_POST.value, "role_a": "P", "role_b": "T"}
    pair_variants = PAIR_VARIANTS if known else WITHOUT_SCALES
    retrieval_variants = RETRIEVAL_VARIANTS if known else WITHOUT_SCALES
    layers: dict[int, Layer] = {}

    def add(layer: int) -> None:
        layers[layer] = Layer.of(tokens.alone(), layer, pair_variants, retrieval_variants)

    queue = WorkQueue()
    for key, layer in enumerate(tokens.layers):
        if known:
            tokens.scale(layer)  # computed once, before the threads ask for it
        queue.run(key, torch.device("cpu"), add, layer)
    queue.wait()
    pairs = {variant: {layer: layers[layer].pairs[variant] for layer in tokens.layers} for variant in pair_variants}
    retrieved = {
        variant: {layer: {"retrieval_read": layers[layer].retrieved[variant]} for layer in tokens.layers}
        for variant in retrieval_variants
    }
    means = {layer: layers[layer].means for layer in tokens.layers}
    parts = {layer: layers[layer].mir for layer in tokens.layers}
    for variant, found in pairs.items():
        yield from rows_of(found, fields | {"variant": variant}, tokens)
    yield from rows_of(means, fields | {"variant": "raw"}, tokens)
    for variant, found in retrieved.items():
        yield from rows_of(found, fields | {"variant": variant}, tokens)
    yield from rows_of({layer: {"mir_fid": part} for layer, part in parts.items()}, fields | {"variant": "raw"}, tokens)
    total = sum(part[0] for layer, part in parts.items() if layer > 0)
    value = math.log10(total) if total > 0 else math.nan
    yield row("mir", value, None, len(tokens.kept), fields | {"variant": "raw"}, over(tokens))


@dataclasses.dataclass(frozen=True)
class Layer:
    """All scores of one layer: of token pairs and of retrieval by variant, of mean tokens, its part of MIR."""

    pairs: dict[str, dict[str, Value]]
    retrieved: dict[str, Value]
    means: dict[str, Value]
    mir: Value

    @classmethod
    def of(cls, tokens: Tokens, layer: int, pair_variants: Sequence[str], retrieval_variants: Sequence[str]) -> Layer:
        done: dict[tuple[int, int], dict[str, Value]] = {}
        pairs = {}
        for variant in pair_variants:
            same = id(tokens.of(layer, "P", variant)), id(tokens.of(layer, "T", variant))
            if same not in done:
                done[same] = pairs_at(tokens, layer, variant)
            pairs[variant] = done[same]
        retrieved = {variant: retrieval_at(tokens, layer, variant) for variant in retrieval_variants}
        return cls(pairs, retrieved, geometry_at(tokens, layer), mir_at(tokens, layer))


def pairs_at(tokens: Tokens, layer: int, variant: str) -> dict[str, Value]:
    scores = pair_scores(tokens.of(layer, "P", variant), tokens.of(layer, "T", variant))
    named = (
        (SCORES[name], within_and_across(value_EE, tokens.clusters_of(tokens.ids))) for name, value_EE in scores.items()
    )
    return {f"{score}_{kind}": value for score, found in named for kind, value in found.items()}


def geometry_at(tokens: Tokens, layer: int) -> dict[str, Value]:
    p_ED, t_ED, ids = tokens.means(layer)
    if not ids:
        return {score: (math.nan, math.nan, 0) for score in (*GEOMETRY, "procrustes_read")}
    clusters = tokens.clusters_of(ids)
    found = {score: (*of.with_error(p_ED, t_ED, clusters), len(ids)) for score, of in GEOMETRY.items()}
    # A singular value decomposition for each group left out would cost more than all the rest.
    return found | {"procrustes_read": (geometry.procrustes(p_ED, t_ED), math.nan, len(ids))}


def retrieval_at(tokens: Tokens, layer: int, variant: str) -> Value:
    p_ED, t_ED, ids = tokens.means(layer, variant)
    if len(ids) < 2:
        return math.nan, math.nan, len(ids)
    raw_ED = t_ED
    if variant == "centred":  # rounding is relative to the means before the centre was subtracted
        _, every_ED, every = tokens.means(layer)
        raw_ED = every_ED[[every.index(name) for name in ids]]
    hit_E = geometry.retrieval(p_ED, t_ED, geometry.same_texts(raw_ED, tokens.dtype))
    return mean_with_error(hit_E, tokens.clusters_of(ids))


def mir_at(tokens: Tokens, layer: int) -> Value:
    p_ND, t_MD = (torch.cat(tokens.of(layer, role)) if tokens.kept else torch.zeros(0, 1) for role in ("P", "T"))
    return geometry.mir_layer(p_ND, t_MD), math.nan, len(tokens.kept)


def over(tokens: Tokens) -> str:
    layers = ", ".join(str(layer) for layer in tokens.layers if layer > 0)
    return f"reservoir of {len(tokens.kept)}, layers {layers}"


def rows_of(found: dict[int, dict[str, Value]], fields: Base, tokens: Tokens) -> Iterator[Row]:
    for score in next(iter(found.values()), {}):
        for layer, values in found.items():
            value, se, n = values[score]
            note = f"reservoir of {len(tokens.kept)}"
            yield row(score, value, se, n, fields | {"layer_a": layer, "layer_b": layer}, note)
        inner = [values[score][0] for layer, values in found.items() if layer > 0]
        if inner:
            n = max(values[score][2] for values in found.values())
            yield row(f"{score}_mean", sum(inner) / len(inner), None, n, fields, over(tokens))


def row(score: str, value: float, se: float | None, n: int, fields: Base, note: str) -> Row:
    return Row(score=score, value=value, se=se, n=n, note=note if value == value else NOTHING, **fields)
