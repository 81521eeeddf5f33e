"""What is refused about a run's samples before anything is trained: mistakes of data that show after hours otherwise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

from ima.core.types import Sample
from ima.data.collate import Collate, NoPercepts
from ima.models.llm.positions import too_long
from ima.pipeline.parts import Parts, Stream

NUM_LONGEST = 256  # texts of a part that are tokenised to see whether they fit
NUM_FRAME = 64  # tokens that a prompt or a template may put around the sample's own text


@dataclasses.dataclass
class Shown:
    """`train` is empty in an evaluation; `skipped`: split -> number of samples left out."""

    train: list[Sample]
    val: list[Sample]
    tracks: dict[str, list[Sample]]
    controls: dict[str, list[Sample]]
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)


def check_lengths(parts: Parts, stream: Stream, shown: Shown) -> None:
    """Raises UserError naming a sample that needs more positions than the LLM has. Only texts that could be too long
    are tokenised, and of many the longest ones; the passes themselves check all."""
    limit = parts.llm.num_positions
    if limit is None:
        return
    per_medium = stream.channel.adapter.num_tokens or stream.channel.encoder.num_tokens
    learnt = stream.collate(parts.llm, NoPercepts())
    for sample in longest(itertools.chain(shown.train, shown.val), limit, per_medium):
        check_length(parts, learnt, sample, per_medium, 0)
    asked, new = stream.collate(parts.llm, NoPercepts(), answers=False), stream.task.max_new_tokens
    for sample in longest(itertools.chain(*shown.tracks.values()), limit - new, per_medium):
        if not stream.task.candidates_for(sample):
            check_length(parts, asked, sample, per_medium, new)


def check_length(parts: Parts, collate: Collate, sample: Sample, per_medium: int, new: int) -> None:
    limit, num_percepts = parts.llm.num_positions, per_medium * len(sample.shown)
    assert limit is not None
    num_text = len(collate.lay(sample, 0).ids)
    if num_text + num_percepts + new > limit:
        raise too_long(parts.llm.name, sample.id, num_text, num_percepts, new, limit)


def longest(samples: Iterable[Sample], limit: int, per_medium: int) -> list[Sample]:
    """Those that may need more than `limit` positions (a token is at least a byte), the longest first."""
    sizes = [(text_bytes(sample) + NUM_FRAME + per_medium * len(sample.shown), sample) for sample in samples]
    return [sample for size, sample in sorted(sizes, key=lambda item: -item[0])[:NUM_LONGEST] if size > limit]


def text_bytes(sample: Sample) -> int:
    if sample.turns:
        return sum(len(text.encode("utf-8", "surrogatepass")) for _, text in sample.turns)
    texts = [len(text.encode("utf-8", "surrogatepass")) for text in sample.references]
    return len(sample.question.encode("utf-8", "surrogatepass")) + max(texts, default=0)
