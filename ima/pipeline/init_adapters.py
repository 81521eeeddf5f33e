"""Where training starts from: fresh adapters brought to the scale of the LLM, or those of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.models.llava import is_foreign
from ima.pipeline.checkpoint import load_adapter, load_llm
from ima.pipeline.parts import Parts, TaskStream
from ima.runs.find import run_folder
from ima.runs.record import read_record

NUM_SCALE_SAMPLES = 64


def init_adapters(parts: Parts, pools: Sequence[Sequence[Sample]], init: Path | None) -> dict[str, Any]:
    """Fresh adapters brought to scale, or those of `init` taken over. Returns the facts of it. pools: the training
    samples of each stream."""
    scaled = load_init(parts, init) if init is not None else {}
    for stream, pool in zip(parts.streams, pools, strict=True):
        if stream.channel.name not in scaled:
            found = scale_channel(parts, stream, pool)
            if found is not None:
                scaled[stream.channel.name] = found
    out: dict[str, Any] = {"start_norm": scaled[""] if list(parts.channels) == [""] and scaled else scaled}
    return out | ({"init": str(init)} if init is not None else {})


def load_init(parts: Parts, init: Path) -> dict[str, Any]:
    """Take over the adapters (and the LLM) of `init`; by channel, the norms that its adapters were brought to."""
    foreign = is_foreign(init)
    where = init if foreign or init.is_file() else init / "adapter.safetensors"
    earlier = {} if foreign else read_record(run_folder(str(init))).facts
    load_adapter(where, parts.adapter)
    trained = earlier.get("llm_train", "none")
    if trained != "none" and parts.llm.trains != trained:
        raise UserError(f"init: {init} has an LLM trained by {trained}; use llm.train={trained} here too")
    if trained != "none":
        load_llm(where, parts.llm)
    norms: dict[str, Any] = earlier.get("start_norm", {})
    return norms if norms and "before" not in norms else dict.fromkeys(parts.channels, norms)


def scale_adapter_output(parts: Parts, pool: Sequence[Sample]) -> dict[str, float]:
    """Bring the output of the first stream's fresh adapter to the scale of the LLM's embeddings."""
    found = scale_channel(parts, parts.streams[0], pool)
    assert found is not None
    return found


@torch.no_grad()
def scale_channel(parts: Parts, stream: TaskStream, pool: Sequence[Sample]) -> dict[str, float] | None:
    """The same of any stream, on the features of some samples; the norms before and after. None where no sample shows
    anything."""
    samples = list(pool[:: max(1, len(pool) // NUM_SCALE_SAMPLES)])[:NUM_SCALE_SAMPLES]
    media = [medium for sample in samples for medium in sample.media_samples]
    if not media:
        return None
    batch = stream.percepts(media, None)
    features = batch["features_BNE"] if "features_BNE" in batch else stream.channel.encoder(batch["media"])
    adapter, norm = stream.channel.adapter, parts.llm.embedding_norm
    return {"before": adapter.cpu().start_at_norm(features.float().cpu(), norm), "target": norm}
