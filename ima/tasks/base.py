"""What a task is: how a sample becomes prompt and target, how an answer is cleaned, how answers are scored.

Tasks see samples and texts only; they know neither models nor tokens. Scores come with their interval and with the
number of independent clusters behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ima.core.resampling import Interval
from ima.core.types import MEDIUM, Sample, Turn


@dataclass(frozen=True)
class Prediction:
    """What the model said about a sample, cleaned."""

    sample: Sample
    text: str


@dataclass(frozen=True)
class Metric:
    """`low`, `high`: 95 % cluster bootstrap; NaN where there are fewer than two clusters. `n`: samples behind it.
    `note`: why the value is NaN."""

    name: str
    value: float
    low: float
    high: float
    n: int
    num_clusters: int
    note: str | None = None

    @classmethod
    def of(cls, name: str, interval: Interval, n: int) -> Metric:
        return cls(name, interval.value, interval.low, interval.high, n, interval.num_clusters)


class Task(Protocol):
    """`headline`: the metric that stands for the task, on the terminal and in comparisons; `per_example` gives its
    value for one example as "right" (bool, or a number in [0, 1]; in [0, 10] where the headline is CIDEr-D), beside
    every other score that one example has."""

    name: str
    headline: str
    max_new_tokens: int
    num_beams: int

    def prompt_for(self, sample: Sample) -> str: ...

    def target_for(self, sample: Sample, draw: int) -> str: ...

    def turns_for(self, sample: Sample, draw: int, answer: bool = True) -> Sequence[Turn]:
        """The sample as a conversation, media first; its last turn is the assistant's (empty without `answer`)."""
        media = "".join(f"{MEDIUM}\n" for _ in sample.media_samples)
        said = self.target_for(sample, draw).strip() if answer else ""
        return (("user", media + self.prompt_for(sample)), ("assistant", said))

    def candidates_for(self, sample: Sample) -> Sequence[str]:
        """Texts of which the likeliest is taken as the answer; none where the answer is generated."""
        return ()

    def clean(self, text: str) -> str: ...

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]: ...

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]: ...

    def prior(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Prediction] | None:
        """What one would say who knows the training answers and the questions but sees nothing: the row "prior"
        beside the model's. None where the task has no such guess."""
        return None
