"""A trained run as a calibration task: its adapter, its training samples, and a key for what depends on them.

The samples are a seeded draw from the training split; everything but the LLM is built from the run's own config,
without its interventions. Nothing is built before statistics are really missing from the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ima.core.cache import sha256_of
from ima.core.errors import UserError
from ima.core.types import Sample
from ima.interventions.prune.calibration import Inputs
from ima.models.llm.frozen import FrozenLLM
from ima.pipeline.assemble import assemble
from ima.pipeline.checkpoint import load_adapter
from ima.pipeline.parts import TaskStream
from ima.pipeline.stages import apply_stage
from ima.runs.find import PARTS, find_adapter, run_config, run_folder
from ima.runs.identity import canonical
from ima.runs.record import read_record

BATCH_SIZE = 16
CONFIG = ("data", "task", "mixture", "encoder", "adapter")  # what the inputs of the LLM depend on
VERSION = 1  # raise it when the statistics change


class CalibrationTask:
    """`num_examples` training samples of the run in `folder`."""

    def __init__(self, folder: Path | str, num_examples: int, seed: int) -> None:

        self.folder, self.adapter = find_adapter(str(folder), "run")
        self.config = run_config(str(self.folder), PARTS)
        self.num_examples, self.seed = num_examples, seed
        facts = read_record(run_folder(str(folder))).facts
        depends = {name: canonical(self.config.get(name)) for name in CONFIG}
        depends |= {name: facts.get(name) for name in ("source_fingerprint", "encoder_fingerprint")}
        depends |= {"adapter_file": sha256_of(self.adapter), "num_examples": num_examples, "seed": seed}
        text = json.dumps(depends, sort_keys=True, default=str)
        self.key = hashlib.sha256(f"{VERSION}|{text}".encode()).hexdigest()[:16]
        self.source = str(facts.get("source") or self.folder.name)

    @property
    def name(self) -> str:
        return self.folder.name

    def facts(self) -> dict[str, Any]:
        return {"run": self.name, "source": self.source, "num_examples": self.num_examples, "seed": self.seed}

    def inputs(self, llm: FrozenLLM) -> Iterator[Inputs]:
        """Batches of the whole sequences, with answers, on the LLM's device."""
        for x_BSD, roles_BS, _ in self.labelled(llm):
            yield x_BSD, roles_BS

    def labelled(self, llm: FrozenLLM) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same with labels_BS; the examples of a batch are of like length, so that little is padding. Of a mixture,
        as many of each entry."""
        parts = assemble(apply_stage(self.config | {"intervention": {}, "alignment": None}, training=False), llm)
        load_adapter(self.adapter, parts.adapter)
        model = parts.model().to(llm.device).eval()
        share = -(-self.num_examples // len(parts.streams))
        with torch.no_grad():
            for stream in parts.streams:
                chosen = self.chosen(stream, share, llm.device)
                collate = stream.collate(llm)
                lengths = {sample.id: len(collate.text(sample, 0)[0]) for sample in chosen}
                chosen.sort(key=lambda sample, lengths=lengths: lengths[sample.id])  # type: ignore[misc]
                for start in range(0, len(chosen), BATCH_SIZE):
                    batch = collate([(sample, 0) for sample in chosen[start : start + BATCH_SIZE]]).to(llm.device)
                    x_BSD, roles_BS, labels_BS = model.splice(batch)
                    yield x_BSD.detach(), roles_BS, labels_BS

    def chosen(self, stream: TaskStream, num: int, device: torch.device) -> list[Sample]:
        """The seeded draw from an entry's training split, its features computed."""
        if "train" not in stream.source.splits:
            raise UserError(f"{self.folder}: {stream.source.name} has no training split to calibrate on")
        samples = stream.all_samples("train")
        order = np.random.Generator(np.random.Philox(key=self.seed)).permutation(len(samples))
        chosen = [samples[index] for index in order[:num]]
        if stream.store is None:
            return chosen
        media = list({shown.medium_key: shown for sample in chosen for shown in sample.media_samples}.values())
        stream.store.ensure(media, device, stream.loader.eval_batch_size, stream.loader.num_workers)
        bad = stream.store.bad
        return [sample for sample in chosen if not any(shown.medium_key in bad for shown in sample.media_samples)]
