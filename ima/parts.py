"""The parts of a run, made from its config: encoder, adapter, LLM, task, source, and what joins them.

What a constructor refuses becomes one line that begins with the config's key. The adapter is completed with the sizes
of its neighbours and drawn from the run's seed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ima.adapters import Adapter, PoolAdapter
from ima.assets import cache_dir
from ima.data.collate import CachedPercepts, LivePercepts, NoisePercepts, Percepts
from ima.data.features import FeatureStore
from ima.data.source import Source
from ima.encoders.base import Encoder
from ima.encoders.controls import NoiseEncoder
from ima.errors import UserError
from ima.interventions import Intervention
from ima.lit import MappingModule
from ima.llm.frozen import FrozenLLM
from ima.llm.known import known
from ima.settings import Alignment, Training
from ima.tasks.base import Task
from ima.types import Sample

TEST_TRACKS = (("T0", "T1"), ("test",), ("val",))  # the first of these that a source has


@dataclasses.dataclass
class Parts:
    """Everything a run is made of, instantiated from its config."""

    encoder: Encoder
    adapter: Adapter
    llm: FrozenLLM
    task: Task
    source: Source
    training: Training
    alignment: Alignment | None
    interventions: list[Intervention]
    percepts: Percepts
    store: FeatureStore | None

    def module(self, num_steps: int = 1) -> MappingModule:
        t = self.training
        share = None if t.micro_batch_size is None else max(1, t.micro_batch_size)
        encoder = self.encoder if isinstance(self.percepts, LivePercepts) else None
        return MappingModule(
            self.adapter, self.llm, encoder, t.lr, t.weight_decay, t.warmup_ratio, t.warmup_from, t.final_ratio,
            num_steps, share, t.clip_norm,
        )  # fmt: skip

    def samples(self, split: str, limit: int | None = None) -> list[Sample]:
        if split not in self.source.splits:
            raise UserError(
                f"alignment.split: {split!r} is no split of {self.source.name}; it has {', '.join(self.source.splits)}"
            )
        return self.source.samples(split)[:limit]

    def tracks(self) -> dict[str, list[Sample]]:
        """Test track -> samples; tracks without samples are left out."""
        splits = self.source.splits
        names = self.training.tracks or next((tracks for tracks in TEST_TRACKS if set(tracks) & set(splits)), ())
        for name in self.training.tracks or ():
            if name not in splits:
                raise UserError(f"trainer.tracks: {self.source.name} has no {name!r}; it has {', '.join(splits)}")
        return {name: samples for name in names if name in splits and (samples := self.source.samples(name))}

    def controls(self) -> dict[str, list[Sample]]:
        """Control -> the samples of the first test track with their media spoilt that way."""
        first = next(iter(self.tracks().values()), [])
        return {
            name: [self.source.control(sample, name) for sample in first]
            for name in (self.source.controls if self.encoder.reads_medium else ())
        }


def device_of(training: Training) -> torch.device:
    if training.accelerator == "cpu":
        return torch.device("cpu")
    if training.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if training.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if training.accelerator != "auto":
        raise UserError(f"trainer.accelerator: {training.accelerator!r} is not there; use auto or cpu")
    return torch.device("cpu")


def assemble(config: dict[str, Any]) -> Parts:
    """Instantiate the parts; the adapter is completed with the encoder's and the LLM's sizes, drawn from the seed."""
    training = Training(**tupled(without_target(config["trainer"])))
    alignment = Alignment(**tupled(without_target(config["alignment"]))) if config.get("alignment") else None
    interventions = build_interventions(config)
    source: Source = build(config, "data")
    encoder: Encoder = build(config, "encoder")
    if encoder.modality != source.modality:
        raise UserError(
            f"encoder: {type(encoder).__name__} is for {encoder.modality}, data {source.name} is {source.modality}; "
            f"choose an encoder for {source.modality} (train.py --help lists them)"
        )
    task: Task = build(config, "task")
    llm: FrozenLLM = build(config, "llm")
    for name, intervention in interventions.items():
        with keyed(f"intervention.{name}"), intervention.apply(llm):
            pass
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    adapter: Adapter = build(config, "adapter")(dim=encoder.dim, width=llm.width)
    if encoder.modality == "audio" and isinstance(adapter, PoolAdapter) and adapter.layout != "sequence":
        adapter.layout = "sequence"  # sounds have no grid, whatever their number of tokens
    store = None
    percepts: Percepts
    if isinstance(encoder, NoiseEncoder):
        percepts = NoisePercepts(encoder)
    elif training.cache_features and encoder.deterministic:
        store = FeatureStore(cache_dir(), source, encoder, training.cache_dtype)
        percepts = CachedPercepts(store)
    else:
        percepts = LivePercepts(source, encoder)
    return Parts(
        encoder, adapter, llm, task, source, training, alignment, list(interventions.values()), percepts, store
    )


def build_interventions(config: dict[str, Any]) -> dict[str, Intervention]:
    """By name, checked against what is known of the LLM before anything is loaded."""
    chosen = config.get("intervention") or {}
    interventions: dict[str, Intervention] = {name: build(chosen, name, "intervention.") for name in chosen}
    llm = known(config["llm"]) if interventions else None
    for name, intervention in interventions.items():
        if llm is not None:
            with keyed(f"intervention.{name}"):
                intervention.check(llm)
    return interventions


def build(config: dict[str, Any], name: str, prefix: str = "") -> Any:
    """Instantiate a node. What its constructor refuses is the user's to mend: one line that begins with the key."""
    with keyed(f"{prefix}{name}"):
        try:
            return instantiate(config[name])
        except InstantiationException as error:
            if not isinstance(error.__cause__, UserError):
                raise
            raise error.__cause__ from error


@contextmanager
def keyed(key: str) -> Iterator[None]:
    """What is refused inside becomes a line that begins with the key; `name: ...` is about the key's `name`."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if message.startswith(key):
            raise
        names = message.partition(":")[0].replace(".", "_").isidentifier()
        raise UserError(f"{key}.{message}" if names else f"{key}: {message}") from error


def without_target(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def tupled(node: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}
