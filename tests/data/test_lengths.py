"""Texts and percepts beyond the LLM's positions: one line that names the sample, before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ima.core.errors import UserError
from ima.core.types import Role, Sample
from ima.data.collate import Collate, NoMediaInputs
from ima.models.llm.load import tiny
from ima.models.llm.pass_context import Generation
from ima.models.llm.positions import num_positions
from ima.pipeline.data_checks import PreparedSamples, check_lengths
from ima.tasks.caption import CaptionTask


def roles_of(length: int, num_percepts: int = 4) -> torch.Tensor:
    roles = torch.full((2, length), int(Role.PROMPT))
    roles[:, :num_percepts] = int(Role.PERCEPT)
    roles[0, length // 2 :] = int(Role.PAD)
    return roles


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
def test_a_pass_beyond_the_positions_is_one_line_that_names_the_sample(family: str) -> None:
    llm = tiny(family=family)
    assert llm.num_positions == (256 if family == "opt" else 2048)
    llm.num_positions = 256
    llm(torch.zeros(2, 256, llm.width), roles_of(256), ["a", "b"])
    with pytest.raises(
        UserError, match=r"sample b: .* 257 positions \(253 of text, 4 of percepts\), .* has 256.*max_tok"
    ):
        llm(torch.zeros(2, 257, llm.width), roles_of(257), ["a", "b"])


def test_padding_alone_and_generation_up_to_the_last_position_are_let_through() -> None:
    llm = tiny(family="opt")
    roles = roles_of(240).flip(1)
    made = llm.generate(torch.zeros(2, 240, llm.width), roles, Generation(16, 1), ["a", "b"])
    assert len(made) == 2
    with pytest.raises(UserError, match=r"sample b: it needs 257 positions .*, 17 to generate\)"):
        llm.generate(torch.zeros(2, 240, llm.width), roles, Generation(17, 1), ["a", "b"])
    roles = roles_of(300)
    roles[:, 200:] = int(Role.PAD)
    llm(torch.zeros(2, 300, llm.width), roles, ["a", "b"])


@pytest.mark.parametrize(("rope", "expected"), [
    ({"rope_type": "default"}, 100), ({"rope_type": "linear", "factor": 4.0}, 400),
    ({"type": "dynamic", "factor": 2}, 200),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}, 200),
    ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 50}, 100),
])  # fmt: skip
def test_positions_of_stretched_rotations(rope: dict[str, Any], expected: int) -> None:
    assert num_positions(SimpleNamespace(max_position_embeddings=100, rope_parameters=rope)) == expected


def stream_of(llm: Any, max_tokens: int | None = None) -> tuple[Any, Any]:
    task = CaptionTask("Say:", max_new_tokens=12)
    part = SimpleNamespace(num_tokens=200)
    stream = SimpleNamespace(
        channel=SimpleNamespace(adapter=part, encoder=part),
        task=task,
        collate=lambda llm, percepts, **options: Collate(task, llm, NoMediaInputs(), max_tokens=max_tokens, **options),
    )
    return SimpleNamespace(llm=llm), stream


def sample_of(name: str, text: str) -> Sample:
    return Sample(name, "train", "train", "image", (text,))


def test_the_check_before_training_finds_the_one_long_caption() -> None:
    samples = [sample_of(f"s/{index}", "a cat") for index in range(300)]
    fits, long = sample_of("s/fits", "x" * 50), sample_of("s/long", "x" * 51)  # 4 + 1 + 50 + EOS = 56
    parts, stream = stream_of(tiny(family="opt"))
    check_lengths(parts, stream, PreparedSamples([*samples, fits], [], {"T0": samples}, {}))
    with pytest.raises(UserError, match="sample s/long: it needs 257 positions .*set loader.max_tokens=56 or less"):
        check_lengths(parts, stream, PreparedSamples([*samples, fits, long, *samples], [], {}, {}))
    parts, stream = stream_of(tiny(family="opt"), max_tokens=56)
    check_lengths(parts, stream, PreparedSamples([long], [long], {}, {}))


def test_too_many_percepts_are_told_apart_from_long_texts() -> None:
    parts, stream = stream_of(tiny(family="opt"))
    stream.channel.adapter.num_tokens = 256
    with pytest.raises(UserError, match="fewer perceptual tokens"):
        check_lengths(parts, stream, PreparedSamples([sample_of("s/1", "a cat")], [], {}, {}))
