"""A first look at a source before anything is trained: how much there is, how long texts and media are, what cannot be
read, what is there twice, and what is on both sides of a split. Needs no model; texts are counted by a function.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ima.core.media import Medium, Sound
from ima.core.progress import progress
from ima.core.types import Sample
from ima.data.source import MediumError, Source

NUM_SHOWN = 6  # samples of a split that are shown
NUM_NAMED = 3  # of what is wrong
OFTEN = 0.05  # a text that is such a share of a split is told
LONGEST = 60  # letters of it
UNITS = {"image": ("width", "height"), "video": ("seconds", "frames"), "audio": ("seconds", "rate")}


@dataclasses.dataclass(frozen=True)
class Spread:
    """The least, the middle, the 95th percentile and the most of some numbers."""

    low: float
    median: float
    p95: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(*np.percentile(values, [0, 50, 95, 100]).tolist()) if len(values) else None


@dataclasses.dataclass
class SplitLook:
    """groups: independent units (`cluster`). tokens: of references and of questions. sizes: UNITS of the media that
    were looked at. bad: medium -> why it cannot be read. twice: pairs of media that are the same."""

    name: str
    num_samples: int
    num_media: int
    num_groups: int
    texts: Spread | None
    questions: Spread | None
    sizes: dict[str, Spread | None] = dataclasses.field(default_factory=dict)
    num_looked_at: int = 0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    twice: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    shown: list[tuple[Sample, Medium | None]] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class FirstLook:
    """problems: what makes numbers wrong or stops a training; notes: what is good to know."""

    name: str
    modality: str
    unit: str
    splits: list[SplitLook]
    problems: list[str]
    notes: list[str]


def look_at(source: Source, count: Callable[[str], int], unit: str, num_media: int | None = 500) -> FirstLook:
    """count: the tokens of a text; unit: what it counts. num_media: at most so many media of a split are read, evenly
    chosen; None for all."""
    samples = {split: source.samples(split) for split in source.splits}
    media = {split: media_of(those) for split, those in samples.items()}
    looks, contents = [], {}
    for split, those in samples.items():
        look = look_at_texts(split, those, media[split], count)
        contents[split] = look_at_media(source, look, list(media[split].values()), num_media)
        look.shown = [(sample, readable(source, sample)) for sample in spread(those, NUM_SHOWN)]
        looks.append(look)
    places = Counter(key for found in media.values() for key in found)
    shared = {key for key, times in places.items() if times > 1}
    names = {name_of(one) for found in media.values() for key, one in found.items() if key in shared}
    problems = [line for look in looks for line in faults(look)]
    problems += both_sides(
        "media", {split: {key: name_of(found[key]) for key in found} for split, found in media.items()}
    )
    problems += both_sides(
        "media of the same content",
        {split: {digest: name for digest, name in found.items() if name not in names}
         for split, found in contents.items()},
    )  # fmt: skip
    groups = {split: [one.cluster for one in those if one.cluster and one.medium_key not in shared]
              for split, those in samples.items()}  # fmt: skip
    notes = [*both_sides("groups", {split: {one: one for one in found} for split, found in groups.items()})]
    return FirstLook(source.name, source.modality, unit, looks, problems, [*notes, *said_before(samples)])


def media_of(samples: Iterable[Sample]) -> dict[str, Sample]:
    return {medium.medium_key: medium for sample in samples for medium in sample.media_samples}


def look_at_texts(
    split: str, samples: Sequence[Sample], media: dict[str, Sample], count: Callable[[str], int]
) -> SplitLook:
    return SplitLook(
        split,
        len(samples),
        len(media),
        len({sample.cluster or sample.id for sample in samples}),
        Spread.of([count(text) for sample in samples for text in sample.references]),
        Spread.of([count(sample.question) for sample in samples if sample.question]),
    )


def look_at_media(source: Source, look: SplitLook, media: Sequence[Sample], num: int | None) -> dict[str, str]:
    """Reads media; fills in `look`. Digest of what each shows -> its name."""
    chosen = spread(media, num)
    look.num_looked_at = len(chosen)
    found: dict[str, list[float]] = {unit: [] for unit in UNITS.get(source.modality, ())}
    digests: dict[str, str] = {}
    with progress(len(chosen), f"look at {look.name}", "medium") as advance:
        for sample in chosen:
            advance(1)
            name = name_of(sample)
            try:
                medium = source.medium(sample)
                values, digest = measured(medium)
            except MediumError as error:
                look.bad[name] = str(error)
                continue
            for unit, value in zip(found, values, strict=True):
                found[unit].append(value)
            if digest in digests:
                look.twice.append((digests[digest], name))
            digests.setdefault(digest, name)
    look.sizes = {unit: Spread.of(values) for unit, values in found.items()}
    look.seconds = found.get("seconds", [])
    return digests


def measured(medium: Medium) -> tuple[tuple[float, float], str]:
    """Its UNITS, and a digest of what it shows (of a clip: of its length and three frames)."""
    if isinstance(medium, Sound):
        return (medium.seconds, medium.rate), digest_of(medium.wave.tobytes(), medium.rate)
    if isinstance(medium, Image.Image):
        return medium.size, digest_of(medium.tobytes(), medium.size)
    num = medium.num_frames
    frames = medium.frames(sorted({0, num // 2, num - 1}))
    return (num / medium.fps, num), digest_of(b"".join(frame.tobytes() for frame in frames), num)


def digest_of(data: bytes, more: Any) -> str:
    return hashlib.sha256(data + repr(more).encode()).hexdigest()


def readable(source: Source, sample: Sample) -> Medium | None:
    try:
        return source.medium(sample.media_samples[0]) if sample.media_samples else None
    except MediumError:
        return None


def name_of(medium: Sample) -> str:
    return str(medium.facts.get("file") or medium.medium_key)


def spread(items: Sequence[Any], num: int | None) -> list[Any]:
    """`num` of them, evenly chosen."""
    if num is None or num >= len(items):
        return list(items)
    return [items[index * len(items) // num] for index in range(num)]


# -- what is said of it ------------------------------------------------------------------------------------------------


def faults(look: SplitLook) -> Iterator[str]:
    if look.bad:
        reasons = "; ".join(list(look.bad.values())[:NUM_NAMED])
        yield f"{look.name}: {len(look.bad)} of {look.num_looked_at} media cannot be read: {reasons}{more(look.bad)}"
    if look.twice:
        pairs = ", ".join(" = ".join(pair) for pair in look.twice[:NUM_NAMED])
        yield f"{look.name}: {len(look.twice)} media are there twice under two names: {pairs}{more(look.twice)}"


def more(items: Any) -> str:
    return f" and {len(items) - NUM_NAMED} more" if len(items) > NUM_NAMED else ""


def both_sides(what: str, found: dict[str, dict[str, str]]) -> Iterator[str]:
    """Lines about what two splits share. found: split -> key -> name."""
    for first, second in itertools.combinations(found, 2):
        if keys := [key for key in found[first] if key in found[second]]:
            shown = ", ".join(found[first][key] for key in keys[:NUM_NAMED])
            yield f"{first} and {second} share {len(keys)} {what}: {shown}{more(keys)}"


def said_before(samples: dict[str, list[Sample]]) -> Iterator[str]:
    """How much of a split is said word for word in train: what learning by heart would get."""
    if "train" not in samples:
        return
    known = set(texts_of(samples["train"]))
    for split, those in samples.items():
        texts = list(texts_of(those))
        if split != "train" and texts:
            share = sum(text in known for text in texts) / len(texts)
            common, times = Counter(texts).most_common(1)[0]
            often = f"; the most frequent, {short(' '.join(common).strip())!r}, is {times / len(texts):.0%} of them"
            is_said = len(texts) > 1 and times / len(texts) >= OFTEN
            yield f"{split}: {share:.0%} of the texts are in train word for word{often if is_said else ''}"


def short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def texts_of(samples: Iterable[Sample]) -> Iterator[tuple[str, str]]:
    for sample in samples:
        for text in sample.references:
            yield sample.question, text
