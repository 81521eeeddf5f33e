"""What is known of samples beside their states: clusters, nouns, categories, the encoder's mean tokens, words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ima.alignment.groups import Beside
from ima.alignment.naming import Namer
from ima.alignment.word_bank import WordBank, bank_layers, contexts_of, texts_of, word_bank
from ima.core.errors import UserError
from ima.core.progress import progress
from ima.core.types import Sample
from ima.data.collate import MediaInputs
from ima.data.source import Source
from ima.models.llm.frozen import FrozenLLM

LABELS = ("noun", "category")


def cluster_of(sample: Sample) -> str:
    """What errors are grouped by: samples of one cluster are not independent."""
    return sample.cluster or sample.id


def shown_by(samples: Sequence[Sample]) -> tuple[list[frozenset[str]], Namer | None]:
    """The nouns that each medium shows, and who reads their vocabulary; None where that is not known."""
    nouns = [frozenset(sample.facts.get("nouns") or filter(None, [sample.facts.get("noun")])) for sample in samples]
    vocabularies = {
        str(sample.facts.get("vocabulary", "stamps")) for sample, mine in zip(samples, nouns, strict=True) if mine
    }
    vocabulary = vocabularies.pop() if len(vocabularies) == 1 else ""
    return nouns, Namer(vocabulary) if Namer.known(vocabulary) else None


class WordBanks:
    """The bank of words that an LLM reads alone; of a frozen one it is made once."""

    def __init__(self) -> None:
        self._made: tuple[object, WordBank] | None = None

    def of(self, llm: FrozenLLM, source: Source, namer: Namer | None, path: str | None) -> WordBank:
        key = id(llm), source.name, path, namer.vocabulary if namer else None
        if self._made is None or self._made[0] != key or llm.trains != "none":
            self._made = key, self._read(llm, source, namer, path)
        return self._made[1]

    @staticmethod
    def _read(llm: FrozenLLM, source: Source, namer: Namer | None, path: str | None) -> WordBank:
        if path is not None:
            texts = lines_of(path)
        else:
            samples = source.samples("train") if "train" in source.splits else []
            references = (text for sample in samples for text in sample.references)
            texts = texts_of(references, namer.forms if namer is not None else ())
        contexts = contexts_of(texts, llm.encode, llm.bos_id, namer)
        num, megabytes = len(bank_layers(llm.num_blocks)), len(contexts) * llm.stream_width * 2 / 1e6
        print(
            f"alignment bank of words: {len(contexts)} beginnings of {len(texts)} texts are read once and kept,"
            f" {num} x {megabytes:.1f} MB",
            flush=True,
        )
        if not contexts:
            raise UserError(f"alignment.words: {path or source.name} has no text with a word behind its first token")
        with progress(len(texts), "measure words in texts", "text") as advance:
            return word_bank(llm, contexts, advance)


def lines_of(path: str) -> list[str]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"alignment.words: {path} cannot be read as text: {error}; give a text file") from None
    return [line.strip() for line in lines if line.strip()]


@torch.no_grad()
def beside_of(samples: Sequence[Sample], percepts: MediaInputs, module: Any, channel: str, batch_size: int) -> Beside:
    """module: of which a live encoder is taken. No features where a sample shows several media or none."""
    labels = {name: [str(sample.facts.get(name) or "") for sample in samples] for name in LABELS}
    shown = shown_by(samples)
    encoder, parts, num_features = getattr(module, "encoder", None), [], 0
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        if any(len(sample.media_samples) != 1 for sample in part):
            return Beside(None, labels, *shown)
        found = percepts([sample.media_samples[0] for sample in part], None)
        features = found.get("features_BNE")
        if features is None and "media" in found and encoder is not None:
            features = (encoder[channel] if channel else encoder)(found["media"].to(module.device))
        if features is None:
            return Beside(None, labels, *shown)
        num_features = features.shape[1]
        parts.append(features.float().mean(1).cpu())
    return Beside(torch.cat(parts) if parts else None, labels, *shown, num_features=num_features)
