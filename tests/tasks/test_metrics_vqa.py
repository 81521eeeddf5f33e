"""The VQA rule on hand-checked cases (tests/golden/vqa_cases.tsv), and what holds of it everywhere.

A case says: an answer, ten annotators' answers ("yes*9|no*1"), the answer normalised, its accuracy in both modes.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from ima.tasks.metrics.vqa import exact_match, normalised, soft_score, table, vqa_accuracy

with open(Path(__file__).parents[1] / "golden" / "vqa_cases.tsv", encoding="utf-8", newline="") as file:
    CASES = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def annotators(text: str) -> list[str]:
    parts = [part.rsplit("*", 1) for part in text.split("|")]
    return [answer for answer, num in parts for _ in range(int(num))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['answer']!r} of {case['references']}")
def test_a_hand_checked_case(case: dict[str, str]) -> None:
    answer, references = unescaped(case["answer"]), annotators(case["references"])
    assert len(references) == 10
    assert normalised(answer) == case["normalised"]
    assert vqa_accuracy(answer, references, "official") == pytest.approx(float(case["official"]))
    assert vqa_accuracy(answer, references, "fixed") == pytest.approx(float(case["fixed"]))


def test_the_cases_cover_every_rule() -> None:
    assert len(CASES) >= 60
    answers = [case["answer"].lower() for case in CASES]
    assert len(set(answers) & set(table("contraction"))) >= 10
    assert set(table("number")) <= set(answers)
    for case_of in (
        lambda c: c["official"] == "0" != c["fixed"],
        lambda c: "," in c["answer"],
        lambda c: c["normalised"] == "",
    ):
        assert any(case_of(case) for case in CASES)  # fmt: skip


def test_the_tables_are_whole() -> None:
    assert len(table("contraction")) == 120 and len(table("number")) == 12
    assert set(table("article")) == {"a", "an", "the"}
    for word, becomes in table("contraction").items():
        assert word.replace("'", "").lower() == becomes.replace("'", "").lower()


def test_the_modes_agree_where_annotators_disagree_and_the_order_of_annotators_is_nothing() -> None:
    draw = random.Random(0)
    said = ("yes", "Yes.", "no", "two", "2", "the cat", "cat", "1,000")
    for _ in range(300):
        references = draw.choices(said, k=10)
        answer = draw.choice(said)
        if len(set(references)) > 1:
            assert vqa_accuracy(answer, references, "official") == vqa_accuracy(answer, references, "fixed")
        shuffled = draw.sample(references, 10)
        assert vqa_accuracy(answer, shuffled) == pytest.approx(vqa_accuracy(answer, references))


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 10])
def test_whatever_their_number_annotators_who_all_agree_give_full_marks_and_no_one_gives_none(num: int) -> None:
    assert vqa_accuracy("cat", ["cat"] * num) == 1
    assert vqa_accuracy("dog", ["cat"] * num) == 0
    assert vqa_accuracy("cat", ["cat"] * (num - 1) + ["dog"]) < 1 or num > 4
    assert vqa_accuracy("cat", []) == 0


def test_exact_match_is_after_the_official_normalisation() -> None:
    assert exact_match("The Two dogs.", ["2 dogs"]) == 1
    assert exact_match("on the left", ["left"]) == 0
    assert exact_match("on the left", ["left", "on left"]) == 1
    assert exact_match("", []) == 0


def test_soft_scores_are_capped_and_normalised() -> None:
    assert soft_score("The cat", ["cat", "dog"], [3.0, 0.3]) == 1
    assert soft_score("dog.", ["cat", "dog"], [3.0, 0.3]) == 0.3
