"""Answers to questions against annotators' answers: the VQA challenge's normalisation, accuracy and exact match.

`vqa.tsv` holds the published tables of numbers, articles and contractions. The rule is kept with its quirks, since
published numbers have them: a comma between digits makes all punctuation vanish without a space, contractions with a
capital never match, and answers are normalised only where annotators disagree ("official"; "fixed" always does).
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

Mode = Literal["official", "fixed"]
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
NUM_AGREEING = 3  # annotators that have to say the same for full marks
MAX_PERIODS = 32  # so many full stops are taken out of one answer, no more


@functools.cache
def table(kind: str) -> dict[str, str]:
    """The words of one kind (article, number, contraction) with what they become."""
    with open(Path(__file__).parent / "vqa.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {row["word"]: row["becomes"] or "" for row in rows if row["kind"] == kind}


def tidy(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """A sign beside a space vanishes, one inside a word becomes a space; full stops stay before digits."""
    out = text
    grouped = re.search(r"\d,\d", text) is not None
    for sign in SIGNS:
        beside_space = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if grouped or beside_space else " ")
    return re.sub(r"\.(?!\d)", "", out, count=MAX_PERIODS)


@functools.lru_cache(maxsize=65536)
def normalised(text: str) -> str:
    """'The Two cats.' -> '2 cats': the official normalisation of an answer."""
    articles, numbers, contractions = table("article"), table("number"), table("contraction")
    words = (numbers.get(word, word) for word in without_punctuation(tidy(text)).lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in articles)


def comparable(text: str) -> str:
    """The normalised answer; one of which nothing is left ("a", "the", "?") as it is, so that silence does not equal
    it. (The challenge's accuracy does without this and keeps its quirk.)"""
    return normalised(text) or tidy(text).lower()


def vqa_accuracy(answer: str, references: Sequence[str], mode: Mode = "official") -> float:
    """In 0..1: mean over annotators of min(1, others who said the same / 3).

    Of fewer than four annotators, all the others have to agree; of one, he alone (the official rule knows ten).
    """
    answer, truths = tidy(answer), [tidy(text) for text in references]
    if mode == "fixed" or len(set(truths)) > 1:
        answer, truths = normalised(answer), [normalised(text) for text in truths]
    same = [truth == answer for truth in truths]
    if len(same) < 2:
        return float(sum(same))
    needed = min(NUM_AGREEING, len(same) - 1)
    return sum(min(1.0, (sum(same) - own) / needed) for own in same) / len(same)


def exact_match(answer: str, accepted: Iterable[str]) -> float:
    """1 where the answer is one of the accepted ones after the official normalisation, else 0."""
    return float(comparable(answer) in {comparable(text) for text in accepted})


def soft_score(answer: str, references: Sequence[str], weights: Sequence[float]) -> float:
    """The score in 0..1 that comes with the answer (labels such as {"red": 1.0, "dark red": 0.3}), normalised alike."""
    said = comparable(answer)
    scores = [weight for text, weight in zip(references, weights, strict=True) if comparable(text) == said]
    return min(1.0, max(scores, default=0.0))
