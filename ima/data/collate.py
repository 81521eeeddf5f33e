"""Samples to batches: token ids with their roles and labels, and the media as features, pixels, noise or nothing.

Text is laid out [BOS] prompt answer EOS, padded on the right; perceptual tokens are put in front of it later, when
the adapter has made them. Pieces are tokenised one by one, so that a role never shares a token with another and the
prompt has the same ids in training and in generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ima.data.features import FeatureStore
from ima.data.source import Source
from ima.encoders.base import Encoder
from ima.encoders.controls import NoiseEncoder
from ima.errors import UserError
from ima.llm.frozen import FrozenLLM
from ima.tasks.base import Task
from ima.types import Batch, Role, Sample

LossOn = Literal["answer", "text"]


class Percepts(Protocol):
    """Where a batch's perceptual input comes from. `epoch` is None in evaluation."""

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]: ...


class CachedPercepts:
    """Features from a store."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {"features_BNE": self.store.read(samples)}


class LivePercepts:
    """Preprocessed media; the encoder runs in the step. The slow twin of the cache."""

    def __init__(self, source: Source, encoder: Encoder) -> None:
        self.source, self.preprocess = source, encoder.preprocess

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {"media": torch.stack([self.preprocess(self.source.medium(sample)) for sample in samples])}


class NoisePercepts:
    """The noise control: fresh for every medium and epoch in training, fixed by the medium in evaluation."""

    def __init__(self, encoder: NoiseEncoder) -> None:
        self.encoder = encoder

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {"features_BNE": self.encoder.features([sample.medium_key for sample in samples], epoch)}


class NoPercepts:
    """The blind control: text only."""

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {}


class Collate:
    """Callable for a DataLoader. `answers`: with the target (teacher-forced) or the prompt alone (generation)."""

    def __init__(
        self,
        task: Task,
        llm: FrozenLLM,
        percepts: Percepts,
        answers: bool = True,
        training: bool = False,
        loss_on: LossOn = "answer",
    ) -> None:
        self.task, self.percepts = task, percepts
        self.answers, self.training, self.loss_on = answers, training, loss_on
        self.tokenizer, self.bos_id, self.eos_id, self.pad_id = llm.tokenizer, llm.bos_id, llm.eos_id, llm.pad_id

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def text(self, sample: Sample, draw: int) -> tuple[list[int], list[int], list[int]]:
        """ids, roles and labels of one sample. Raises UserError naming a sample without anything to learn."""
        pieces: list[tuple[list[int], Role, bool]] = []
        if self.bos_id is not None:
            pieces.append(([self.bos_id], Role.SPECIAL, False))
        pieces.append((self.encode(self.task.prompt_for(sample)), Role.PROMPT, self.loss_on == "text"))
        if self.answers:
            answer = self.encode(self.task.target_for(sample, draw))
            if not answer:
                raise UserError(
                    f"sample {sample.id}: its target text is empty, nothing to learn from; fix or remove it"
                )
            pieces.append((answer, Role.ANSWER, True))
            pieces.append(([self.eos_id], Role.SPECIAL, True))
        ids, roles, labels = [], [], []
        for piece, role, supervised in pieces:
            ids += piece
            roles += [int(role)] * len(piece)
            labels += piece if supervised else [-100] * len(piece)
        return ids, roles, labels

    def __call__(self, items: Sequence[tuple[Sample, int]]) -> Batch:
        """items: samples and their draw (the epoch in training, 0 in evaluation)."""
        texts = [self.text(sample, draw) for sample, draw in items]
        length = max(len(ids) for ids, _, _ in texts)
        fills = (self.pad_id, int(Role.PAD), -100)
        padded = [
            torch.tensor([text[part] + [fill] * (length - len(text[part])) for text in texts])
            for part, fill in enumerate(fills)
        ]
        samples = [sample for sample, _ in items]
        percepts = self.percepts(samples, items[0][1] if self.training else None)
        return Batch(samples, *padded, **percepts)
