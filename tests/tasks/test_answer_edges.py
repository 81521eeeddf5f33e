"""Edges of reading answers and captions (silence, letters as options, equal options, short forms, odd plurals) and of
the loss: the first position has nothing before it."""

from __future__ import annotations

import pytest

from ima.core.types import Sample
from ima.data.collate import Collate, NoMediaInputs
from ima.models.llm.load import tiny
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask
from ima.tasks.choice import ChoiceTask
from ima.tasks.metrics.chair import coco_objects
from ima.tasks.metrics.nouns import reader
from ima.tasks.metrics.vqa import exact_match, soft_score, vqa_accuracy
from ima.tasks.qa import QaTask


def test_silence_equals_no_answer_of_which_nothing_is_left() -> None:
    for truth in ("a", "the", "?", "An"):
        assert exact_match("", [truth]) == 0 and soft_score("", [truth], [1.0]) == 0
        assert exact_match(truth, [truth]) == 1
    assert exact_match("A", ["a"]) == 1 and exact_match("the cat", ["cat"]) == 1


def chosen(choices: list[str], said: str, answer: str) -> tuple[int | None, float]:
    sample = Sample("s", "val", "val", "image", (answer,), question="Which?", facts={"choices": choices})
    task = ChoiceTask()
    return task.chosen(Prediction(sample, said)), task.right(Prediction(sample, said))


@pytest.mark.parametrize(("said", "place"), [("A", 0), ("b", 1), ("(B)", 1), ("A.", 0), ("A. B", 0), ("D", None)])
def test_a_letter_is_the_lists_also_where_options_are_letters(said: str, place: int | None) -> None:
    assert chosen(["B", "A", "C"], said, "B")[0] == place


def test_an_options_text_counts_where_it_is_no_letter_of_the_list() -> None:
    assert chosen(["x", "y"], "y", "y") == (1, 1.0)
    assert chosen(["p.m.", "A.M."], "A.M.", "A.M.") == (1, 1.0)


def test_either_of_two_equal_options_is_right() -> None:
    assert [chosen(["cat", "dog", "cat"], said, "cat")[1] for said in "ABC"] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("said", "clean"), [
    ("Washington D.C.", "Washington D.C."), ("5 p.m.", "5 p.m."), ("yes.", "yes"), ("yes. It is.", "yes"),
    ("St. Louis.", "St. Louis"), ("a.", "a"), ("'U.S.'", "U.S."), ("no!?", "no"),
])  # fmt: skip
def test_the_full_stop_of_a_short_form_reaches_the_official_rule(said: str, clean: str) -> None:
    assert QaTask().clean(said) == clean
    if clean == "Washington D.C.":
        assert vqa_accuracy(QaTask().clean(said), [clean] * 10) == 1


@pytest.mark.parametrize(("text", "said"), [
    ("two policemen", ["person"]), ("gentlemen and servicemen", ["person", "person"]), ("many tvs", ["tv"]),
    ("women on buses", ["person", "bus"]), ("a bus full of gas", ["bus"]),
])  # fmt: skip
def test_chair_reads_plurals_that_the_official_reader_reads(text: str, said: list[str]) -> None:
    assert coco_objects(text) == said


def test_does_is_a_verb_unless_it_is_counted() -> None:
    for text in ("what does it do", "the cow does not sit", "it does"):
        assert not any("deer" in mention.nouns | mention.broad for mention in reader().mentions(text))
    assert any("deer" in mention.nouns for mention in reader().mentions("two does"))


def test_the_first_token_is_no_label_where_nothing_stands_before_it() -> None:
    llm, task = tiny(), CaptionTask("Say:")
    assert llm.bos_id is None
    alone = Sample("t", "train", "train", "image", ("a cat",), media=())
    seen = Sample("m", "train", "train", "image", ("a cat",))
    collate = Collate(task, llm, NoMediaInputs(), loss_on="text")
    assert collate.lay(alone, 0).labels[:2] == [-100, collate.lay(alone, 0).ids[1]]
    assert collate.lay(seen, 0).labels == collate.lay(seen, 0).ids  # its percepts stand before the first token
    labels = collate([(alone, 0)]).labels_BT
    assert int((labels != -100).sum()) == int((labels[:, 1:] != -100).sum()) == labels.shape[1] - 1
    empty = Collate(CaptionTask(""), llm, NoMediaInputs())
    assert empty.lay(alone, 0).labels[0] == -100
