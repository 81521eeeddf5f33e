"""The parts of a run, made from its config: channels (encoder and adapter), streams (source and task), the LLM.

A mixture has several streams; a run of one task has one, by the same way. What a constructor refuses becomes one line
that begins with the config's key. Adapters are completed with the sizes of their neighbours and drawn from the run's
seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ima.config.instantiation import alignment_of, build, build_settings, evaluation_of, flags_of, loader_of
from ima.config.roots import MAIN
from ima.config.settings import Entry, Flags, Loader
from ima.core.assets.registry import cache_dir
from ima.core.commands import name_of
from ima.core.distributed import gpus_listed
from ima.core.errors import UserError, nearest, prefix_errors
from ima.data.collate import CachedMediaInputs, LiveMediaInputs, MediaInputs, NoiseMediaInputs
from ima.data.feature_cache import FeatureStore
from ima.data.source import Source
from ima.interventions.base import Intervention
from ima.models.adapters.base import Adapter
from ima.models.adapters.linear import PoolAdapter
from ima.models.encoders.base import Encoder
from ima.models.encoders.controls import NoiseEncoder
from ima.models.llm.facts import llm_facts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import going_to
from ima.pipeline.parts import EncoderAdapter, Parts, TaskStream
from ima.tasks.base import Task


def device_of(flags: Flags, local: int = 0) -> torch.device:
    """local: the number of this process on its machine (`ima.core.distributed.Place`)."""
    if flags.accelerator == "cpu":
        return torch.device("cpu")
    if flags.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        listed = gpus_listed(flags.devices)
        return torch.device("cuda", listed[local] if listed else local)
    if flags.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if flags.accelerator != "auto":
        raise UserError(f"trainer.accelerator: {flags.accelerator!r} is not there; use auto or cpu")
    return torch.device("cpu")


def assemble(config: dict[str, Any], llm: FrozenLLM | None = None, trained: dict[str, Any] | None = None) -> Parts:
    """Instantiate the parts; an adapter is completed with the encoder's and the LLM's sizes, drawn from the seed.
    llm: one that is loaded already. trained: the config of the run that is evaluated, where it is another: adapters
    are made as there, and streams without an encoder of their own take the channel of their modality."""
    flags, loader, evaluation = flags_of(config), loader_of(config), evaluation_of(config)
    alignment = alignment_of(config)
    interventions = build_interventions(config)
    entries = entries_of(config)
    if "trained_entries" in config:
        entries = {f"mixture.{name}.": entries[f"mixture.{name}."] for name in config["trained_entries"]}
    sources: list[Source] = [build({"data": entry.data}, "data", prefix) for prefix, entry in entries.items()]
    encoders = build_encoders(trained or config)
    match: dict[str, str] = {}
    for (prefix, entry), source in zip(entries.items(), sources, strict=True):
        match[prefix] = channel_for(prefix, entry, source, encoders, trained is not None)
    tasks: list[Task] = [build({"task": entry.task}, "task", prefix) for prefix, entry in entries.items()]
    if llm is None:
        with going_to(device_of(flags).type):
            llm = build(config, "llm")
    assert llm is not None
    for name, intervention in interventions.items():
        with prefix_errors(f"intervention.{name}"), intervention.apply(llm):
            pass
    with drawn_from(config["seed"]):
        channels = build_channels(trained or config, encoders, llm)
    streams = []
    for (prefix, entry), source, task in zip(entries.items(), sources, tasks, strict=True):
        channel = channels[match[prefix]] if len(channels) > 1 else channels[""]
        percepts, store = percepts_of(channel.encoder, source, loader)
        name = prefix.removeprefix("mixture.").rstrip(".")
        streams.append(
            TaskStream(
                name,
                source,
                task,
                channel,
                percepts,
                store,
                loader,
                evaluation,
                entry.weight,
                entry.limit,
                entry.eval_limit,
            )  # fmt: skip
        )
    optimizer, scheduler = config.get("optimizer") or None, config.get("scheduler") or None
    return Parts(channels, streams, llm, flags, loader, evaluation, alignment, optimizer, scheduler, interventions)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What is drawn inside comes from the seed; the draws of whoever calls go on as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: adapters are made there
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def entries_of(config: dict[str, Any]) -> dict[str, Entry]:
    """Prefix of the keys -> entry. One task is a mixture of one entry, whose keys are the run's own."""
    if not config.get("mixture"):
        return {"": Entry(config["data"], config["task"])}
    nodes = {f"mixture.{name}": node for name, node in config["mixture"].items()}
    return {f"{key}.": build_settings(Entry, node, key) for key, node in nodes.items()}


