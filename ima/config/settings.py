"""How a run trains and what it measures: the dataclasses behind config groups, and keys beside those of other classes.

Nothing is imported here that is not needed to read a config. RANGES: closed limits per field, None for open.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

Range = tuple[float | None, float | None]
SiteName = Literal["resid_pre", "ln1", "sa", "resid_mid", "ln2", "fc1", "fc2", "resid_post"]
GroupName = Literal["maps", "null", "sinks", "connector", "probes", "lens", "attention", "twin", "patches"]
VariantName = Literal["nosink", "nomassive", "scaled", "centred", "update"]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of `lightning.Trainer` that are read here too, with what is allowed of them where it says less."""

    RANGES: ClassVar[dict[str, Range]] = {
        "max_epochs": (-1, None),
        "max_steps": (-1, None),
        "accumulate_grad_batches": (1, None),
        "gradient_clip_val": (0.0, None),
        "log_every_n_steps": (1, None),
        "num_nodes": (1, None),
    }

    max_epochs: int | None = None
    max_steps: int = -1
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    log_every_n_steps: int | None = None
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: list[int] | int | str = "auto"
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches and how they are made. `batch_size` is that of one optimizer step, shared by all ranks and, with
    `trainer.accumulate_grad_batches`, made of several passes; `eval_batch_size` is that of a pass without gradients.

    `cache_features` keeps encoder features on disk (frozen, deterministic encoders only). `max_tokens`: longer texts
    are cut at the end. Of a mixture: shares of an epoch go with weight * size ** (1 / `temperature`); `batches` hold
    samples of all entries or, homogeneous, of one. `group_lengths`: texts of similar length share a batch. `loss_on`:
    what the loss counts, the answers or the whole text.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "batch_size": (1, None),
        "eval_batch_size": (1, None),
        "num_workers": (0, None),
        "temperature": (0.01, None),
        "max_tokens": (2, None),
    }

    batch_size: int = 16
    eval_batch_size: int = 32
    num_workers: int = 0
    cache_features: bool = True
    cache_dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    max_tokens: int | None = None
    loss_on: Literal["answer", "text"] = "answer"
    temperature: float = 1.0
    batches: Literal["mixed", "homogeneous"] = "mixed"
    group_lengths: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerKeys:
    """Keys of the group `optimizer` in addition to those of its class. `llm_lr`: the peak learning rate of what is
    trained of the LLM (`llm.train`)."""

    RANGES: ClassVar[dict[str, Range]] = {"lr": (0.0, 1.0), "weight_decay": (0.0, 1.0), "llm_lr": (0.0, 1.0)}

    llm_lr: float = 2e-5


@dataclasses.dataclass(frozen=True)
class SchedulerKeys:
    """Keys of the group `scheduler` in addition to those of its class, as in Lightning's dict of a scheduler: when its
    `step` is called, and the metric that it is given."""

    RANGES: ClassVar[dict[str, Range]] = {
        "warmup_ratio": (0.0, 1.0),
        "warmup_from": (0.0, 1.0),
        "final_ratio": (0.0, 1.0),
        "frequency": (1, None),
    }

    interval: Literal["step", "epoch"] = "step"
    frequency: int = 1
    monitor: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is scored and when. `num_samples` and `num_generated` limit the samples that are measured and answered while
    training (None: all); after the last epoch the tasks use all.

    `generate_every_num_epochs`: 0 for after the last epoch only. `tracks`: the test splits that tasks are scored on;
    None for T0 and T1, or test, or val, whichever there is first; [] for none.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "generate_every_num_epochs": (0, None),
        "num_samples": (1, None),
        "num_generated": (1, None),
    }

    tracks: tuple[str, ...] | None = None
    num_samples: int | None = None
    generate_every_num_epochs: int = 1
    num_generated: int | None = 64


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
    entries: those of the mixture that it trains on; None for all. train: what of the LLM (`llm.train`). The other keys
    have the names that they have in their groups."""

    RANGES: ClassVar[dict[str, Range]] = {
        "max_epochs": (1, None),
        "accumulate_grad_batches": (1, None),
        "batch_size": (1, None),
        "lr": (0.0, 1.0),
        "llm_lr": (0.0, 1.0),
    }

    entries: tuple[str, ...] | None = None
    train: Literal["none", "lora", "all"] | None = None
    max_epochs: int | None = None
    accumulate_grad_batches: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    llm_lr: float | None = None
    weight_decay: float | None = None
    generate_every_num_epochs: int | None = None


@dataclasses.dataclass(frozen=True)
class Alignment:
    """What the tap looks at, on `split`: before training and every so many epochs (or steps). `sites`: names of
    `ima.core.types.Site`; `layers`: None for all. `variants`: of the similarities, beside the paper's; nomassive,
    scaled and centred need an earlier pass over `num_scale_samples` samples.

    The reservoir (0: none) keeps the states of `num_reservoir` seeded examples at `reservoir_layers` (None: nine,
    evenly spread) for what does not factorise; the logit lens looks at `num_vocabulary_layers` of these layers, t-SNE
    at `num_tsne_layers`. `examples`: also write each example's own alignment.

    `num_paired` (0: none): of at most so many examples, whole units, mean tokens are kept and paired with those of
    their texts alone: retrieval by layer and its growth. `groups`: what is measured beyond that (GROUPS). `words`: a
    text file, a text a line, that the lens takes its words from; None for training references and carrier sentences.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "every_num_epochs": (1, None),
        "every_num_steps": (1, None),
        "num_scale_samples": (2, None),
        "num_paired": (0, None),
        "num_reservoir": (0, None),
        "num_vocabulary_layers": (0, None),
        "num_tsne_layers": (0, None),
    }

    every_num_epochs: int = 1
    every_num_steps: int | None = None
    split: str = "val"
    sites: tuple[SiteName, ...] = ("resid_post",)
    layers: tuple[int, ...] | None = None
    consecutive: bool = True
    variants: tuple[VariantName, ...] = ("nosink",)
    num_scale_samples: int = 32
    num_paired: int = 512
    groups: tuple[GroupName, ...] = ()
    words: str | None = None
    num_reservoir: int = 0
    reservoir_layers: tuple[int, ...] | None = None
    num_vocabulary_layers: int = 0
    num_tsne_layers: int = 0
    examples: bool = False
    seed: int = 0
