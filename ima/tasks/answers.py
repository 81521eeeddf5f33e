"""What tasks of questions and answers share: the prompt with the question, the answer as it continues it, the words of
the model that count as its answer, and the names of metrics by type.

An answer is cut out of what was said by its own lines and sentences, never by the truth.
"""

from __future__ import annotations

import re
from typing import Any

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.tasks.base import Prediction

PLACE = "{question}"
OCR = "{ocr}"  # where words that were read in the picture stand: facts["ocr"], as TextVQA has them
# A full stop after these ends no sentence.
SHORT_FORMS = frozenset(["st", "mr", "mrs", "ms", "dr", "mt", "prof", "jr", "sr", "vs", "etc"])


def slug(kind: str) -> str:
    """A type as part of a metric's name: 'yes/no' -> 'yes_no'. Never low or high: those name limits of intervals."""
    name = re.sub(r"\W+", "_", kind.lower()).strip("_")
    return f"{name}_" if name in ("low", "high") else name


def described(prediction: Prediction) -> dict[str, Any]:
    """What every line about an answer holds."""
    sample = prediction.sample
    row: dict[str, Any] = {
        "id": sample.id,
        "split": sample.split,
        "track": sample.track,
        "cluster": sample.cluster,
        "question": sample.question,
        "text": prediction.text,
        "references": list(sample.references),
    }
    return row | ({} if sample.facts.get("type") is None else {"type": str(sample.facts["type"])})


def asked(prompt: str, sample: Sample) -> str:
    if not sample.question:
        raise UserError(f"sample {sample.id} asks no question; choose a task without {PLACE}, such as task=caption")
    words = sample.facts.get("ocr")
    if OCR in prompt and words is None:
        raise UserError(f"sample {sample.id} has no {OCR}; give the data's words (data=textvqa_ocr) or leave {OCR} out")
    filled = {PLACE: sample.question, OCR: ", ".join(words or ())}
    return re.sub("|".join(map(re.escape, filled)), lambda found: filled[found[0]], prompt)


def joined(prompt: str, answer: str) -> str:
    """The answer as it continues the prompt: after a space, unless the prompt ends with one."""
    return answer if prompt[-1:].isspace() else f" {answer}"


def check_prompt(prompt: str) -> None:
    if PLACE not in prompt:
        raise UserError(f"prompt: {prompt!r} does not say where the question stands; write {PLACE} into it")


def check_generation(max_new_tokens: int, num_beams: int) -> None:
    for key, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        if value < 1:
            raise UserError(f"{key}: {value} is too small; at least 1")


def first_line(text: str) -> str:
    """The first line that says anything, runs of blanks as one."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return re.sub(r"\s+", " ", line).strip()


def without_full_stop(text: str) -> str:
    """'yes.' -> 'yes'; the full stop of a short form at the end (D.C., p.m., St.) belongs to the word."""
    word = text.rpartition(" ")[2]
    if re.fullmatch(r"(?:[^\W\d_]\.){2,}", word) or (word.endswith(".") and word[:-1].lower() in SHORT_FORMS):
        return text
    return text.rstrip(".!?,;: ")


def first_sentence(line: str) -> str:
    """'yes. It is.' -> 'yes.'; short forms (St. Louis, p.m. today, J. Smith) end no sentence."""
    for found in re.finditer(r"(\S*)[.!?]\s", line):
        word = found[1].lower().lstrip("\"'(")
        if word not in SHORT_FORMS and not re.fullmatch(r"(?:[^\W\d_]\.)*[^\W\d_]", word):
            return line[: found.end()].strip()
    return line
