"""The words of the project as data: roles, samples, batches, rows.

Everything else passes these around. Roles are made when a sequence is built and never guessed afterwards; a row is
one measured number with all that is needed to read it alone.

Shape letters: B batch, N encoder tokens, E encoder width, K perceptual (adapter) tokens, T text tokens, S = K + T
sequence, D LLM width, F inner width of an FFN, L blocks, V vocabulary, G jackknife groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROW_SCHEMA = 1
MEDIUM = "\ufffc"  # stands in a text for a medium (Unicode's object replacement character)
Turn = tuple[str, str]  # who speaks (system, user, assistant), and what is said


class Role(IntEnum):
    """What a position of a sequence is. PAD never enters a statistic, an attention score or a metric."""

    PAD = 0
    PERCEPT = 1
    PROMPT = 2
    ANSWER = 3
    GENERATED = 4
    SPECIAL = 5
    SOFT = 6


class Site(StrEnum):
    """Places inside a block, the same names for every LLM family."""

    RESID_PRE = "resid_pre"
    LN1 = "ln1"
    SA = "sa"
    RESID_MID = "resid_mid"
    LN2 = "ln2"
    FC1 = "fc1"
    FC2 = "fc2"
    RESID_POST = "resid_post"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example of a source, without its medium (the source renders or reads that on demand).

    `references` are the true texts for scoring and, in training, to draw the target from. `facts` is the ground truth
    that a metric may look at. `cluster` is the unit of resampling for intervals: samples that share it are not
    independent (the stamp for StampWorld, the image for COCO). `weights`: how often training draws each reference
    (the score of an annotator's answer); empty for equally often. `medium_id`: what samples share that are about one
    picture, sound or clip, so that it is encoded once; empty where the medium is the sample's own.

    `media`: samples that stand for the media of one that has not exactly one of its own (several pictures; none, for
    text alone). `turns`: a conversation, (who, text) with MEDIUM where a medium stands. `entry`: the mixture's entry
    that it comes from; empty in a run of one task.
    """

    id: str
    split: str
    track: str
    modality: str
    references: tuple[str, ...]
    question: str = ""
    cluster: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: tuple[float, ...] = ()
    medium_id: str = ""
    media: tuple[Sample, ...] | None = None
    turns: tuple[Turn, ...] = ()
    entry: str = ""

    @property
    def media_samples(self) -> tuple[Sample, ...]:
        """Its media in the order in which they are shown: as a rule itself."""
        return (self,) if self.media is None else self.media

    @property
    def medium_key(self) -> str:
        """What features of the medium are kept under."""
        return self.medium_id or self.id


@dataclasses.dataclass
class MediaGroup:
    """M media of a batch that go through one channel (an encoder with its adapter), as features or as preprocessed
    media that the encoder still has to see.

    rows: the sample of each; places: the column of ids_BT before which its tokens stand. Media of one sample and place
    stand in their order here.
    """

    channel: str
    rows: list[int]
    places: list[int]
    features_MNE: Tensor | None = None
    media: Tensor | None = None

    def of_rows(self, start: int, stop: int) -> MediaGroup | None:
        """Those of the samples start .. stop - 1, which are then counted from 0."""
        chosen = [index for index, row in enumerate(self.rows) if start <= row < stop]
        if not chosen:
            return None
        features, media = (None if x is None else x[chosen] for x in (self.features_MNE, self.media))
        rows, places = [self.rows[i] - start for i in chosen], [self.places[i] for i in chosen]
        return MediaGroup(self.channel, rows, places, features, media)

    def to(self, device: Any) -> MediaGroup:
        moved = (None if x is None else x.to(device, non_blocking=True) for x in (self.features_MNE, self.media))
        return MediaGroup(self.channel, self.rows, self.places, *moved)


@dataclasses.dataclass(frozen=True)
class Step:
    """What the passes of one optimizer step hold together, of this rank: labelled tokens, channels that have media."""

    num_labels: int
    channels: frozenset[str]


NO_TENSORS = ("samples", "groups", "step", "num_labels", "lengths")


@dataclasses.dataclass
class Batch:
    """B samples as text, padded on the right, and their media.

    ids_BT, roles_BT: token ids and their roles; labels_BT: the ids to predict at these positions, -100 where nothing
    is supervised. Media: features_BNE or media (preprocessed, B of them) where every sample shows one, before its
    text, through the run's only channel; `groups` in all other cases; none of them where there is text alone. `step`:
    the step that this batch is a pass of, where a loader says it. num_labels, lengths: how many tokens are supervised,
    and how many each text has, known without a look at the device since `to` has moved the batch there.
    """

    samples: list[Sample]
    ids_BT: Tensor
    roles_BT: Tensor
    labels_BT: Tensor
    features_BNE: Tensor | None = None
    media: Tensor | None = None
    groups: list[MediaGroup] = dataclasses.field(default_factory=list)
    step: Step | None = None
    num_labels: int | None = None
    lengths: list[int] | None = None

    def to(self, device: Any) -> Batch:
        moved: dict[str, Any] = {k: value.to(device, non_blocking=True) for k, value in self._tensors().items()}
        known: dict[str, Any] = {"num_labels": self.num_labels, "lengths": self.lengths}
        if self.num_labels is None:
            known = {
                "num_labels": int((self.labels_BT != -100).sum()),
                "lengths": (self.roles_BT != Role.PAD).sum(1).tolist(),
            }
        return dataclasses.replace(self, **moved, **known, groups=[group.to(device) for group in self.groups])

    def media_groups(self) -> list[MediaGroup]:
        """All media, whichever way they are given."""
        if self.features_BNE is None and self.media is None:
            return self.groups
        return [MediaGroup("", list(range(len(self))), [0] * len(self), self.features_BNE, self.media)]

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` samples, text columns that are PAD for all of them cut off."""
        parts = []
        for start in range(0, len(self), size):
            part: dict[str, Any] = {k: value[start : start + size] for k, value in self._tensors().items()}
            length = int((part["roles_BT"] != Role.PAD).sum(1).max())
            part |= {name: part[name][:, :length] for name in ("ids_BT", "roles_BT", "labels_BT")}
            groups = [group.of_rows(start, start + size) for group in self.groups]
            part["groups"] = [group for group in groups if group is not None]
            part |= {"samples": self.samples[start : start + size], "num_labels": None, "lengths": None}
            parts.append(dataclasses.replace(self, **part))
        return parts

    def _tensors(self) -> dict[str, Tensor]:
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if name not in NO_TENSORS and value is not None}

    def __len__(self) -> int:
        return len(self.samples)


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of `rows.jsonl` (tidy: one value a row). Fields that do not apply are None.

    layer 0 is what enters the first block, layer l the output of block l, layer "final" = -1 the normed output.
    role: P perceptual, T textual (PROMPT and ANSWER), T.answer, T.prompt. value is NaN with `note` saying why where
    a statistic has nothing to stand on.
    """

    run: str
    score: str
    value: float
    step: int | None = None
    epoch: int | None = None
    split: str | None = None
    track: str | None = None
    task: str | None = None
    dataset_a: str | None = None
    dataset_b: str | None = None
    modality_a: str | None = None
    modality_b: str | None = None
    layer_a: int | None = None
    layer_b: int | None = None
    site: str | None = None
    role_a: str | None = None
    role_b: str | None = None
    variant: str | None = None
    se: float | None = None
    n: int | None = None
    note: str | None = None
    schema: int = ROW_SCHEMA


ROW_FIELDS = tuple(field.name for field in dataclasses.fields(Row))