def nodes_of_channels(config: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Channel -> nodes of its encoder and adapter, in the order of their first use."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for prefix, entry in entries_of(config).items():
        name = prefix.removeprefix("mixture.").rstrip(".")
        if entry.encoder is None and entry.adapter is None:
            found.setdefault(MAIN, (config["encoder"], config["adapter"]))
        elif not isinstance(entry.encoder, str):
            found[name] = (entry.encoder or config["encoder"], entry.adapter or config["adapter"])
        elif entry.adapter is not None:
            raise UserError(
                f"{prefix}adapter: the encoder is that of {entry.encoder!r}, so its adapter is too; leave it out"
            )
    return found


def build_encoders(config: dict[str, Any]) -> dict[str, Encoder]:
    """By channel; equal nodes give one encoder."""
    made: dict[str, Encoder] = {}
    out = {}
    for name, (node, _) in nodes_of_channels(config).items():
        kind = json.dumps(node, sort_keys=True, default=str)
        if kind not in made:
            made[kind] = build({"encoder": node}, "encoder", "" if name == MAIN else f"mixture.{name}.")
        out[name] = made[kind]
    return out


def channel_for(prefix: str, entry: Entry, source: Source, encoders: dict[str, Encoder], evaluating: bool) -> str:
    """The channel that an entry's media go through."""
    if isinstance(entry.encoder, str):
        name = entry.encoder
        if name not in encoders:
            others = [other for other in encoders if other != MAIN]
            hint = nearest(name, others) if others else f"none has one; add {name} to the mixture or choose an encoder"
            raise UserError(f"{prefix}encoder: no entry {name!r} with an encoder of its own; {hint}")
    elif evaluating:
        names = [name for name, encoder in encoders.items() if encoder.modality == source.modality]
        own = prefix.removeprefix("mixture.").rstrip(".")
        name = own if own in names else names[0] if names else next(iter(encoders))
    else:
        own = prefix.removeprefix("mixture.").rstrip(".")
        name = MAIN if entry.encoder is None and entry.adapter is None else own
    encoder = encoders[name]
    if encoder.modality != source.modality:
        raise UserError(
            f"{prefix}encoder: {type(encoder).__name__} is for {encoder.modality}, data {source.name} is "
            f"{source.modality}; choose an encoder for {source.modality} ({name_of('train')} --help lists them)"
        )
    return name


def build_channels(config: dict[str, Any], encoders: dict[str, Encoder], llm: FrozenLLM) -> dict[str, EncoderAdapter]:
    channels = {}
    for name, (_, node) in nodes_of_channels(config).items():
        encoder = encoders[name]
        prefix = "" if name == MAIN else f"mixture.{name}."
        adapter: Adapter = build({"adapter": node}, "adapter", prefix)(dim=encoder.dim, width=llm.width)
        if encoder.modality == "audio" and isinstance(adapter, PoolAdapter) and adapter.layout != "sequence":
            adapter.layout = "sequence"  # sounds have no grid, whatever their number of tokens
        channels[name] = EncoderAdapter(name, encoder, adapter)
    if len(channels) == 1:
        only = next(iter(channels.values()))
        only.name = ""
        return {"": only}
    return channels


def percepts_of(encoder: Encoder, source: Source, loader: Loader) -> tuple[MediaInputs, FeatureStore | None]:
    if isinstance(encoder, NoiseEncoder):
        return NoiseMediaInputs(encoder), None
    if loader.cache_features and encoder.deterministic:
        store = FeatureStore(cache_dir(), source, encoder, loader.cache_dtype)
        return CachedMediaInputs(store), store
    return LiveMediaInputs(source, encoder), None


def build_interventions(config: dict[str, Any]) -> dict[str, Intervention]:
    """By name, checked against what is known of the LLM before anything is loaded."""
    chosen = config.get("intervention") or {}
    interventions: dict[str, Intervention] = {name: build(chosen, name, "intervention.") for name in chosen}
    llm = llm_facts(config.get("lmm") or config["llm"]) if interventions else None
    for name, intervention in interventions.items():
        if llm is not None:
            with prefix_errors(f"intervention.{name}"):
                intervention.check(llm)
    return interventions
