"""Questions and answers: what is drawn, asked and cut out, how it is scored, and the guess without looking."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.tasks.base import Metric, Prediction
from ima.tasks.pope import ProbeTask, says_yes
from ima.tasks.qa import QaTask


def question(number: int, references: tuple[str, ...], **options: Any) -> Sample:
    fields = {"question": "What is it?", "cluster": f"c{number}", **options}
    return Sample(f"q{number}", "T0", "T0", "image", references, **fields)


def named(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def test_answers_are_drawn_in_proportion_to_their_weights_and_depend_on_sample_and_draw_only() -> None:
    task = QaTask()
    asked = question(0, ("red", "dark red", "blue"), weights=(0.6, 0.3, 0.0))
    drawn = [task.target_for(asked, draw) for draw in range(3000)]
    assert drawn == [QaTask(metric="exact").target_for(asked, draw) for draw in range(3000)]
    shares = Counter(drawn)
    assert set(shares) == {" red", " dark red"}
    assert shares[" red"] / 3000 == pytest.approx(2 / 3, abs=0.03)
    even = Counter(task.target_for(question(1, ("a b", "c")), draw) for draw in range(2000))
    assert even[" c"] / 2000 == pytest.approx(0.5, abs=0.04)


def test_the_answer_continues_the_prompt() -> None:
    asked = question(0, ("red",))
    assert QaTask().prompt_for(asked) + QaTask().target_for(asked, 0) == "Question: What is it? Answer: red"
    assert QaTask(prompt="{question} ").target_for(asked, 0) == "red"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" red.\n\nQuestion: next", "red"),
        (" red. It is red.", "red"),
        ("\n\n  two  cows ", "two cows"),
        (" St. Louis. It is", "St. Louis"),
        (" 3.5", "3.5"),
        (" 10 p.m. today", "10 p.m. today"),
        (' "stop"', "stop"),
        (" no. there is none", "no"),
        ("", ""),
    ],
)
def test_cleaning_keeps_the_first_sentence_of_the_first_line(raw: str, clean: str) -> None:
    assert QaTask().clean(raw) == clean


def test_cleaning_and_lines_know_nothing_of_the_truth() -> None:
    """The published code cut predictions to the longest true answer; here a longer answer stays long, and wrong."""
    asked = question(0, ("red",))
    (row,) = QaTask(metric="exact").per_example([Prediction(asked, QaTask().clean(" red and blue"))])
    assert row["text"] == "red and blue" and row["right"] == 0


def test_accuracy_by_type_macro_and_pairs() -> None:
    samples = [
        question(0, ("yes",), facts={"type": "yes/no", "pair": "p0"}),
        question(1, ("no",), facts={"type": "yes/no", "pair": "p0"}),
        question(2, ("two",), facts={"type": "number", "pair": "p1"}),
        question(3, ("3",), facts={"type": "number", "pair": "p1"}),
        question(4, ("a cow",), facts={"type": "object", "pair": "p2", "synonyms": ("cattle",)}),
    ]
    said = ("yes", "yes", "2", "Three.", "the cattle")
    found = named(QaTask(metric="exact").score([Prediction(s, t) for s, t in zip(samples, said, strict=True)], []))
    assert found["accuracy"].value == pytest.approx(4 / 5) and found["accuracy"].n == 5
    assert found["macro_accuracy"].value == pytest.approx((0.5 + 1 + 1) / 3)
    assert {name: found[f"accuracy_{name}"].value for name in ("yes_no", "number", "object")} == {
        "yes_no": 0.5, "number": 1.0, "object": 1.0}  # fmt: skip
    assert found["pair_accuracy"].value == 0.5 and found["pair_accuracy"].n == 2  # p2 lacks its other side
    assert found["macro_accuracy"].low <= found["macro_accuracy"].value <= found["macro_accuracy"].high


def test_types_never_take_the_name_of_an_interval_limit() -> None:
    samples = [question(i, ("x",), facts={"type": kind}) for i, kind in enumerate(("low", "high"))]
    names = set(named(QaTask().score([Prediction(s, "x") for s in samples], [])))
    assert not names & {"accuracy_low", "accuracy_high"}


def test_both_vqa_modes_are_measured_whichever_is_the_headline() -> None:
    predictions = [Prediction(question(i, ("black",) * 10), "Black.") for i in range(3)]
    for mode, value in (("official", 0.0), ("fixed", 1.0)):
        found = named(QaTask(vqa_mode=mode).score(predictions, []))
        assert found["accuracy"].value == value
        assert (found["vqa_official"].value, found["vqa_fixed"].value) == (0.0, 1.0)
        (row, *_) = QaTask(vqa_mode=mode).per_example(predictions)
        assert (row["right"], row["vqa_official"], row["vqa_fixed"]) == (value, 0.0, 1.0)


def test_soft_labels_score_what_the_answer_is_worth() -> None:
    asked = question(0, ("red", "dark red"), weights=(1.0, 0.3))
    task = QaTask(metric="soft")
    worth = {text: task.right(Prediction(asked, text)) for text in ("Red", "the dark red", "blue")}
    assert worth == {"Red": 1.0, "the dark red": 0.3, "blue": 0.0}


def test_the_guess_is_by_question_then_by_type_then_by_all() -> None:
    train = [
        question(0, ("cow",), question="What is on the left?", facts={"type": "object"}),
        question(1, ("cow",), question="What is on the left?", facts={"type": "object"}),
        question(2, ("pig", "hog"), question="What is on the left?", weights=(5.0, 0.0), facts={"type": "object"}),
        question(3, ("2",), question="How many cows?", facts={"type": "number"}),
        question(4, ("1",), question="How many pigs?", facts={"type": "number"}),
    ]
    asked = [
        question(5, ("?",), question="what is on  the left?", facts={"type": "number"}),
        question(6, ("?",), question="How many owls?", facts={"type": "number"}),
        question(7, ("?",), question="Why?", facts={"type": "reason"}),
        question(8, ("?",), question="Why?"),
    ]
    for order in (train, train[::-1]):
        said = [prediction.text for prediction in QaTask().prior(order, asked) or []]
        assert said == ["cow", "1", "cow", "cow"]  # 1 and 2 are equally frequent: the first in the alphabet


def test_mistakes_in_a_question_task_are_one_line_that_names_the_key() -> None:
    for options, key in (
        ({"prompt": "Answer:"}, "prompt"),
        ({"metric": "vqaa"}, "metric"),
        ({"vqa_mode": "fix"}, "vqa_mode"),
        ({"num_beams": 0}, "num_beams"),
    ):
        with pytest.raises(UserError, match=f"^{key}: ") as caught:
            QaTask(**options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    for task in (QaTask(), ProbeTask()):
        with pytest.raises(UserError, match="q0 asks no question"):
            task.prompt_for(question(0, ("x",), question=""))
    with pytest.raises(UserError, match="q0 has no answer"):
        QaTask().target_for(question(0, ()), 0)
    with pytest.raises(UserError, match="q0: a probe's answer is yes or no"):
        ProbeTask().target_for(question(0, ("maybe",)), 0)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("yes", True), ("no", False), ("No", False), ("No, there is none", False), ("there is not", False),
        ("Yes. No doubt", True), ("nothing", True), ("", True), ("I see no cat", False), ("NO", True),
    ],
)  # fmt: skip
def test_the_published_parsing_rule_word_by_word(text: str, yes: bool) -> None:
    assert says_yes(text) is yes


def probes(kinds: tuple[str, ...], answers: str, said: str) -> list[Prediction]:
    """One probe a letter, y or n."""
    words = {"y": "yes", "n": "no"}
    return [
        Prediction(question(i, (words[a],), facts={"type": kinds[i % len(kinds)]}), words[s])
        for i, (a, s) in enumerate(zip(answers, said, strict=True))
    ]


def test_probe_measures_are_those_of_the_confusion_counts() -> None:
    found = named(ProbeTask().score(probes(("random", "adversarial"), "yyyynnnn", "yyynyynn"), []))
    tp, fp, fn, tn = 3, 2, 1, 2
    assert found["accuracy"].value == (tp + tn) / 8
    assert found["precision"].value == tp / (tp + fp) and found["recall"].value == tp / (tp + fn)
    precision, recall = found["precision"].value, found["recall"].value
    assert found["f1"].value == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["f1"].low <= found["f1"].value <= found["f1"].high
    assert found["yes_ratio"].value == 5 / 8
    assert found["f1_adversarial"].n == 4 and found["yes_ratio_random"].value == 3 / 4


def test_probe_that_always_says_no_has_no_precision_and_no_f1_of_its_own() -> None:
    found = named(ProbeTask().score(probes(("random",), "yn", "nn"), []))
    assert math.isnan(found["precision"].value) and found["f1"].value == 0 and found["yes_ratio"].value == 0


def test_what_says_neither_yes_nor_no_counts_as_yes_and_its_share_is_told() -> None:
    said = ["Yes, it is.", "yes", "a dog", "", "Maybe. No.", "It is not.", "No", "eyes no"]
    answers = [
        Prediction(probe.sample, text) for probe, text in zip(probes(("random",), "y" * 8, "y" * 8), said, strict=True)
    ]
    found = named(ProbeTask().score(answers, []))
    assert found["yes_ratio"].value == 5 / 8 and found["unclear_ratio"].value == 3 / 8
    assert found["unclear_ratio_random"].value == 3 / 8


def test_lines_of_probes_say_what_was_said() -> None:
    (row,) = ProbeTask().per_example(probes(("popular",), "n", "y"))
    assert row["right"] is False and row["says_yes"] is True
    assert (row["type"], row["question"]) == ("popular", "What is it?")
