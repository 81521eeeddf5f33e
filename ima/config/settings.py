"""How a run trains and what it measures: the dataclasses behind the config groups `trainer` and `alignment`.

Nothing is imported here that is not needed to read a config. RANGES: closed limits per field, None for open.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

Range = tuple[float | None, float | None]
SiteName = Literal["resid_pre", "ln1", "sa", "resid_mid", "ln2", "fc1", "fc2", "resid_post"]
VariantName = Literal["nosink", "nomassive", "scaled", "centred", "update"]


@dataclasses.dataclass(frozen=True)
class Training:
    """Optimisation, places and times. Batch sizes are global: shared by all ranks.

    `cache_features` keeps encoder features on disk (frozen, deterministic encoders only); `eval_samples` and
    `generate_samples` limit the samples measured while training (None: all); the last epoch's tasks use all.
    `tracks`: the test splits that tasks are scored on; None for T0 and T1, or test, or val, whichever there is first;
    [] for none.

    `llm_lr`: the peak for what is trained of the LLM (`llm.train`). `max_tokens`: longer texts are cut at the end. Of a
    mixture: shares of an epoch go with weight * size ** (1 / `temperature`); `batches` hold samples of all entries or,
    homogeneous, of one. `group_lengths`: texts of similar length share a batch.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "epochs": (1, None),
        "batch_size": (1, None),
        "micro_batch_size": (1, None),
        "eval_batch_size": (1, None),
        "lr": (0.0, 1.0),
        "weight_decay": (0.0, 1.0),
        "warmup_ratio": (0.0, 1.0),
        "warmup_from": (0.0, 1.0),
        "final_ratio": (0.0, 1.0),
        "clip_norm": (0.0, None),
        "save_every_num_steps": (1, None),
        "log_every_num_steps": (1, None),
        "generate_every_num_epochs": (0, None),
        "eval_samples": (1, None),
        "generate_samples": (1, None),
        "num_workers": (0, None),
        "num_nodes": (1, None),
        "llm_lr": (0.0, 1.0),
        "temperature": (0.01, None),
        "max_tokens": (2, None),
    }

    epochs: int = 6
    batch_size: int = 16
    micro_batch_size: int | None = None
    eval_batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup_ratio: float = 0.05
    warmup_from: float = 0.1
    final_ratio: float = 0.05
    clip_norm: float = 1.0
    loss_on: Literal["answer", "text"] = "answer"
    save_every_num_steps: int = 50
    log_every_num_steps: int = 1
    generate_every_num_epochs: int = 1
    generate_samples: int | None = 64
    tracks: tuple[str, ...] | None = None
    eval_samples: int | None = None
    cache_features: bool = True
    cache_dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    num_workers: int = 0
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    fast: bool = True
    llm_lr: float = 2e-5
    max_tokens: int | None = None
    temperature: float = 1.0
    batches: Literal["mixed", "homogeneous"] = "mixed"
    group_lengths: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a mixture: its data and task. Encoder and adapter are the run's own where both are null; an
    encoder's name is that of another entry, whose encoder and adapter are shared; a node of one's own means an adapter
    of one's own (of the run's kind where none is given). weight: of its share of an epoch. limit: at most so many
    training samples, evenly chosen; eval_limit: of each other split."""

    RANGES: ClassVar[dict[str, Range]] = {"weight": (0.0, None), "limit": (1, None), "eval_limit": (1, None)}

    data: dict[str, Any]
    task: dict[str, Any]
    encoder: dict[str, Any] | str | None = None
    adapter: dict[str, Any] | None = None
    weight: float = 1.0
    limit: int | None = None
    eval_limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of several trainings that one command runs one after the other: what differs from the rest of the config.
    entries: those of the mixture that it trains on; None for all. train: what of the LLM (`llm.train`)."""

    RANGES: ClassVar[dict[str, Range]] = {
        "epochs": (1, None),
        "batch_size": (1, None),
        "lr": (0.0, 1.0),
        "llm_lr": (0.0, 1.0),
    }

    entries: tuple[str, ...] | None = None
    train: Literal["none", "lora", "all"] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    llm_lr: float | None = None
    weight_decay: float | None = None
    save_every_num_steps: int | None = None
    generate_every_num_epochs: int | None = None


@dataclasses.dataclass(frozen=True)
class Alignment:
    """What the tap looks at, on `split`: before training and every so many epochs. `sites`: names of
    `ima.core.types.Site`; `layers`: None for all. `variants`: of the similarities, beside the paper's; nomassive,
    scaled and centred need an earlier pass over `num_scale_samples` samples.

    The reservoir (0: none) keeps the states of `num_reservoir` seeded examples at `reservoir_layers` (None: nine,
    evenly spread) for what does not factorise; the logit lens looks at `num_vocabulary_layers` of these layers, t-SNE
    at `num_tsne_layers`. `examples`: also write each example's own alignment.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "every_num_epochs": (1, None),
        "num_scale_samples": (2, None),
        "num_reservoir": (0, None),
        "num_vocabulary_layers": (0, None),
        "num_tsne_layers": (0, None),
    }

    every_num_epochs: int = 1
    split: str = "val"
    sites: tuple[SiteName, ...] = ("resid_post",)
    layers: tuple[int, ...] | None = None
    consecutive: bool = True
    variants: tuple[VariantName, ...] = ("nosink",)
    num_scale_samples: int = 32
    num_reservoir: int = 0
    reservoir_layers: tuple[int, ...] | None = None
    num_vocabulary_layers: int = 0
    num_tsne_layers: int = 0
    examples: bool = False
    seed: int = 0
