"""Multiple choice (SEED-Bench, ScienceQA): which of the options is right, by its letter or by its likelihood.

By letter the options stand in the prompt and the answer is parsed from what is said, never repaired by the truth; what
names no option is wrong. By likelihood nothing is generated: the option whose tokens the model finds likeliest, on
average, is its answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from ima.core.errors import UserError, nearest
from ima.core.resampling import mean
from ima.core.types import Sample
from ima.tasks.answers import asked, check_generation, check_prompt, described, first_line, joined
from ima.tasks.base import Metric, Prediction, Task
from ima.tasks.prior import guesses
from ima.tasks.qa import by_kind

CHOICES = "{choices}"
LETTER = re.compile(r"(?:the )?(?:answer is|answer:)?\s*\(?([A-Z])(?:[.:,)]|$)", re.IGNORECASE)


class ChoiceTask(Task):
    """prompt: with {question} and, by letter, {choices}. by: how an option is chosen. Samples carry facts["choices"];
    their reference is the right option's text."""

    name = "choice"
    headline = "accuracy"
    RANGES = {"max_new_tokens": (1, None), "num_beams": (1, None)}

    def __init__(
        self,
        prompt: str = "{question}\n{choices}\nAnswer with the letter of the right option.",
        by: Literal["letter", "likelihood"] = "letter",
        max_new_tokens: int = 4,
        num_beams: int = 1,
    ) -> None:
        check_prompt(prompt)
        check_generation(max_new_tokens, num_beams)
        if by not in ("letter", "likelihood"):
            raise UserError(f"by: {by!r} is unknown; {nearest(by, ('letter', 'likelihood'))}")
        if by == "letter" and CHOICES not in prompt:
            raise UserError(f"prompt: {prompt!r} does not say where the options stand; write {CHOICES} into it")
        self.prompt, self.by, self.max_new_tokens, self.num_beams = prompt, by, max_new_tokens, num_beams

    def prompt_for(self, sample: Sample) -> str:
        listed = "\n".join(f"{letter(index)}. {text}" for index, text in enumerate(options(sample)))
        return asked(self.prompt, sample).replace(CHOICES, listed)

    def target_for(self, sample: Sample, draw: int) -> str:
        index = truth(sample)
        return joined(self.prompt, letter(index) if self.by == "letter" else options(sample)[index])

    def candidates_for(self, sample: Sample) -> Sequence[str]:
        """Texts of which the likeliest is the answer; none where the answer is generated."""
        return options(sample) if self.by == "likelihood" else ()

    def clean(self, text: str) -> str:
        return first_line(text)

    def chosen(self, prediction: Prediction) -> int | None:
        """The option that was said; None where none was. A letter that stands alone is one of the list's where it is
        asked for, also where an option's text is a letter."""
        choices, alone = options(prediction.sample), prediction.text.strip().strip("().:,")
        if self.by == "letter" and len(alone) == 1 and 0 <= (index := ord(alone.upper()) - ord("A")) < len(choices):
            return index
        for index, text in enumerate(choices):
            if prediction.text.strip().lower().rstrip(".") == text.strip().lower().rstrip("."):
                return index
        found = LETTER.match(prediction.text.strip()) if self.by == "letter" else None
        index = ord(found[1].upper()) - ord("A") if found else len(choices)
        return index if index < len(choices) else None

    def right(self, prediction: Prediction) -> float:
        """Of options with the same text either is right."""
        choices, chosen = options(prediction.sample), self.chosen(prediction)
        return float(chosen is not None and choices[chosen] == choices[truth(prediction.sample)])

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]:
        if not predictions:
            return []
        clusters = [p.sample.cluster or p.sample.id for p in predictions]
        right = [self.right(p) for p in predictions]
        named = [float(self.chosen(p) is not None) for p in predictions]
        out = [Metric.of("accuracy", mean(right, clusters), len(right))]
        out.append(Metric.of("named_ratio", mean(named, clusters), len(named)))
        kinds = [str(p.sample.facts["type"]) for p in predictions if p.sample.facts.get("type") is not None]
        return out + (by_kind("accuracy", right, kinds, clusters) if len(kinds) == len(right) else [])

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]:
        return [
            described(p) | {"choices": list(options(p.sample)), "right": self.right(p), "chosen": self.chosen(p)}
            for p in predictions
        ]

    def prior(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Prediction] | None:
        return guesses(train, samples)


def letter(index: int) -> str:
    return chr(ord("A") + index)


def options(sample: Sample) -> tuple[str, ...]:
    choices = tuple(sample.facts.get("choices", ()))
    if not 2 <= len(choices) <= 26:
        raise UserError(f"sample {sample.id} has {len(choices)} options, a multiple choice has 2 to 26; choose task=qa")
    return choices


def truth(sample: Sample) -> int:
    if not sample.references or sample.references[0] not in options(sample):
        raise UserError(f"sample {sample.id}: its answer {sample.references[:1]} is none of its options")
    return options(sample).index(sample.references[0])
