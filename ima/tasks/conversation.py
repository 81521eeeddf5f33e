"""Conversations as they are: what the data's user asks, in several turns, and what its assistant says.

Made for training on instructions. With a chat template (`llm.chat`) all turns of the assistant are learnt; as plain
text only what has one question and one answer can be laid out. The last answer is scored by its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ima.core.errors import UserError
from ima.core.resampling import mean
from ima.core.types import MEDIUM, Sample, Turn
from ima.tasks.answers import check_generation, described
from ima.tasks.base import Metric, Prediction, Task
from ima.tasks.metrics.overlap import rouge_l


class ConversationTask(Task):
    """max_new_tokens, num_beams: how the last answer is generated."""

    name = "conversation"
    headline = "rouge_l"
    RANGES = {"max_new_tokens": (1, None), "num_beams": (1, None)}

    def __init__(self, max_new_tokens: int = 64, num_beams: int = 1) -> None:
        check_generation(max_new_tokens, num_beams)
        self.max_new_tokens, self.num_beams = max_new_tokens, num_beams

    def turns_for(self, sample: Sample, draw: int, answer: bool = True) -> Sequence[Turn]:
        if not sample.turns:
            raise UserError(f"sample {sample.id} is no conversation; choose another task for this data")
        return sample.turns

    def prompt_for(self, sample: Sample) -> str:
        turns = self.turns_for(sample, 0)
        if [who for who, _ in turns] != ["user", "assistant"]:
            raise UserError(f"sample {sample.id}: a conversation of {len(turns)} turns needs a template; set llm.chat")
        return turns[0][1].replace(MEDIUM, "").strip()

    def target_for(self, sample: Sample, draw: int) -> str:
        return f" {self.turns_for(sample, draw)[-1][1]}"

    def clean(self, text: str) -> str:
        return text.strip()

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]:
        if not predictions:
            return []
        clusters = [p.sample.cluster or p.sample.id for p in predictions]
        values = np.array([rouge_l(p.text, p.sample.references) for p in predictions])
        return [Metric.of("rouge_l", mean(values, clusters), len(predictions))]

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]:
        return [described(p) | {"right": rouge_l(p.text, p.sample.references)} for p in predictions]
