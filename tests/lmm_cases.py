"""One tiny model of every type with media of several sizes, as batches: what the tests over all types share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_lmms import tiny
from torch import Tensor

from ima.core.media import Frames, Medium, Sound
from ima.core.types import Role, Sample
from ima.data.given import GivenTask
from ima.data.source import Source
from ima.models.hf_multimodal import Lmm, LmmBatch, joined
from ima.pipeline.hf_evaluator import LmmCollate

SIZES = ((56, 56), (112, 56), (40, 90))
SECONDS = (1.0, 1.6, 0.7)
ANSWERS = ("a red cube", "two green balls", "it")


class Shown(Source):
    """Three media of different sizes; `two` and `none` show another number of them."""

    name, splits, fingerprint = "shown", ("val",), "shown"

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def samples(self, split: str = "val") -> list[Sample]:
        return [self.sample(index) for index in range(3)]

    def sample(self, index: int, **more: Any) -> Sample:
        return Sample(
            id=str(index), split="val", track="val", modality=self.modality, references=(ANSWERS[index],),
            question="What is shown?", **more,
        )  # fmt: skip

    def two(self) -> Sample:
        return self.sample(1, media=(self.sample(0), self.sample(1)))

    def none(self) -> Sample:
        return self.sample(2, media=())

    def medium(self, sample: Sample) -> Medium:
        index = int(sample.id)
        draw = np.random.default_rng(index)

        def picture(size: tuple[int, int]) -> Image.Image:
            return Image.fromarray(draw.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))

        if self.modality == "audio":
            return Sound(draw.normal(0, 0.1, int(16_000 * SECONDS[index])).astype(np.float32), 16_000)
        if self.modality == "video":
            return Frames(tuple(picture(SIZES[index]) for _ in range(4)))
        return picture(SIZES[index])


class Case:
    """A type and a modality that it is shown."""

    def __init__(self, name: str) -> None:
        kind, _, modality = name.partition("-")
        self.lmm, self.source = lmm_of(kind), Shown(modality)

    def batch(self, samples: Sequence[Sample] | None = None, answers: bool = True) -> LmmBatch:
        collate = LmmCollate(GivenTask(), self.source, self.lmm, answers)
        return collate([(sample, 0) for sample in (samples or self.source.samples())])

    @torch.no_grad()
    def states(self, batch: LmmBatch) -> tuple[Tensor, Tensor]:
        """(h_BSD after the final norm, roles_BS), as the evaluator runs them."""
        x_BSD, roles_BS, _ = self.lmm.splice(batch)
        return self.lmm.llm(x_BSD, roles_BS, [sample.id for sample in batch.samples]), roles_BS

    def inputs(self, batch: LmmBatch) -> dict[str, Tensor]:
        """What a stock model is called with for the whole batch."""
        parts = {name: joined([part[name] for part in batch.parts]) for name in (batch.parts or [{}])[0]}
        return batch.inputs | parts


@functools.cache
def lmm_of(kind: str) -> Lmm:
    made = tiny(kind)
    return Lmm(made.model, made.processor, kind)


@functools.cache
def case_of(name: str) -> Case:
    return Case(name)


# -- skips, defined by hooks -----------------------------------------------------------------------------------------


def first(value: Any) -> Tensor:
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


def like(value: Any, x: Tensor) -> Any:
    return (x, *value[1:]) if isinstance(value, tuple) else x


def added_by(block: Any, part: str) -> Any:
    """The module whose output the block adds to the stream: the norm behind the part, where there is one."""
    names = dict(block.named_children())
    sandwich = "pre_feedforward_layernorm" in names
    if part == "ffn":
        return names["post_feedforward_layernorm" if sandwich else "mlp"]
    return names["post_attention_layernorm" if sandwich else "self_attn"]


@contextmanager
def skipped(blocks: Sequence[Any], part: str, percept_BS: Tensor) -> Iterator[None]:
    """In these blocks the part adds nothing to the stream of percepts; computed all the same."""

    def here(x: Tensor) -> Tensor:
        """(B, S, 1) of the pass: the prompt repeated for beams, tokens behind it."""
        chosen = percept_BS.repeat_interleave(len(x) // len(percept_BS), 0)
        if x.shape[1] < chosen.shape[1]:
            return x.new_zeros(*x.shape[:2], 1, dtype=torch.bool)
        return torch.nn.functional.pad(chosen, (0, x.shape[1] - chosen.shape[1]))[..., None]

    def nothing(_module: Any, _args: Any, output: Any) -> Any:
        return like(output, torch.where(here(first(output)), 0, first(output)))

    def unchanged(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return like(output, torch.where(here(x), x, first(output)))

    with ExitStack() as stack:
        for block in blocks:
            if part == "block":
                handle = block.register_forward_hook(unchanged, with_kwargs=True)
            else:
                handle = added_by(block, part).register_forward_hook(nothing)
            stack.callback(handle.remove)
        yield


@contextmanager
def written(whole: Any) -> Iterator[list[Tensor]]:
    """The ids that `generate` gives while this is open, of each call."""
    found: list[Tensor] = []
    before: Callable[..., Any] = whole.generate

    def generate(**inputs: Any) -> Any:
        found.append(before(**inputs))
        return found[-1]

    whole.generate = generate
    try:
        yield found
    finally:
        del whole.generate


def stretched(case: Case, batch: LmmBatch, ids_BT: Tensor) -> LmmBatch:
    """A prompt-only batch with tokens behind it, as decoding sees them."""
    inputs = dict(batch.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids_BT], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(ids_BT)], 1)
    for name, value in (("token_type_ids", case.lmm.kind.answer_type), ("mm_token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(ids_BT, value)], 1)
    roles_BS = torch.cat([batch.roles_BS, torch.full_like(ids_BT, int(Role.GENERATED))], 1)
    labels_BS = torch.cat([batch.labels_BS, torch.full_like(ids_BT, -100)], 1)
    return LmmBatch(batch.samples, inputs, roles_BS, labels_BS, batch.parts)
