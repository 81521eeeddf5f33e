"""Yes/no probes of what is there (POPE, arXiv 2305.10355): how often the model affirms what is not.

Negatives come in types (random, popular, adversarial); only the last asks for eyes rather than for habit. The parsing
rule is the published one: whatever does not say no counts as yes, also silence, so the yes-ratio stands beside all,
and the share of answers that say neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ima.core.errors import UserError
from ima.core.resampling import mean, ratio
from ima.core.types import Sample
from ima.tasks.answers import asked, check_generation, check_prompt, described, first_line, joined, slug
from ima.tasks.base import Metric, Prediction, Task
from ima.tasks.prior import guesses

NO = frozenset({"No", "not", "no"})


class ProbeTask(Task):
    """prompt: the text before the answer, with {question} where the question stands. max_new_tokens, num_beams: how
    answers are generated."""

    name = "probe"
    headline = "accuracy"
    RANGES = {"max_new_tokens": (1, None), "num_beams": (1, None)}

    def __init__(
        self, prompt: str = "Question: {question} Answer:", max_new_tokens: int = 4, num_beams: int = 1
    ) -> None:
        check_prompt(prompt)
        check_generation(max_new_tokens, num_beams)
        self.prompt, self.max_new_tokens, self.num_beams = prompt, max_new_tokens, num_beams

    def prompt_for(self, sample: Sample) -> str:
        return asked(self.prompt, sample)

    def target_for(self, sample: Sample, draw: int) -> str:
        return joined(self.prompt, "yes" if truth(sample) else "no")

    def clean(self, text: str) -> str:
        """The first line that says anything, as it is: the parsing rule does the rest."""
        return first_line(text)

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]:
        """All measures over all probes, then over each type of negatives."""
        if not predictions:
            return []
        kinds = [p.sample.facts.get("type") for p in predictions]
        out = measures(predictions, "")
        for kind in sorted({str(kind) for kind in kinds if kind is not None}):
            chosen = [p for p, other in zip(predictions, kinds, strict=True) if str(other) == kind]
            out += measures(chosen, f"_{slug(kind)}")
        return out

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]:
        return [
            described(p) | {"right": says_yes(p.text) == truth(p.sample), "says_yes": says_yes(p.text)}
            for p in predictions
        ]

    def prior(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Prediction] | None:
        return guesses(train, samples)


def says_yes(text: str) -> bool:
    """Yes unless the first sentence has No, not or no as a word of its own."""
    return not NO & set(text.split(".")[0].replace(",", "").split(" "))


def is_unclear(text: str) -> bool:
    """Neither yes nor no is a word of its first sentence; the published rule takes it for a yes."""
    return says_yes(text) and "yes" not in re.findall(r"[a-z]+", text.split(".")[0].lower())


def truth(sample: Sample) -> bool:
    """Raises UserError naming a sample whose answer is not one of yes and no."""
    answers = {text.strip().lower() for text in sample.references}
    if answers not in ({"yes"}, {"no"}):
        raise UserError(f"sample {sample.id}: a probe's answer is yes or no, not {', '.join(sample.references) or '-'}")
    return answers == {"yes"}


def measures(predictions: Sequence[Prediction], ending: str) -> list[Metric]:
    """Accuracy, precision, recall and F1 of "yes", how often it is said, and how often neither yes nor no is."""
    clusters = [p.sample.cluster or p.sample.id for p in predictions]
    said = np.array([says_yes(p.text) for p in predictions], dtype=np.float64)
    true = np.array([truth(p.sample) for p in predictions], dtype=np.float64)
    hits = said * true
    found = {
        "accuracy": mean(said == true, clusters),
        "precision": ratio(hits, said, clusters),
        "recall": ratio(hits, true, clusters),
        "f1": ratio(2 * hits, said + true, clusters),  # 2tp / (2tp + fp + fn)
        "yes_ratio": mean(said, clusters),
        "unclear_ratio": mean(np.array([is_unclear(p.text) for p in predictions], dtype=np.float64), clusters),
    }
    return [Metric.of(name + ending, interval, len(predictions)) for name, interval in found.items()]
