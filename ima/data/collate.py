"""Samples to batches: token ids with their roles and labels, and the media as features, pixels, noise or nothing.

Plain text is laid out [BOS] prompt answer EOS with all media in front; with a chat template (`llm.chat`) the template
decides, and media stand where the text places them. Perceptual tokens are put in later, when the adapter has made
them. Pieces are tokenised one by one, so that a role never shares a token with another and the prompt has the same ids
in training and in generation. Batches of a mixture are joined from samples that each entry lays out in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Batch, MediaGroup, Role, Sample
from ima.data.feature_cache import FeatureStore
from ima.data.source import Source
from ima.models.encoders.base import Encoder
from ima.models.encoders.controls import NoiseEncoder
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pieces import Before
from ima.tasks.base import Task

LossOn = Literal["answer", "text"]


class MediaInputs(Protocol):
    """Where a batch's perceptual input comes from. `epoch` is None in evaluation."""

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]: ...


class CachedMediaInputs:
    """Features from a store."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {"features_BNE": self.store.read(samples)}


class LiveMediaInputs:
    """Preprocessed media; the encoder runs in the step. The slow twin of the cache."""

    def __init__(self, source: Source, encoder: Encoder) -> None:
        self.source, self.preprocess = source, encoder.preprocess

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {"media": torch.stack([self.preprocess(self.source.medium(sample)) for sample in samples])}


class NoiseMediaInputs:
    """The noise control: fresh for every medium and epoch in training, fixed by the medium in evaluation."""

    def __init__(self, encoder: NoiseEncoder) -> None:
        self.encoder = encoder

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {"features_BNE": self.encoder.features([sample.medium_key for sample in samples], epoch)}


class NoMediaInputs:
    """The blind control: text only."""

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {}


class TokenizedSample(NamedTuple):
    """A sample's text: ids, roles and labels of equal length, and before which of them each medium stands."""

    ids: list[int]
    roles: list[int]
    labels: list[int]
    places: list[int]

    def add(self, piece: list[int], role: Role, supervised: bool) -> None:
        self.ids.extend(piece)
        self.roles.extend([int(role)] * len(piece))
        self.labels.extend(piece if supervised else [-100] * len(piece))


class Collate:
    """Callable for a DataLoader. `answers`: with the target (teacher-forced) or the prompt alone (generation).
    `channel`: through which its media go; "" for the run's only one. `max_tokens`: longer texts are cut at the end."""

    def __init__(
        self,
        task: Task,
        llm: FrozenLLM,
        percepts: MediaInputs,
        answers: bool = True,
        training: bool = False,
        loss_on: LossOn = "answer",
        channel: str = "",
        max_tokens: int | None = None,
    ) -> None:
        self.task, self.percepts, self.channel = task, percepts, channel
        self.answers, self.training, self.loss_on = answers, training, loss_on
        self.max_tokens, self.chat = max_tokens, llm.chat
        self.encode, self.bos_id, self.eos_id, self.pad_id = llm.encode, llm.bos_id, llm.eos_id, llm.pad_id

    def text(self, sample: Sample, draw: int) -> tuple[list[int], list[int], list[int]]:
        """ids, roles and labels of one sample. Raises UserError naming a sample without anything to learn."""
        return self.lay(sample, draw)[:3]

    def lay(self, sample: Sample, draw: int) -> TokenizedSample:
        laid = self.plain(sample, draw) if self.chat is None else self.conversation(sample, draw)
        num_media = len(sample.media_samples)
        if len(laid.places) != num_media:
            raise UserError(f"sample {sample.id}: its text has places for {len(laid.places)} media, it has {num_media}")
        if self.max_tokens is not None and len(laid.ids) > self.max_tokens:
            most = self.max_tokens
            places = [min(place, most) for place in laid.places]
            laid = TokenizedSample(laid.ids[:most], laid.roles[:most], laid.labels[:most], places)
        if laid.labels and 0 not in laid.places:  # nothing stands before the first token that could predict it
            laid.labels[0] = -100
        if self.answers and not any(label != -100 for label in laid.labels):
            raise UserError(
                f"sample {sample.id}: no token of it is supervised, nothing to learn from; fix or remove it"
            )
        return laid

    def plain(self, sample: Sample, draw: int) -> TokenizedSample:
        """[BOS] prompt answer EOS."""
        laid = TokenizedSample([], [], [], [0] * len(sample.media_samples))
        if self.bos_id is not None:
            laid.add([self.bos_id], Role.SPECIAL, False)
        prompt = self.task.prompt_for(sample)
        shown = prompt.rstrip(" ")  # the blank before an answer belongs to the answer's first token
        asked = self.encode(shown)
        laid.add(asked, Role.PROMPT, self.loss_on == "text")
        if self.answers:
            said = self.task.target_for(sample, draw)
            said = prompt[len(shown) :] + said if said else said
            answer = self.encode(said, Before.TEXT if asked else Before.NOTHING)
            if not answer:
                raise UserError(
                    f"sample {sample.id}: its target text is empty, nothing to learn from; fix or remove it"
                )
            laid.add(answer, Role.ANSWER, True)
            laid.add([self.eos_id], Role.SPECIAL, True)
        return laid

    def conversation(self, sample: Sample, draw: int) -> TokenizedSample:
        """As the chat template says."""
        assert self.chat is not None
        laid = TokenizedSample([], [], [], [])
        turns = self.task.turns_for(sample, draw, self.answers)
        if self.answers and not any(text.strip() for name, text in turns if name == "assistant"):
            raise UserError(f"sample {sample.id}: its target text is empty, nothing to learn from; fix or remove it")
        for piece in self.chat.pieces(turns, self.answers):
            if piece.ids is None:
                laid.places.append(len(laid.ids))
            else:
                laid.add(
                    piece.ids, piece.role, piece.supervised or (self.loss_on == "text" and piece.role == Role.PROMPT)
                )
        return laid

    def __call__(self, items: Sequence[tuple[Sample, int]]) -> Batch:
        """items: samples and their draw (the epoch in training, 0 in evaluation)."""
        return join([(self, sample, draw) for sample, draw in items])


