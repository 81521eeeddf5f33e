"""What is refused of a run's samples before anything is trained: mistakes of data that show after hours otherwise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.media import Clip, spaced
from ima.core.types import Sample
from ima.data.collate import Collate, LiveMediaInputs, NoMediaInputs
from ima.data.feature_cache import read_media
from ima.models.llm.positions import too_long
from ima.pipeline.parts import Parts, TaskStream
from ima.pipeline.predictions import NUM_SHOWN, varied

NUM_LOOKED_AT = 8  # frames of a clip
NUM_LONGEST = 256  # texts of a part that are tokenised to see whether they fit
NUM_FRAME = 64  # tokens that a prompt or a template may put around the sample's own text


@dataclasses.dataclass
class PreparedSamples:
    """`train` is empty in an evaluation; `skipped`: split -> number of samples left out."""

    train: list[Sample]
    val: list[Sample]
    tracks: dict[str, list[Sample]]
    controls: dict[str, list[Sample]]
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)


def check_lengths(parts: Parts, stream: TaskStream, shown: PreparedSamples) -> None:
    """Raises UserError naming a sample that needs more positions than the LLM has. Only texts that could be too long
    are tokenised, and of many the longest ones; the passes themselves check all."""
    limit = parts.llm.num_positions
    if limit is None:
        return
    per_medium = stream.channel.adapter.num_tokens or stream.channel.encoder.num_tokens
    learnt = stream.collate(parts.llm, NoMediaInputs())
    for sample in longest(itertools.chain(shown.train, shown.val), limit, per_medium):
        check_length(parts, learnt, sample, per_medium, 0)
    asked, new = stream.collate(parts.llm, NoMediaInputs(), answers=False), stream.task.max_new_tokens
    for sample in longest(itertools.chain(*shown.tracks.values()), limit - new, per_medium):
        if not stream.task.candidates_for(sample):
            check_length(parts, asked, sample, per_medium, new)


def check_length(parts: Parts, collate: Collate, sample: Sample, per_medium: int, new: int) -> None:
    limit, num_percepts = parts.llm.num_positions, per_medium * len(sample.media_samples)
    assert limit is not None
    num_text = len(collate.lay(sample, 0).ids)
    if num_text + num_percepts + new > limit:
        raise too_long(parts.llm.name, sample.id, num_text, num_percepts, new, limit)


def longest(samples: Iterable[Sample], limit: int, per_medium: int) -> list[Sample]:
    """Those that may need more than `limit` positions (a token is at least a byte), the longest first."""
    sizes = [(text_bytes(sample) + NUM_FRAME + per_medium * len(sample.media_samples), sample) for sample in samples]
    return [sample for size, sample in sorted(sizes, key=lambda item: -item[0])[:NUM_LONGEST] if size > limit]


def text_bytes(sample: Sample) -> int:
    if sample.turns:
        return sum(len(text.encode("utf-8", "surrogatepass")) for _, text in sample.turns)
    texts = [len(text.encode("utf-8", "surrogatepass")) for text in sample.references]
    return len(sample.question.encode("utf-8", "surrogatepass")) + max(texts, default=0)


def check_media(parts: Parts, shown: Sequence[PreparedSamples]) -> None:
    """Raises UserError where an adapter would see no medium in the whole training and nothing else learns either."""
    if parts.llm.trains != "none":
        return
    seen: dict[str, bool] = {}
    for stream, one in zip(parts.streams, shown, strict=True):
        name = stream.channel.name
        seen[name] = seen.get(name, False) or any(sample.media_samples for sample in one.train)
    for stream in parts.streams:
        if not seen[stream.channel.name]:
            raise UserError(
                f"{stream.key}: no training sample shows a medium and the LLM is frozen, so nothing would be learnt; "
                "add samples with media, or train the LLM (llm.train=lora)"
            )


def check_shown_media(stream: TaskStream, shown: PreparedSamples) -> None:
    """Reads the media that the run will show at its end, where it has not read them for its features (noise, live
    media): what is missing stops the run now, not after its training."""
    tracks = {**shown.tracks, **shown.controls}
    chosen = [samples[place] for samples in tracks.values() for place in varied(samples, NUM_SHOWN)]
    media = {medium.medium_key: medium for sample in chosen for medium in sample.media_samples[:1]}
    if isinstance(stream.percepts, LiveMediaInputs):
        measured = itertools.chain(shown.val, *tracks.values())
        media |= {medium.medium_key: medium for sample in measured for medium in sample.media_samples}
    t = stream.loader
    for _ in read_media(stream.source, list(media.values()), look_of(stream), t.eval_batch_size, t.num_workers, {}):
        pass


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


def look_of(stream: TaskStream) -> Look:
    return Look(stream.channel.encoder.preprocess if isinstance(stream.percepts, LiveMediaInputs) else None)
