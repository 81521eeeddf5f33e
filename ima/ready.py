"""What a run shows to the model, made ready: samples by part, features computed, what cannot be read left out.

Where the source's policy is `on_bad_medium: skip`, every run about it leaves out the same samples, whether it reads
features, live media or noise, so that a run and its control are compared on the same ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ima.data.collate import Collate, LivePercepts, NoPercepts
from ima.data.features import read_media
from ima.errors import UserError
from ima.interventions.plan import mean_tokens, plan_facts, plan_table
from ima.llm.fast import accelerate
from ima.media import Clip, spaced
from ima.parts import Parts, device_of
from ima.progress import progress
from ima.types import Sample

NUM_LOOKED_AT = 8  # frames of a clip
NUM_TYPICAL = 64  # samples whose prompts are counted


@dataclasses.dataclass
class Shown:
    """`train` is empty in an evaluation; `skipped`: split -> number of samples left out."""

    train: list[Sample]
    val: list[Sample]
    tracks: dict[str, list[Sample]]
    controls: dict[str, list[Sample]]
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)


def make_ready(parts: Parts, training: bool, report: bool = True) -> Shown:
    """`training`: with the training split. `report`: say on the terminal what was left out."""
    t = parts.training
    split = measured_split(parts)
    if training and "train" not in parts.source.splits:
        raise UserError(
            f"data: {parts.source.name} has no training split; measure a trained adapter on it with "
            f"evaluate.py checkpoint=outputs/<run> data=..."
        )
    shown = Shown(
        parts.samples("train") if training else [], parts.samples(split, t.eval_samples), parts.tracks(),
        parts.controls(),
    )  # fmt: skip
    everything = [*shown.train, *shown.val, *itertools.chain(*shown.tracks.values(), *shown.controls.values())]
    bad: dict[str, str] = {}
    if parts.store is not None:
        unique = list({sample.id: sample for sample in everything}.values())
        parts.store.ensure(unique, device_of(t), t.eval_batch_size, t.num_workers)
        bad = parts.store.bad
    elif getattr(parts.source, "on_bad_medium", None) == "skip":
        bad = screen(parts, everything)
    return without(shown, bad, split, parts, report) if bad else shown


def screen(parts: Parts, samples: Iterable[Sample]) -> dict[str, str]:
    """Read each medium once as the run will; medium key -> why it cannot be read."""
    unique = list({sample.medium_key: sample for sample in samples}.values())
    look = Look(parts.encoder.preprocess if isinstance(parts.percepts, LivePercepts) else None)
    bad: dict[str, str] = {}
    t = parts.training
    with progress(len(unique), f"look at {parts.source.name}", "medium") as advance:
        for num, _, _ in read_media(parts.source, unique, look, t.eval_batch_size, t.num_workers, bad):
            advance(num)
    return bad


class Look:
    """Decodes a medium and keeps nothing: as the encoder would, or whole pictures and sounds and some frames of clips
    (which are read when they are asked for)."""

    def __init__(self, preprocess: Callable[[Any], Tensor] | None) -> None:
        self.preprocess = preprocess

    def __call__(self, medium: Any) -> Tensor:
        if self.preprocess is not None:
            self.preprocess(medium)
        elif isinstance(medium, Clip):
            medium.frames(spaced(medium.num_frames, NUM_LOOKED_AT))
        return torch.empty(0)


def without(shown: Shown, bad: dict[str, str], split: str, parts: Parts, report: bool) -> Shown:
    """`shown` without the samples of bad media. Raises UserError where nothing is left of a part."""

    def kept(samples: Sequence[Sample], name: str) -> list[Sample]:
        good = [sample for sample in samples if sample.medium_key not in bad]
        if len(good) < len(samples):
            skipped[name] = max(skipped.get(name, 0), len(samples) - len(good))
            first.append(next(bad[sample.medium_key] for sample in samples if sample.medium_key in bad))
        if samples and not good:
            raise UserError(f"data: none of the {len(samples)} media of {name!r} can be read; the first: {first[-1]}")
        return good

    skipped: dict[str, int] = {}
    first: list[str] = []
    out = Shown(
        kept(shown.train, "train"),
        kept(shown.val, split),
        {name: kept(samples, name) for name, samples in shown.tracks.items()},
        {name: kept(samples, name) for name, samples in shown.controls.items()},
        skipped,
    )
    if report and skipped:
        counts = ", ".join(f"{num} of {name}" for name, num in skipped.items())
        print(f"warning: data.on_bad_medium=skip left out samples: {counts}; the first: {first[0]}", file=sys.stderr)
    return out


def measured_split(parts: Parts) -> str:
    return parts.alignment.split if parts.alignment else "val"


def fast(parts: Parts) -> AbstractContextManager[object]:
    """Blocks as single autograd nodes where they are of a kind that is understood; entered after interventions."""
    return accelerate(parts.llm.model) if parts.training.fast else nullcontext()


def run_facts(parts: Parts, shown: Shown) -> dict[str, Any]:
    skipped = {"skipped_media": shown.skipped} if shown.skipped else {}
    return skipped | {
        "llm": parts.llm.name,
        "llm_dtype": str(parts.llm.dtype).removeprefix("torch."),
        "llm_width": parts.llm.width,
        "llm_blocks": parts.llm.num_blocks,
        "encoder": type(parts.encoder).__name__,
        "encoder_fingerprint": parts.encoder.fingerprint,
        "encoder_dim": parts.encoder.dim,
        "encoder_tokens": parts.encoder.num_tokens,
        "adapter": type(parts.adapter).__name__,
        "num_trainable": sum(p.numel() for p in parts.adapter.parameters()),
        "num_frozen": sum(p.numel() for p in parts.llm.parameters()),
        "source": parts.source.name,
        "headline": parts.task.headline,
        "source_fingerprint": parts.source.fingerprint,
        "num_samples": {split: len(parts.source.samples(split)) for split in parts.source.splits},
        "device": str(device_of(parts.training)),
        "feature_cache_bytes": parts.store.num_bytes() if parts.store else 0,
        "plan": plan_facts(parts.llm, parts.interventions, typical_tokens(parts, shown)),
    }


def say_plan(parts: Parts, shown: Shown) -> None:
    """On the terminal, where there is one."""
    if parts.interventions:
        print(plan_table(parts.llm, parts.interventions, typical_tokens(parts, shown)))


def typical_tokens(parts: Parts, shown: Shown) -> dict[str, int]:
    """Tokens of each role in a typical prompt."""
    collate = Collate(parts.task, parts.llm, NoPercepts(), answers=False)
    roles = [collate.text(sample, 0)[1] for sample in shown.val[:NUM_TYPICAL]]
    return mean_tokens(roles, parts.adapter.num_tokens or parts.encoder.num_tokens)
