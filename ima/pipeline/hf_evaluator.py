"""Measuring a whole model that was trained elsewhere: its own processor lays out media and text.

Hidden here: how an answer follows a prompt that a processor made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ima.alignment.pairing import TextKey
from ima.core.errors import UserError
from ima.core.types import Role, Sample
from ima.data.collate import MediaInputs, NoMediaInputs
from ima.data.source import Source
from ima.interventions.prune.calibration import Inputs
from ima.models.hf_multimodal import Lmm, LmmBatch, TokenizedSample, batch_of
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pieces import Before
from ima.pipeline.evaluator import Evaluator
from ima.tasks.base import Task

CALIBRATION_BATCH = 8


class LmmCollate:
    """Callable for a DataLoader. `answers`: with the target, padded on the right (teacher-forced), or the prompt alone,
    padded on the left (generation). `blind`: without media."""

    def __init__(self, task: Task, source: Source, lmm: Lmm, answers: bool = True, blind: bool = False) -> None:
        self.task, self.source, self.answers, self.blind = task, source, answers, blind
        self.layout, self.kind, self.pieces = lmm.layout, lmm.kind, lmm.llm.pieces
        self.eos_id, self.pad_id = lmm.llm.eos_id, lmm.llm.pad_id

    def __call__(self, items: Sequence[tuple[Sample, int]]) -> LmmBatch:
        rows = [self.row(sample, draw) for sample, draw in items]
        laid, labels = [row for row, _ in rows], [each for _, each in rows]
        return batch_of([sample for sample, _ in items], laid, labels, self.kind, self.pad_id, left=not self.answers)

    def row(self, sample: Sample, draw: int) -> tuple[TokenizedSample, list[int]]:
        """Of one sample: what enters the model, and labels."""
        prompt, shown = self.task.prompt_for(sample), () if self.blind else sample.media_samples
        laid = self.layout.lay(prompt, [self.source.medium(medium) for medium in shown], self.source.modality)
        labels = [-100] * len(laid.roles)
        if self.answers:
            said = self.task.target_for(sample, draw).strip()
            behind = self.layout.around(prompt.strip(), self.source.modality, len(shown))[1] + self.kind.appended
            answer = self.pieces.encode(said if behind[-1:].isspace() else f" {said}", Before.TEXT)
            if not said or not answer:
                raise UserError(f"sample {sample.id}: its target text is empty; fix or remove it")
            laid.roles += [int(Role.ANSWER)] * len(answer) + [int(Role.SPECIAL)]
            labels += [*answer, self.eos_id]
            for name, values in laid.tokens.items():
                of_answer = self.kind.answer_type if name == "token_type_ids" else 0
                values += [*answer, self.eos_id] if name == "input_ids" else [of_answer] * (len(answer) + 1)
        return laid, labels


class OwnPercepts:
    """What the whole model makes of media itself: nothing is handed to it."""

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {}


class LmmEvaluator(Evaluator):
    """An `Evaluator` of a whole model."""

    def __init__(self, lmm: Lmm, task: Task, source: Source, batch_size: int, num_workers: int = 0) -> None:
        super().__init__(lmm, task, source, OwnPercepts(), batch_size, num_workers)
        self.lmm = lmm

    def typical_tokens(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Tokens of each role in a typical prompt."""
        rows = [self._collate(self.percepts, answers=False).row(sample, 0)[0].roles for sample in samples]
        roles = sorted({role for row in rows for role in row})
        return {Role(role).name.lower(): round(sum(row.count(role) for row in rows) / len(rows)) for role in roles}

    def _asked_blind(self, sample: Sample) -> tuple[int, ...]:
        laid, _ = self._collate(NoMediaInputs(), answers=False).row(sample, 0)
        return tuple(laid.tokens["input_ids"])

    def _shown_text(self, sample: Sample) -> TextKey:
        laid, _ = self._collate(NoMediaInputs()).row(sample, 0)
        return tuple(laid.tokens["input_ids"]), tuple(laid.roles)

    def _collate(self, percepts: MediaInputs, answers: bool = True, task: Task | None = None) -> Any:
        return LmmCollate(task or self.task, self.source, self.lmm, answers, isinstance(percepts, NoMediaInputs))


class LmmCalibration:
    """Examples of a source that statistics of a whole model's language model are gathered on: a seeded draw from its
    training split, or where it has none from `val`."""

    def __init__(self, lmm: Lmm, task: Task, source: Source, num_examples: int, seed: int) -> None:
        self.evaluator = LmmEvaluator(lmm, task, source, CALIBRATION_BATCH)
        self.num_examples, self.seed = num_examples, seed
        split = next((each for each in ("train", "val") if each in source.splits), None)
        if split is None:
            raise UserError(f"data: {source.name} has no training or val split to calibrate on")
        samples = source.samples(split)
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(samples))
        self.samples = [samples[index] for index in order[:num_examples]]
        depends = (type(lmm.whole).__name__, lmm.llm.name, source.fingerprint, split, task.name, num_examples, seed)
        self.key = hashlib.sha256(repr(depends).encode()).hexdigest()[:16]
        self.name = source.name

    def facts(self) -> dict[str, Any]:
        return {"source": self.name, "num_examples": self.num_examples, "seed": self.seed}

    def inputs(self, llm: FrozenLLM) -> Iterator[Inputs]:
        for x_BSD, roles_BS, _ in self.labelled(llm):
            yield x_BSD, roles_BS

    def labelled(self, llm: FrozenLLM) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        with torch.no_grad():
            for batch in self.evaluator.batches(self.samples):
                yield self.evaluator.module.splice(batch)
