"""What happens in addition to the training steps: alignment, tasks, rows, checkpoints. Plain callbacks of Lightning.

What is measured needs of a module its `llm`, `device`, `splice` and `generate` (`ima.pipeline.evaluator.Multimodal`);
rows and checkpoints need its `last_loss` (a number or a tensor of one), `last_lr`, `adapter` and `llm`. When they are
called: `ima.pipeline.moments`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ima.config.settings import Alignment, Evaluation
from ima.core.metric_names import TRAIN_LOSS
from ima.core.progress import progress
from ima.core.types import Row, Sample
from ima.pipeline.checkpoint import LLM_SUM, save_adapter, save_llm
from ima.pipeline.evaluator import Evaluator, metric_rows
from ima.pipeline.moments import Part, may_wait, moment_of
from ima.pipeline.parts import spread
from ima.pipeline.patch_files import write_measured
from ima.pipeline.recorder import Base, Recorder
from ima.tasks.base import Prediction


class Export(Callback):
    """Calls `write` when the last step is made. Comes before what measures the trained model: a measurement that fails
    loses no training."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write = write

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and moment_of(trainer).last:
            self.on_train_end(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if moment_of(trainer).last:  # a run that was killed after its last step
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write()


class AlignmentLogger(Part):
    """IMA per layer and per epoch with norms and consecutive similarity, and the loss of the same pass; whatever else
    the config asks for. The last measurement leaves its sums in `folder`."""

    def __init__(
        self,
        evaluator: Evaluator,
        samples: Sequence[Sample],
        alignment: Alignment | None,
        recorder: Recorder,
        folder: Path | None = None,
    ) -> None:
        self.evaluator, self.samples, self.alignment, self.recorder = evaluator, samples, alignment, recorder
        self.folder = folder

    def measure(self, epoch: int | None, step: int, last: bool) -> dict[str, float]:
        alignment = self.alignment
        if alignment is not None and not last and not self._asked(alignment, epoch or 0, step):
            alignment = None
        loss, suite = self.evaluator.teacher_forced(self.samples, alignment)
        split = self.alignment.split if self.alignment else "val"
        base = self.recorder.base(epoch=epoch, step=step, split=split)
        rows = [Row(score="val_loss", value=loss, n=len(self.samples), **base)]
        if suite is not None and (self.recorder.writer is not None or suite.reservoir is None):
            pair = {"dataset_b": self.recorder.facts.get("dataset_a"), "modality_b": "text"}
            found, lens = suite.rows(base | pair, self.evaluator.seconds)
            rows += found
            self.recorder.metrics["alignment/state_bytes"] = suite.stats.num_bytes()
            self.recorder.metrics["alignment/dump_bytes"] = suite.stats.num_state_bytes_seen
            if suite.reservoir is not None:
                self.recorder.metrics["alignment/reservoir_bytes"] = suite.reservoir.num_bytes()
            if last and self.folder is not None and self.recorder.writer is not None:
                write_measured(self.folder, suite, lens, self._facts(split, epoch), self.evaluator, self.samples)
        self.recorder.write(rows)
        self.recorder.keep(rows)
        return self.recorder.note(rows)

    def _asked(self, alignment: Alignment, epoch: int, step: int) -> bool:
        if alignment.every_num_steps is not None:
            return step % alignment.every_num_steps == 0
        return epoch % alignment.every_num_epochs == 0

    def _facts(self, split: str, epoch: int | None) -> Base:
        """What a reader of the sums must know to compare them with those of another run."""
        llm = self.evaluator.module.llm
        facts = self.recorder.facts
        return {
            "run": self.recorder.run,
            "dataset": facts.get("dataset_a"),
            "modality": facts.get("modality_a"),
            "split": split,
            "epoch": epoch,
            "llm": llm.name,
            "llm_width": llm.width,
            "llm_blocks": llm.num_blocks,
        }


class GenerationScorer(Part):
    """Generates and scores each track: a fixed subset while training; at the end all samples and, beside the first
    track, what it would be worth blind, with spoilt media (`controls`) and guessed from the training answers."""

    def __init__(
        self,
        evaluator: Evaluator,
        tracks: dict[str, list[Sample]],
        controls: dict[str, list[Sample]],
        evaluation: Evaluation,
        recorder: Recorder,
    ) -> None:
        self.evaluator, self.tracks, self.controls = evaluator, tracks, controls
        self.evaluation, self.recorder = evaluation, recorder
        self.final: dict[str, list[Prediction]] = {}

    def measure(self, epoch: int | None, step: int, last: bool) -> dict[str, float]:
        every, found = self.evaluation.generate_every_num_epochs, dict[str, float]()
        if not last and (every == 0 or not epoch or epoch % every):
            return found
        for track, samples in self.tracks.items():
            chosen = samples if last else spread(samples, self.evaluation.num_generated)
            predictions = self.evaluator.predict(chosen)
            found |= self._record(predictions, track, track, epoch, step, last)
            if last:
                self.final[track] = predictions
        if last and self.tracks:
            track, samples = next(iter(self.tracks.items()))
            beside = {"blind": self.evaluator.predict(samples, blind=True)}
            beside |= {name: self.evaluator.predict(spoilt) for name, spoilt in self.controls.items()}
            guesses = self.evaluator.prior(samples)
            self.final |= beside | ({"prior": guesses} if guesses is not None else {})
            for name in (*beside, *(("prior",) if guesses is not None else ())):
                found |= self._record(self.final[name], track, name, epoch, step, last)
        return found

    def _record(
        self, predictions: Sequence[Prediction], split: str, track: str, epoch: int | None, step: int, last: bool
    ) -> dict[str, float]:
        metrics = self.evaluator.score(predictions, split)
        base = self.recorder.base(epoch=epoch, step=step, split="test", track=track)
        if not last:
            base["note"] = f"subset of {len(predictions)}"
        rows = list(metric_rows(metrics, base))
        self.recorder.write(rows)
        if last:
            self.recorder.keep(rows)
        return self.recorder.named(rows)


class StepRecorder(Callback):
    """Loss and learning rate of the steps to rows, flushed with each checkpoint, epoch and at the end."""

    def __init__(self, recorder: Recorder, every: int) -> None:
        self.recorder, self.every = recorder, every
        self.losses: list[Tensor] = []  # on the device until rows are written
        self.rows: list[Row] = []  # theirs, without values, each followed by its rate's
        self.step = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step != self.step and step % self.every == 0:
            base = self.recorder.base(epoch=trainer.current_epoch, step=step, split="train")
            self.losses.append(torch.as_tensor(pl_module.last_loss))
            lr = Row(score="lr", value=pl_module.last_lr, **base)
            self.rows += [Row(score="train_loss", value=math.nan, **base), lr]
        self.step = step
        if len(self.rows) >= 64:
            self.flush()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.flush()
        self.recorder.metrics[TRAIN_LOSS] = float(pl_module.last_loss)

    def flush(self) -> None:
        for index, loss in enumerate(torch.stack(self.losses).tolist() if self.losses else []):
            self.rows[2 * index] = dataclasses.replace(self.rows[2 * index], value=loss)
        self.recorder.write(self.rows)
        self.losses, self.rows = [], []

    def state_dict(self) -> dict[str, Any]:
        """How many rows the file has, those of steps that a resumed run does not make again among them; it must find
        these."""
        self.flush()
        writer = self.recorder.writer
        return {"num_rows": writer.num_rows} if writer is not None else {}


class Checkpointer(Callback):
    """`checkpoints/last.safetensors` every so many steps and at the end of each epoch (everything that resuming needs),
    `checkpoints/epoch-<e>.safetensors` (the adapter alone) after e epochs."""

    RANGES = {"every_num_steps": (1, None)}

    def __init__(self, every_num_steps: int = 50) -> None:
        self.every, self.saved = every_num_steps, 0

    def begin(self, folder: Path, facts: dict[str, Any], measured_steps: int | None = None) -> None:
        """folder: of the run. facts: what an adapter's file says of it. measured_steps: the adapter is also kept every
        so many steps, where it is measured."""
        self.folder, self.facts = folder / "checkpoints", facts
        self.steps_of, self.kept = measured_steps, 0

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        moment, step = moment_of(trainer), trainer.global_step
        epoch_done = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if (step % self.every == 0 and step != self.saved) or epoch_done or moment.last:
            trainer.save_checkpoint(self.last)
            self.saved = step
        if self.steps_of is not None and step % self.steps_of == 0 and step != self.kept:
            self.kept = step
            self._keep(trainer, pl_module, f"step-{step:06d}", {"epoch": moment.epoch, "step": step})
        if epoch_done:
            self._keep(trainer, pl_module, f"epoch-{moment.epoch:03d}", {"epoch": moment.epoch})

    def _keep(self, trainer: pl.Trainer, pl_module: Any, stem: str, facts: dict[str, Any]) -> None:
        """What is trained, under a name of its own."""
        if trainer.is_global_zero:
            facts = self.facts | facts
            if pl_module.llm.trains == "lora":  # all of an LLM would fill the disk
                facts[LLM_SUM] = save_llm(self.folder, pl_module.llm, stem)
            save_adapter(self.folder, pl_module.adapter, facts, stem)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """After an epoch's last step: as if the next epoch were about to begin. From Lightning's own state of that
        moment a resumed run would not call `on_train_epoch_start`, and would count an epoch too few from then on.
        (After the very last epoch its state is right: training is over, `on_train_end` is still to come.)"""
        loop = checkpoint["loops"]["fit_loop"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
        if not batches["is_last_batch"] or moment_of(trainer).last:
            return
        for counts in (epochs["total"], epochs["current"], batches["total"]):
            counts.update(dict.fromkeys(counts, counts["ready"]))
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


class Bar(Callback):
    """One bar per epoch with the running loss."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.advance is None and math.isfinite(trainer.num_training_batches):
            most = trainer.max_epochs if trainer.max_epochs not in (None, -1) else "?"
            what = f"epoch {trainer.current_epoch + 1}/{most}"
            left = int(trainer.num_training_batches) - batch_idx
            self.advance = self.stack.enter_context(progress(left, what, "step"))

    advance: Callable[..., Any] | None = None
    said = ""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.advance is not None:
            if may_wait(pl_module.device, trainer.global_step):
                self.said = f"loss {float(pl_module.last_loss):.3f}"
            self.advance(1, self.said)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self.stack.close()
        self.advance = None
