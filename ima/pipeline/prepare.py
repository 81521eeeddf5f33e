"""What a run shows to the model, made ready: samples by part, features computed, what cannot be read left out.

Where the source's policy is `on_bad_medium: skip`, every run about it leaves out the same samples, whether it reads
features, live media or noise, so that a run and its control are compared on the same ones.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ima.core.commands import name_of
from ima.core.errors import UserError
from ima.core.progress import progress
from ima.core.types import Sample
from ima.data.collate import NoMediaInputs
from ima.data.feature_cache import read_media
from ima.interventions.base import Setting
from ima.interventions.plan import Plan, mean_tokens, plan_facts, plan_of, plan_table
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.compiled import CompiledBlocks
from ima.models.llm.frozen import FrozenLLM
from ima.pipeline.calibration import CalibrationTask
from ima.pipeline.data_checks import PreparedSamples, check_lengths, check_media, check_shown_media, look_of
from ima.pipeline.parts import Parts, TaskStream

NUM_TYPICAL = 64  # samples whose prompts are counted


def make_ready(parts: Parts, training: bool, report: bool = True) -> list[PreparedSamples]:
    """What each stream shows. `training`: with the training split. `report`: say on the terminal what was left out."""
    check_splits(parts)
    shown = [stream_ready(parts, stream, training, report) for stream in parts.streams]
    if training:
        check_media(parts, shown)
    for stream, one in zip(parts.streams, shown, strict=True):
        check_lengths(parts, stream, one)
        if stream.store is None and getattr(stream.source, "on_bad_medium", "skip") != "skip":
            check_shown_media(stream, one)
    return shown


def check_splits(parts: Parts) -> None:
    """An entry may lack a split that others have; one that no entry has is a mistake (val alone is everyone's)."""
    there = sorted({split for stream in parts.streams for split in stream.source.splits})
    asked = [("alignment.split", measured_split(parts))] if measured_split(parts) != "val" else []
    asked += [("evaluation.tracks", track) for track in parts.evaluation.tracks or ()]
    for key, split in asked:
        if split not in there and parts.streams[0].name:
            raise UserError(f"{key}: no entry of the mixture has a split {split!r}; they have {', '.join(there)}")


def stream_ready(parts: Parts, stream: TaskStream, training: bool, report: bool) -> PreparedSamples:
    loader, source = parts.loader, stream.source
    split = measured_split(parts)
    if training and "train" not in source.splits:
        raise UserError(
            f"{stream.key}: {source.name} has no training split; measure a trained adapter on it with "
            f"{name_of('evaluate')} checkpoint=outputs/<run> data=..."
        )
    val = stream.samples(split, parts.evaluation.num_samples) if split in source.splits or not stream.name else []
    prepared = PreparedSamples(stream.all_samples("train") if training else [], val, stream.tracks(), stream.controls())
    everything = [
        *prepared.train,
        *prepared.val,
        *itertools.chain(*prepared.tracks.values(), *prepared.controls.values()),
    ]
    media = [medium for sample in everything for medium in sample.media_samples]
    bad: dict[str, str] = {}
    if stream.store is not None:
        unique = list({sample.id: sample for sample in media}.values())
        stream.store.ensure(unique, parts.llm.device, loader.eval_batch_size, loader.num_workers)
        bad = stream.store.bad
    elif getattr(source, "on_bad_medium", None) == "skip":
        bad = find_unreadable(parts, stream, media)
    return without(prepared, bad, split, stream, report) if bad else prepared


def find_unreadable(parts: Parts, stream: TaskStream, samples: Iterable[Sample]) -> dict[str, str]:
    """Read each medium once as the run will; medium key -> why it cannot be read."""
    unique = list({sample.medium_key: sample for sample in samples}.values())
    look = look_of(stream)
    bad: dict[str, str] = {}
    loader = parts.loader
    with progress(len(unique), f"look at {stream.source.name}", "medium") as advance:
        for num, _, _ in read_media(stream.source, unique, look, loader.eval_batch_size, loader.num_workers, bad):
            advance(num)
    return bad


def without(
    prepared: PreparedSamples, bad: dict[str, str], split: str, stream: TaskStream, report: bool
) -> PreparedSamples:
    """`prepared` without the samples of bad media. Raises UserError where nothing is left of a part.

    A medium and its spoilt twins are left out together, so that the rows of a control stay paired with its track's."""
    everything = itertools.chain(prepared.train, prepared.val, *prepared.tracks.values(), *prepared.controls.values())
    media = {medium.medium_key: medium for sample in everything for medium in sample.media_samples}
    reasons = {unspoilt(media[key]): reason for key, reason in bad.items() if key in media}

    def kept(samples: Sequence[Sample], name: str) -> list[Sample]:
        good = [sample for sample in samples if not any(unspoilt(medium) in reasons for medium in sample.media_samples)]
        if len(good) < len(samples):
            skipped[name] = max(skipped.get(name, 0), len(samples) - len(good))
            keys = (unspoilt(medium) for sample in samples for medium in sample.media_samples)
            first.append(next(reasons[key] for key in keys if key in reasons))
        if samples and not good:
            raise UserError(
                f"{stream.key}: none of the {len(samples)} media of {name!r} can be read; the first: {first[-1]}"
            )
        return good

    skipped: dict[str, int] = {}
    first: list[str] = []
    out = PreparedSamples(
        kept(prepared.train, "train"),
        kept(prepared.val, split),
        {name: kept(samples, name) for name, samples in prepared.tracks.items()},
        {name: kept(samples, name) for name, samples in prepared.controls.items()},
        skipped,
    )
    if report and skipped:
        counts = ", ".join(f"{num} of {name}" for name, num in skipped.items())
        print(
            f"warning: {stream.key}.on_bad_medium=skip left out samples: {counts}; the first: {first[0]}",
            file=sys.stderr,
        )
    return out


def unspoilt(medium: Sample) -> str:
    """The key of what a medium shows, the same for its spoilt twins."""
    return str(medium.facts.get("control_of", medium.medium_key))


def measured_split(parts: Parts) -> str:
    return parts.alignment.split if parts.alignment else "val"


def fast(parts: Parts, training: bool) -> AbstractContextManager[object]:
    """Blocks compiled (`llm.compile`), or as single autograd nodes where they are of a kind that is understood
    (`llm.fast`); entered after interventions. For a training, or for measuring alone."""
    if parts.llm.compiles(training):
        return CompiledBlocks(parts.llm, parts.llm.activation_budget)
    return accelerate(parts.llm.model) if parts.llm.fast and parts.llm.trains == "none" else nullcontext()


def run_facts(parts: Parts, prepared: Sequence[PreparedSamples], plan: Plan) -> dict[str, Any]:
    """What there is to know of a run beside its config; of a mixture, `entries` with what each one has of its own."""
    skipped: dict[str, int] = {}
    for stream, one in zip(parts.streams, prepared, strict=True):
        skipped |= {(f"{stream.name}/{key}" if stream.name else key): num for key, num in one.skipped.items()}
    of_streams = [stream_facts(stream) for stream in parts.streams]
    facts: dict[str, Any] = {"skipped_media": skipped} if skipped else {}
    facts |= {
        **llm_facts(parts.llm),
        **of_streams[0],
        "num_trainable": sum(p.numel() for p in parts.trained()),
        "num_frozen": sum(p.numel() for p in parts.llm.parameters() if not p.requires_grad),
        "device": str(parts.llm.device),
        "feature_cache_bytes": sum(stream.store.num_bytes() for stream in parts.streams if stream.store),
        "plan": plan_facts(plan),
    }
    if parts.llm.trains != "none":
        facts["llm_train"] = parts.llm.trains
    if parts.streams[0].name:
        facts["entries"] = {stream.name: one for stream, one in zip(parts.streams, of_streams, strict=True)}
    return facts


def llm_facts(llm: FrozenLLM) -> dict[str, Any]:
    return {
        "llm": llm.name,
        "llm_dtype": str(llm.dtype).removeprefix("torch."),
        "llm_weights": llm.weights_from,
        "llm_width": llm.width,
        "llm_blocks": llm.num_blocks,
    }


def stream_facts(stream: TaskStream) -> dict[str, Any]:
    encoder = stream.channel.encoder
    return {
        "encoder": type(encoder).__name__,
        "encoder_fingerprint": encoder.fingerprint,
        "encoder_dim": encoder.dim,
        "encoder_tokens": encoder.num_tokens,
        "adapter": type(stream.channel.adapter).__name__,
        **task_facts(stream),
    }


def task_facts(stream: TaskStream) -> dict[str, Any]:
    """What is asked of which data."""
    source = stream.source
    return {
        "source": source.name,
        "modality": source.modality,
        "task": stream.task.name,
        "headline": stream.task.headline,
        "source_fingerprint": source.fingerprint,
        "num_samples": {split: len(stream.all_samples(split)) for split in source.splits},
    }


def print_plan(llm: FrozenLLM, plan: Plan) -> None:
    """On the terminal, where something is planned."""
    if plan.interventions:
        print(plan_table(llm, plan))


def resolve_plan(
    parts: Parts, prepared: Sequence[PreparedSamples], llm: dict[str, Any], run: Path | None = None
) -> Plan:
    """Let the interventions find what they need, then count what they do for a typical prompt. llm: its node of the
    config; run: the folder of the run that is evaluated."""
    tokens = typical_tokens(parts, prepared)
    parts.resolve(Setting(tokens, run, llm, CalibrationTask))
    return plan_of(parts.llm, parts.acting, tokens)


def typical_tokens(parts: Parts, prepared: Sequence[PreparedSamples]) -> dict[str, int]:
    """Tokens of each role in a typical prompt (of a mixture: of its first entry)."""
    stream, one = parts.streams[0], prepared[0]
    collate = stream.collate(parts.llm, NoMediaInputs(), answers=False)
    samples = one.val or next(iter(one.tracks.values()), [])
    roles = [collate.text(sample, 0)[1] for sample in samples[:NUM_TYPICAL]]
    return mean_tokens(roles, stream.channel.adapter.num_tokens or stream.channel.encoder.num_tokens)
