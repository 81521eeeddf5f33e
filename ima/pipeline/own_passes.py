"""Passes that groups of alignment have of their own, beside the pass that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from ima.alignment.attention_mass import AttentionMass, content_words, first_content
from ima.alignment.groups import Groups
from ima.alignment.kept_means import KeptMeans
from ima.alignment.pairing import TextKey
from ima.alignment.patch_maps import PatchMaps, Words
from ima.alignment.tap import Tap
from ima.alignment.text_twin import with_texts
from ima.alignment.word_bank import half
from ima.core.progress import progress
from ima.core.types import Batch, Role, Sample
from ima.models.llm.attention_weights import can_watch, watching
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pieces import Before

Batches = Callable[[Sequence[Sample]], Iterable[Batch]]


def own_passes(
    groups: Groups, module: Any, by_id: Mapping[str, Sample], batches: Batches, text: Callable[[Sample], TextKey]
) -> None:
    """batches: this rank's share of samples, with their answers; text: ids and roles of a sample's text alone."""
    if groups.attended:
        chosen = [by_id[name] for name in groups.attended]
        nouns = {sample.id: first_content(module.llm, *text(sample)) for sample in chosen}
        groups.attention = attention_pass(module, batches(chosen), nouns)
    if groups.drawn:
        laid = {name: text(by_id[name]) for name in groups.drawn}
        groups.patches = patches_pass(module.llm, laid)
    if groups.twin is not None:
        twin_pass(module, batches([by_id[name] for name in groups.bank.pairing.ids]), groups.twin)


@torch.no_grad()
def attention_pass(module: Any, batches: Iterable[Batch], nouns: Mapping[str, Sequence[int]]) -> AttentionMass | None:
    """What attention gives to what, of the examples of `nouns`; None where an intervention has its own."""
    llm = module.llm
    if not can_watch(llm):
        return None
    mass = AttentionMass(nouns, llm.num_blocks)
    with watching(llm, mass.see), progress(len(nouns), "measure attention", "sample") as advance:
        for batch in batches:
            x_BSD, roles_BS, _ = module.splice(batch)
            ids = [sample.id for sample in batch.samples]
            mass.begin(roles_BS, ids)
            llm(x_BSD, roles_BS, ids)
            mass.end()
            advance(len(ids))
    return mass


@torch.no_grad()
def twin_pass(module: Any, batches: Iterable[Batch], kept: KeptMeans) -> None:
    """Percepts are the embeddings of each sample's first reference."""
    llm = module.llm
    with Tap(llm, [kept], layers=kept.layers) as tap, progress(len(kept.wanted), "measure texts as media") as advance:
        for batch in batches:
            x_BSD, roles_BS, _ = module.splice(batch)
            said = [sample.references[0] if sample.references else "" for sample in batch.samples]
            x_BSD = with_texts(llm, x_BSD, roles_BS, [llm.encode(text, Before.TEXT) for text in said])
            ids = [sample.id for sample in batch.samples]
            with tap.batch(roles_BS, ids):
                llm(x_BSD, roles_BS, ids)
            advance(len(ids))


@torch.no_grad()
def patches_pass(llm: FrozenLLM, laid: Mapping[str, TextKey]) -> PatchMaps:
    """The states of the content words of these texts, each read alone."""
    words: dict[str, Words] = {}
    for name, (ids, roles) in laid.items():
        places = [place for place, role in enumerate(roles) if role == Role.ANSWER]
        words[name] = [(word, places[mine[-1]]) for word, mine in content_words(llm, ids, roles)]
    maps = PatchMaps(list(laid), words, half(llm.num_blocks), llm.stream_width)
    with Tap(llm, [maps.kept], layers=[maps.layer]) as tap:
        for name, (ids, roles) in laid.items():
            if words[name]:
                roles_1S = torch.tensor([roles], device=llm.device)
                with tap.batch(roles_1S, [name]):
                    llm(llm.embed(torch.tensor([ids], device=llm.device)), roles_1S, [name])
    return maps
