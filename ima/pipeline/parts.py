"""What a run is made of: channels (encoder and adapter), streams (source and task), the LLM, its interventions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch

from ima.config.settings import Alignment, Evaluation, Flags, Loader
from ima.core.errors import UserError, prefix_errors
from ima.core.types import Sample
from ima.data.collate import Collate, LiveMediaInputs, MediaInputs
from ima.data.feature_cache import FeatureStore
from ima.data.source import Source
from ima.interventions.base import Intervention, Setting
from ima.models.adapters.base import Adapter, AdapterSet
from ima.models.encoders.base import Encoder
from ima.models.llm.frozen import FrozenLLM
from ima.models.multimodal import MultimodalModel
from ima.pipeline.lightning_module import MappingModule
from ima.tasks.base import Task

TEST_TRACKS = (("T0", "T1"), ("test",), ("val",))  # the first of these that a source has


@dataclasses.dataclass
class EncoderAdapter:
    """An encoder with the adapter that its features go through. name: "" where a run has one."""

    name: str
    encoder: Encoder
    adapter: Adapter


@dataclasses.dataclass
class TaskStream:
    """One entry of a mixture, made: a source, its task and the channel of its media. name: "" in a run of one task."""

    name: str
    source: Source
    task: Task
    channel: EncoderAdapter
    percepts: MediaInputs
    store: FeatureStore | None
    loader: Loader
    evaluation: Evaluation
    weight: float = 1.0
    limit: int | None = None
    eval_limit: int | None = None

    @property
    def key(self) -> str:
        """What messages begin with."""
        return f"mixture.{self.name}.data" if self.name else "data"

    def all_samples(self, split: str) -> list[Sample]:
        """Of a split that is there, marked as this entry's."""
        samples = self.source.samples(split)
        if not self.name:
            return samples
        limit = self.limit if split == "train" else self.eval_limit
        return [dataclasses.replace(sample, entry=self.name) for sample in spread(samples, limit)]

    def samples(self, split: str, limit: int | None = None) -> list[Sample]:
        if split not in self.source.splits:
            raise UserError(
                f"alignment.split: {split!r} is no split of {self.source.name}; it has {', '.join(self.source.splits)}"
            )
        return self.all_samples(split)[:limit]

    def tracks(self) -> dict[str, list[Sample]]:
        """Test track -> samples; tracks without samples are left out."""
        splits, names = self.source.splits, self.evaluation.tracks
        if names is None:
            names = next((tracks for tracks in TEST_TRACKS if set(tracks) & set(splits)), ())
        for name in self.evaluation.tracks or ():
            if name not in splits and not self.name:
                raise UserError(f"evaluation.tracks: {self.source.name} has no {name!r}; it has {', '.join(splits)}")
        return {name: samples for name in names if name in splits and (samples := self.all_samples(name))}

    def controls(self) -> dict[str, list[Sample]]:
        """Control -> the samples of the first test track with their media spoilt that way."""
        first = next(iter(self.tracks().values()), [])
        return {
            name: [self.source.control(sample, name) for sample in first]
            for name in (self.source.controls if self.channel.encoder.reads_medium else ())
        }

    def collate(self, llm: FrozenLLM, percepts: MediaInputs | None = None, **options: Any) -> Collate:
        """percepts: others than its own."""
        mine = self.percepts if percepts is None else percepts
        return Collate(self.task, llm, mine, channel=self.channel.name, max_tokens=self.loader.max_tokens, **options)


@dataclasses.dataclass
class Parts:
    """Everything a run is made of, instantiated from its config. A run of one task has one channel and one stream;
    `encoder`, `source`, ... are those of the first."""

    channels: dict[str, EncoderAdapter]
    streams: list[TaskStream]
    llm: FrozenLLM
    flags: Flags
    loader: Loader
    evaluation: Evaluation
    alignment: Alignment | None
    optimizer: Mapping[str, Any] | None  # nodes of the config; an evaluation has none
    scheduler: Mapping[str, Any] | None
    interventions: dict[str, Intervention]  # by the name in the config; after `resolve` those that act

    @property
    def adapter(self) -> Adapter | AdapterSet:
        """What is trained: the only adapter, or all of them."""
        if list(self.channels) == [""]:
            return self.channels[""].adapter
        return self._set

    @functools.cached_property
    def _set(self) -> AdapterSet:
        return AdapterSet({name: channel.adapter for name, channel in self.channels.items()})

    @property
    def encoder(self) -> Encoder:
        return self.streams[0].channel.encoder

    @property
    def task(self) -> Task:
        return self.streams[0].task

    @property
    def source(self) -> Source:
        return self.streams[0].source

    @property
    def percepts(self) -> MediaInputs:
        return self.streams[0].percepts

    @property
    def store(self) -> FeatureStore | None:
        return self.streams[0].store

    def trained(self) -> list[torch.nn.Parameter]:
        return [*self.adapter.parameters(), *(p for p in self.llm.parameters() if p.requires_grad)]

    def samples(self, split: str, limit: int | None = None) -> list[Sample]:
        return self.streams[0].samples(split, limit)

    @property
    def acting(self) -> list[Intervention]:
        return list(self.interventions.values())

    def resolve(self, setting: Setting) -> None:
        """Blocks and masks of the interventions are chosen now that the LLM is there. Raises UserError with the key."""
        for name, intervention in self.interventions.items():
            with prefix_errors(f"intervention.{name}"):
                self.interventions[name] = intervention.resolve(self.llm, setting)

    def model(self, live: bool = False) -> MultimodalModel:
        """The network of the run. live: with every encoder, for media that were never seen; else it holds those
        encoders whose features are not cached."""
        used = [s.channel for s in self.streams if live or isinstance(s.percepts, LiveMediaInputs)]
        found = {channel.name: channel.encoder for channel in used}
        encoder = found.get("") if "" in self.channels else torch.nn.ModuleDict(found) if found else None
        return MultimodalModel(self.adapter, self.llm, encoder)

    def module(self, total_steps: int | None = None) -> MappingModule:
        """The network as Lightning trains it."""
        return MappingModule(self.model(), self.optimizer, self.scheduler, total_steps)


def spread(samples: list[Sample], num: int | None) -> list[Sample]:
    """`num` samples evenly over the list (which is sorted by noun in many sources), always the same."""
    if num is None or num >= len(samples):
        return samples
    return [samples[index * len(samples) // num] for index in range(num)]
