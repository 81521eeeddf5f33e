"""Where a training step's time goes: each phase of our step alone, and what the training loop adds to it.

The phases do what `MappingModule.training_step` does, cut at the borders between the parts; the loop is the run's own
trainer, callbacks and loader around a step that does nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from ima.core.types import Sample
from ima.data.collate import LiveMediaInputs
from ima.data.loader import TrainLoader
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.splice import splice
from ima.pipeline.callbacks import Bar, StepRecorder
from ima.pipeline.parts import Parts
from ima.pipeline.recorder import Recorder

NUM_IDLE_STEPS = 60


def phases(parts: Parts, batches: Sequence[Sequence[Sample]], num_rounds: int) -> dict[str, float]:
    """Phase -> median seconds of a step on a batch of each entry. "encoder" is what features from the cache save."""
    found: dict[str, list[float]] = {}
    optimizer = torch.optim.AdamW(parts.adapter.parameters(), lr=1e-5)
    model = parts.model()
    streams = list(zip(parts.streams, batches, strict=True))
    pixels = [LiveMediaInputs(stream.source, stream.channel.encoder)(batch, 0)["media"] for stream, batch in streams]
    with accelerate(parts.llm.model):
        for index in range(num_rounds + 1):
            seconds: dict[str, float] = {}

            @contextmanager
            def timed(name: str, seconds: dict[str, float] = seconds) -> Iterator[None]:
                start = time.perf_counter()
                yield
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

            for (stream, samples), media in zip(streams, pixels, strict=True):
                with timed("encoder"):
                    stream.channel.encoder(media)
                with timed("collate"):
                    batch = stream.collate(parts.llm, training=True)([(sample, 0) for sample in samples])
                with timed("adapter"):
                    made = [(group, model.percept(group)) for group in batch.media_groups()]
                with timed("splice"):
                    x_BSD, roles_BS, labels_BS = splice(parts.llm, batch, made)
                with timed("LLM forward"):
                    h_BSD = parts.llm(x_BSD, roles_BS, [sample.id for sample in samples])
                with timed("head and loss"):
                    loss = parts.llm.loss_sum(h_BSD, labels_BS) / (labels_BS != -100).sum()
                with timed("head backward"):
                    (grad_BSD,) = torch.autograd.grad(loss, h_BSD, retain_graph=True)
                with timed("LLM backward"):
                    (grad_BSD,) = torch.autograd.grad(h_BSD, x_BSD, grad_BSD)
                with timed("adapter backward"):
                    x_BSD.backward(grad_BSD)
                with timed("clip and optimizer"):
                    torch.nn.utils.clip_grad_norm_(parts.adapter.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            if index:
                for name, value in seconds.items():
                    found.setdefault(name, []).append(value)
    table = {name: statistics.median(values) for name, values in found.items()}
    return table | {"loop": len(streams) * loop_seconds(parts, batches)}


def show(table: dict[str, float], bare: float, gemm: float) -> None:
    """With shares of the step on cached features, and of the bare LLM's forward and backward."""
    total = sum(seconds for name, seconds in table.items() if name != "encoder")
    print(f"{'phase':22s} {'ms':>8s} {'of step':>8s} {'of bare':>8s}")
    lines = [*table.items(), ("step without encoder", total), ("bare LLM", bare), ("products alone", gemm)]
    for name, seconds in lines:
        print(f"{name:22s} {seconds * 1e3:8.1f} {seconds / total:8.1%} {seconds / bare:8.1%}")


class Idle(pl.LightningModule):
    """A step that does nothing."""

    last_loss, last_lr = 0.0, 0.0

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}


class Clock(pl.Callback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())


def loop_seconds(parts: Parts, batches: Sequence[Sequence[Sample]]) -> float:
    """Median seconds between the ends of steps that do nothing on batches that took no time to make."""
    samples = [sample for batch in batches for sample in batch] * NUM_IDLE_STEPS
    collate: Any = len
    loader = TrainLoader(samples, collate, len(batches[0]), seed=0)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=NUM_IDLE_STEPS, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False,
        callbacks=[StepRecorder(Recorder("bench", None, {}), parts.flags.log_every_n_steps or 1), Bar(), clock],
    )  # fmt: skip
    trainer.fit(Idle(), loader)
    gaps = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return statistics.median(gaps)
