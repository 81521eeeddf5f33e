"""What the model is shown and what it learns, token by token: one snapshot for each task as configured.

A change of a prompt, a space or a label changes published numbers: it has to show here.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate

from ima.core.types import Role, Sample
from ima.data.collate import Collate, NoMediaInputs
from ima.models.llm.load import tiny

CONF = Path(__file__).parents[2] / "conf" / "task"
COW = Sample("s/0", "train", "train", "image", ("a brown cow",))
ASKED = Sample("q/0", "train", "train", "image", ("two",), question="How many cows are there?")
PROBED = Sample("p/0", "train", "train", "image", ("no",), question="Is there a cow in the image?")
CHOSEN = Sample("m/0", "train", "train", "image", ("two",), question="How many?", facts={"choices": ("one", "two")})
READ = Sample("o/0", "train", "train", "image", ("moo",), question="What brand is it?", facts={"ocr": ("MOO", "3l")})
SHORTLY = "Answer the question using a single word or phrase."
LETTERS = "How many?\nA. one\nB. two\nAnswer with the letter of the right option."
TALK = Sample("c/0", "train", "train", "image", ("A cow.",), turns=(("user", "What is it?"), ("assistant", "A cow.")))
# task: sample, [(role, text)], the text under labels
SNAPSHOTS: dict[str, tuple[Sample, list[tuple[str, str]], str]] = {
    "caption": (
        COW,
        [("PROMPT", "This is a picture of"), ("ANSWER", " a brown cow"), ("SPECIAL", "</s>")],
        " a brown cow</s>",
    ),
    "qa": (
        ASKED,
        [("PROMPT", "Question: How many cows are there? Answer:"), ("ANSWER", " two"), ("SPECIAL", "</s>")],
        " two</s>",
    ),
    "short_qa": (
        ASKED,
        [("PROMPT", f"How many cows are there?\n{SHORTLY}"), ("ANSWER", " two"), ("SPECIAL", "</s>")],
        " two</s>",
    ),
    "ocr_qa": (
        READ,
        [
            ("PROMPT", f"What brand is it?\nReference OCR token: MOO, 3l\n{SHORTLY}"),
            ("ANSWER", " moo"),
            ("SPECIAL", "</s>"),
        ],
        " moo</s>",
    ),
    "probe": (
        PROBED,
        [("PROMPT", "Question: Is there a cow in the image? Answer:"), ("ANSWER", " no"), ("SPECIAL", "</s>")],
        " no</s>",
    ),
    "choice": (CHOSEN, [("PROMPT", LETTERS), ("ANSWER", " B"), ("SPECIAL", "</s>")], " B</s>"),
    "conversation": (
        TALK,
        [("PROMPT", "What is it?"), ("ANSWER", " A cow."), ("SPECIAL", "</s>")],
        " A cow.</s>",
    ),
}


@pytest.fixture(scope="module")
def llm() -> Any:
    return tiny()


def configured(name: str) -> Any:
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    for base in bases:
        node = yaml.safe_load((CONF / f"{base}.yaml").read_text(encoding="utf-8")) | node
    return instantiate(node)


def read(llm: Any, ids: list[int]) -> str:
    return str(llm.tokenizer.decode(ids))


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshot_of_what_is_learnt(name: str, llm: Any) -> None:
    sample, pieces, labelled = SNAPSHOTS[name]
    ids, roles, labels = Collate(configured(name), llm, NoMediaInputs()).text(sample, 0)
    runs = groupby(zip(roles, ids, strict=True), key=lambda pair: pair[0])
    assert [(Role(role).name, read(llm, [id for _, id in run])) for role, run in runs] == pieces
    assert read(llm, [label for label in labels if label != -100]) == labelled
    assert ids == [*llm.encode("".join(text for _, text in pieces[:-1])), llm.eos_id]  # one byte, one token
    assert all(label in (-100, id) for label, id in zip(labels, ids, strict=True))


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_generation_is_asked_with_the_same_tokens_and_no_answer(name: str, llm: Any) -> None:
    sample, pieces, _ = SNAPSHOTS[name]
    ids, roles, labels = Collate(configured(name), llm, NoMediaInputs(), answers=False).text(sample, 0)
    assert read(llm, ids) == pieces[0][1]
    assert set(roles) == {int(Role.PROMPT)} and set(labels) == {-100}


def test_every_task_of_the_configuration_has_a_snapshot() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(SNAPSHOTS)


def test_a_question_with_braces_stays_as_it_is(llm: Any) -> None:
    odd = Sample("q/1", "train", "train", "image", ("x",), question="What is {question} in {0}?")
    assert configured("qa").prompt_for(odd) == "Question: What is {question} in {0}? Answer:"