class MixedCollate:
    """Batches of a mixture: each sample as the collate of its entry does it."""

    def __init__(self, collates: dict[str, Collate]) -> None:
        self.collates = collates

    def __call__(self, items: Sequence[tuple[Sample, int]]) -> Batch:
        return join([(self.collates[sample.entry], sample, draw) for sample, draw in items])


def join(items: Sequence[tuple[Collate, Sample, int]]) -> Batch:
    """One batch. Media of one channel are together, whatever entries they come from."""
    texts = [collate.lay(sample, draw) for collate, sample, draw in items]
    length = max(len(text.ids) for text in texts)
    fills = (items[0][0].pad_id, int(Role.PAD), -100)
    ids_BT, roles_BT, labels_BT = (
        torch.tensor([text[part] + [fill] * (length - len(text[part])) for text in texts])
        for part, fill in enumerate(fills)
    )
    samples = [sample for _, sample, _ in items]
    # Noise is drawn anew in each epoch, so what is asked together must be of one draw.
    asked: dict[tuple[int, int | None], list[int]] = {}
    for row, (collate, _, draw) in enumerate(items):
        asked.setdefault((id(collate), draw if collate.training else None), []).append(row)
    groups: dict[str, list[MediaGroup]] = {}
    for (_, epoch), rows in asked.items():
        collate = items[rows[0]][0]
        media = [(row, place, medium) for row in rows
                 for place, medium in zip(texts[row].places, samples[row].media_samples, strict=True)]  # fmt: skip
        if not media:
            continue
        found = collate.percepts([medium for _, _, medium in media], epoch)
        if not found:
            continue
        where = [row for row, _, _ in media], [place for _, place, _ in media]
        group = MediaGroup(collate.channel, *where, found.get("features_BNE"), found.get("media"))
        groups.setdefault(collate.channel, []).append(group)
    merged = [merge(parts) for parts in groups.values()]
    if len(merged) == 1 and not merged[0].channel:
        only = merged[0]
        if only.rows == list(range(len(samples))) and not any(only.places):
            return Batch(samples, ids_BT, roles_BT, labels_BT, features_BNE=only.features_MNE, media=only.media)
    return Batch(samples, ids_BT, roles_BT, labels_BT, groups=merged)


def merge(groups: list[MediaGroup]) -> MediaGroup:
    """Groups of one channel as one."""
    if len(groups) == 1:
        return groups[0]
    features = [group.features_MNE for group in groups if group.features_MNE is not None]
    media = [group.media for group in groups if group.media is not None]
    return MediaGroup(
        groups[0].channel,
        [row for group in groups for row in group.rows],
        [place for group in groups for place in group.places],
        torch.cat(features) if features else None,
        torch.cat(media) if media else None,
    )
