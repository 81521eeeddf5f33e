"""Multiple choice by letter and by likelihood, from the official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.data.collate import NoMediaInputs
from ima.data.corpora.choices import ScienceQa, SeedBench
from ima.models.adapters.linear import LinearAdapter
from ima.models.llm.load import tiny
from ima.models.multimodal import MultimodalModel
from ima.pipeline.evaluator import Evaluator
from ima.tasks.base import Prediction
from ima.tasks.choice import ChoiceTask


def sample(index: int = 1, **more: Any) -> Sample:
    options = ("a red cat", "a dog", "two trees")
    facts = {"choices": options, "type": "what"}
    return Sample(f"q/{index}", "test", "test", "image", (options[index],), "What?", facts=facts, media=(), **more)


@pytest.mark.parametrize(
    ("said", "index"),
    [("B", 1), ("b.", 1), ("(C)", 2), ("The answer is A.", 0), ("A tree is", None), ("answer is A", 0), ("B. a dog", 1),
     ("a dog", 1),      ("A dog.", 1), ("D", None), ("", None), ("Because", None), ("two trees", 2), ("Answer: C", 2)],
)  # fmt: skip
def test_an_option_is_read_from_its_letter_or_its_text_and_nothing_else(said: str, index: int | None) -> None:
    assert ChoiceTask().chosen(Prediction(sample(), said)) == index


def test_the_prompt_lists_the_options_and_the_target_is_the_letter() -> None:
    task = ChoiceTask()
    assert task.prompt_for(sample()) == "What?\nA. a red cat\nB. a dog\nC. two trees\n" + task.prompt.split("\n")[-1]
    assert task.target_for(sample(2), 0).strip() == "C"
    assert ChoiceTask("{question}", by="likelihood").target_for(sample(2), 0) == " two trees"
    named = {m.name: m.value for m in task.score([Prediction(sample(1), "B"), Prediction(sample(0), "?")], [])}
    assert named == {"accuracy": 0.5, "named_ratio": 0.5, "accuracy_what": 0.5}
    with pytest.raises(UserError, match="where the options stand"):
        ChoiceTask("{question}")


def test_the_likeliest_option_is_that_of_the_slow_way() -> None:
    llm = tiny()
    module = MultimodalModel(LinearAdapter(4, llm.width), llm)
    task = ChoiceTask("{question}", by="likelihood")
    samples = [sample(index) for index in range(3)]
    evaluator = Evaluator(module, task, None, NoMediaInputs(), batch_size=4)  # type: ignore[arg-type]
    found = [prediction.text for prediction in evaluator.predict(samples)]
    values = []
    for option in sample().facts["choices"]:
        prompt, answer = llm.encode("What?"), [*llm.encode(f" {option}"), llm.eos_id]
        with torch.no_grad():
            logits = llm.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        values.append(sum(float(logits[at, token]) for at, token in zip(places, answer, strict=True)) / len(answer))
    assert found == [sample().facts["choices"][values.index(max(values))]] * 3


def test_official_files_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    question = {"question_id": "7", "question": "Which?", "choice_a": "w", "choice_b": "x", "choice_c": "y",
                "choice_d": "z", "answer": "C", "data_id": "1.png", "data_type": "image",
                "question_type_id": 2}  # fmt: skip
    content = {
        "questions": [question, question | {"question_id": "8", "data_type": "video"}],
        "question_type": {"Count": 2},
    }
    (tmp_path / "seed.json").write_text(json.dumps(content))
    source = SeedBench(str(tmp_path), {"test": {"annotations": "seed.json", "media": "{data_id}"}}, "seed")
    (only,) = source.samples("test")
    assert only.references == ("y",) and only.facts["type"] == "Count" and only.facts["choices"] == ("w", "x", "y", "z")
    problems = {
        "3": {"question": "Q", "choices": ["u", "v"], "answer": 1, "hint": "H", "image": "1.png", "split": "test"},
        "4": {"question": "Q", "choices": ["u", "v"], "answer": 0, "hint": "", "image": None, "split": "test"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    splits = {"test": {"annotations": "problems.json", "label": "test", "media": "{image}"}}
    assert [s.question for s in ScienceQa(str(tmp_path), splits, "sqa").samples("test")] == ["Context: H\nQ"]
    both = ScienceQa(str(tmp_path), splits, "sqa", with_text=True).samples("test")
    assert [len(s.media_samples) for s in both] == [1, 0] and both[1].references == ("u",)
    problems["4"] |= {"answer": 2, "image": "1.png"}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(UserError, match="problems.json: 4: key 'answer' is 2, there are 2 choices"):
        ScienceQa(str(tmp_path), splits, "sqa").samples("test")
