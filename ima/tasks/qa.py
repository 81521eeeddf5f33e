"""Question answering, about any modality: a prompt with the question, short answers, official VQA accuracy.

Answers are scored against what annotators said (`metric: vqa`), against one true answer and its synonyms (`exact`), or
by soft labels (`soft`). Nothing here looks at the truth to cut or repair what the model said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

from ima.core.errors import UserError, nearest
from ima.core.resampling import macro_mean, mean
from ima.core.types import Sample
from ima.tasks.answers import (
    asked,
    check_generation,
    check_prompt,
    described,
    first_line,
    first_sentence,
    joined,
    slug,
    without_full_stop,
)
from ima.tasks.base import Metric, Prediction, Task
from ima.tasks.metrics.vqa import Mode, exact_match, soft_score, vqa_accuracy
from ima.tasks.prior import answer_of, guesses, shares

Rule = Literal["vqa", "exact", "soft"]


class QaTask(Task):
    """prompt: the text before the answer, with {question} where the question stands. metric: "vqa" is the challenge's
    accuracy over annotators, "exact" the match with any reference or facts["synonyms"], "soft" the weight of the
    answer given. vqa_mode: "official" normalises only where annotators disagree, "fixed" always; both are measured,
    this one is the headline. num_beams: 3 in the published runs, 1 (greedy) here because a CPU feels the difference.
    """

    name = "qa"
    headline = "accuracy"
    RANGES = {"max_new_tokens": (1, None), "num_beams": (1, None)}

    def __init__(
        self,
        prompt: str = "Question: {question} Answer:",
        metric: Literal["vqa", "exact", "soft"] = "vqa",
        vqa_mode: Literal["official", "fixed"] = "official",
        max_new_tokens: int = 8,
        num_beams: int = 1,
    ) -> None:
        check_prompt(prompt)
        check_generation(max_new_tokens, num_beams)
        for key, value, allowed in (("metric", metric, get_args(Rule)), ("vqa_mode", vqa_mode, get_args(Mode))):
            if value not in allowed:
                raise UserError(f"{key}: {value!r} is unknown; {nearest(value, allowed)}")
        self.prompt, self.metric, self.vqa_mode = prompt, metric, vqa_mode
        self.max_new_tokens, self.num_beams = max_new_tokens, num_beams

    def prompt_for(self, sample: Sample) -> str:
        return asked(self.prompt, sample)

    def target_for(self, sample: Sample, draw: int) -> str:
        """An answer drawn in proportion to its weight, a function of (sample, draw)."""
        drawn = shares(sample)
        if not drawn:
            raise UserError(f"sample {sample.id} has no answer to learn; use it for generation only")
        digest = hashlib.sha256(f"{sample.id}|{draw}".encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        ends = accumulate(share for _, share in drawn)
        index = next((index for index, end in enumerate(ends) if point < end), 0)
        return joined(self.prompt, drawn[index][0])

    def clean(self, text: str) -> str:
        """The first sentence of the first line that says anything, without quotes and the final full stop."""
        return without_full_stop(first_sentence(first_line(text)).strip("\"'“”‘’ "))

    def right(self, prediction: Prediction) -> float:
        """The headline's value of one answer, in 0..1."""
        sample, text = prediction.sample, prediction.text
        if self.metric == "vqa":
            return vqa_accuracy(text, sample.references, self.vqa_mode)
        if self.metric == "soft":
            return soft_score(text, sample.references, sample.weights or (1.0,) * len(sample.references))
        return exact_match(text, (*sample.references, *sample.facts.get("synonyms", ())))

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]:
        """Accuracy overall, averaged over types, by type and over complementary pairs, of what has an answer."""
        predictions = [prediction for prediction in predictions if prediction.sample.references]
        if not predictions:
            return []
        clusters = [p.sample.cluster or p.sample.id for p in predictions]
        num = len(predictions)
        right = [self.right(prediction) for prediction in predictions]
        out = [Metric.of("accuracy", mean(right, clusters), num)]
        if self.metric == "vqa":
            for mode in get_args(Mode):
                values = [vqa_accuracy(p.text, p.sample.references, mode) for p in predictions]
                out.append(Metric.of(f"vqa_{mode}", mean(values, clusters), num))
        kinds = [str(p.sample.facts["type"]) for p in predictions if p.sample.facts.get("type") is not None]
        if len(kinds) == num:
            out.append(Metric.of("macro_accuracy", macro_mean(right, kinds, clusters), num))
            out += by_kind("accuracy", right, kinds, clusters)
        return out + pair_accuracy(predictions, right, clusters)

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]:
        out = []
        for prediction in predictions:
            sample = prediction.sample
            row = described(prediction) | {"answer": answer_of(sample)}
            if sample.references:
                row["right"] = self.right(prediction)
                if self.metric == "vqa":
                    row |= {f"vqa_{mode}": vqa_accuracy(prediction.text, sample.references, mode)
                            for mode in get_args(Mode)}  # fmt: skip
            if sample.facts.get("pair") is not None:
                row["pair"] = str(sample.facts["pair"])
            out.append(row)
        return out

    def prior(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Prediction] | None:
        return guesses(train, samples)


def by_kind(name: str, values: Sequence[float], kinds: Sequence[str], clusters: Sequence[Hashable]) -> list[Metric]:
    """The mean within each type, as `name`_<type>."""
    out = []
    for kind in sorted(set(kinds)):
        chosen = [index for index, other in enumerate(kinds) if other == kind]
        interval = mean([values[index] for index in chosen], [clusters[index] for index in chosen])
        out.append(Metric.of(f"{name}_{slug(kind)}", interval, len(chosen)))
    return out


def pair_accuracy(
    predictions: Sequence[Prediction], right: Sequence[float], clusters: Sequence[Hashable]
) -> list[Metric]:
    """Share of complementary pairs (facts["pair"]: one question, two media, two answers) with both sides right. A
    pair counts where both are there, in the cluster of its first."""
    pairs: dict[str, list[int]] = {}
    for index, prediction in enumerate(predictions):
        if (pair := prediction.sample.facts.get("pair")) is not None:
            pairs.setdefault(str(pair), []).append(index)
    whole = [indices for indices in pairs.values() if len(indices) > 1]
    if not whole:
        return []
    both = [float(all(right[index] == 1 for index in indices)) for indices in whole]
    return [Metric.of("pair_accuracy", mean(both, [clusters[indices[0]] for indices in whole]), len(whole))]
