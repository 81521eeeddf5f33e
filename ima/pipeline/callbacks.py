"""What happens beside the training steps: alignment and tasks at epoch borders, rows, checkpoints.

Epoch e is measured BEFORE its first step (epoch 0: the untrained adapter), the last one after training. So a
checkpoint taken inside epoch e always stands after the measurement of e, and a killed run measures again just what was
not finished: `measured` travels in the checkpoint, rows past it are dropped on resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from ima.alignment.measurement import write_measurement
from ima.config.settings import Alignment, Evaluation
from ima.core.metric_names import TRAIN_LOSS
from ima.core.progress import progress
from ima.core.types import Row, Sample
from ima.pipeline.checkpoint import LLM_SUM, save_adapter, save_llm
from ima.pipeline.evaluator import Evaluator, metric_rows
from ima.pipeline.parts import spread
from ima.pipeline.recorder import Base, Recorder
from ima.tasks.base import Prediction


class EpochMeasure(Callback):
    """Calls `measure(epoch, step, last)` of its parts before each epoch and after the last."""

    def __init__(self, parts: Sequence[EpochPart], num_epochs: int) -> None:
        self.parts, self.num_epochs = parts, num_epochs
        self.measured = -1
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch >= self.num_epochs:
            self._measure(trainer, self.num_epochs)

    def _measure(self, trainer: pl.Trainer, epoch: int) -> None:
        if epoch <= self.measured:
            return
        start = time.perf_counter()
        for part in self.parts:
            part.measure(epoch, trainer.global_step, epoch == self.num_epochs)
        self.measured = epoch
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.measured = state_dict["measured"]


class Export(Callback):
    """Calls `write` when the last step is made. Comes before what measures the trained model: a measurement that fails
    loses no training."""

    def __init__(self, write: Callable[[], None], num_epochs: int) -> None:
        self.write, self.num_epochs = write, num_epochs

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch >= self.num_epochs and trainer.is_global_zero:
            self.write()


class EpochPart:
    """Something measured at an epoch border; epoch None: of a model that was trained elsewhere, once."""

    def measure(self, epoch: int | None, step: int, last: bool) -> None:
        raise AssertionError("each part measures something")


class AlignmentLogger(EpochPart):
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

    def measure(self, epoch: int | None, step: int, last: bool) -> None:
        alignment = self.alignment
        if alignment is not None and not last and (epoch or 0) % alignment.every_num_epochs:
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
                write_measurement(self.folder, suite, lens, self._facts(split, epoch))
        self.recorder.write(rows)
        self.recorder.keep(rows)

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


class GenerationScorer(EpochPart):
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

    def measure(self, epoch: int | None, step: int, last: bool) -> None:
        every = self.evaluation.generate_every_num_epochs
        if not last and (every == 0 or not epoch or epoch % every):
            return
        for track, samples in self.tracks.items():
            chosen = samples if last else spread(samples, self.evaluation.num_generated)
            predictions = self.evaluator.predict(chosen)
            self._record(predictions, track, track, epoch, step, last)
            if last:
                self.final[track] = predictions
        if last and self.tracks:
            track, samples = next(iter(self.tracks.items()))
            beside = {"blind": self.evaluator.predict(samples, blind=True)}
            beside |= {name: self.evaluator.predict(spoilt) for name, spoilt in self.controls.items()}
            guesses = self.evaluator.prior(samples)
            self.final |= beside | ({"prior": guesses} if guesses is not None else {})
            for name in (*beside, *(("prior",) if guesses is not None else ())):
                self._record(self.final[name], track, name, epoch, step, last)

    def _record(
        self, predictions: Sequence[Prediction], split: str, track: str, epoch: int | None, step: int, last: bool
    ) -> None:
        metrics = self.evaluator.score(predictions, split)
        base = self.recorder.base(epoch=epoch, step=step, split="test", track=track)
        if not last:
            base["note"] = f"subset of {len(predictions)}"
        rows = list(metric_rows(metrics, base))
        self.recorder.write(rows)
        if last:
            self.recorder.keep(rows)


class StepRecorder(Callback):
    """Loss and learning rate of the steps to rows, flushed with each checkpoint, epoch and at the end."""

    def __init__(self, recorder: Recorder, every: int) -> None:
        self.recorder, self.every = recorder, every
        self.rows: list[Row] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every == 0:
            base = self.recorder.base(epoch=trainer.current_epoch, step=step, split="train")
            self.rows += [
                Row(score="train_loss", value=pl_module.last_loss, **base),
                Row(score="lr", value=pl_module.last_lr, **base),
            ]
        if len(self.rows) >= 64:
            self.flush()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.flush()
        self.recorder.metrics[TRAIN_LOSS] = pl_module.last_loss

    def flush(self) -> None:
        self.recorder.write(self.rows)
        self.rows = []

    def state_dict(self) -> dict[str, Any]:
        """How many rows the file has; what a resumed run finds there must be these."""
        writer = self.recorder.writer
        return {"num_rows": writer.num_rows} if writer is not None else {}


class Checkpointer(Callback):
    """`checkpoints/last.safetensors` every so many steps and at the end of each epoch (everything that resuming needs),
    `checkpoints/epoch-<e>.safetensors` (the adapter alone) after e epochs. Comes after `StepRecorder`."""

    RANGES = {"every_num_steps": (1, None)}

    def __init__(self, every_num_steps: int = 50) -> None:
        self.every = every_num_steps

    def begin(self, folder: Path, steps: StepRecorder, facts: dict[str, Any]) -> None:
        """folder: of the run. facts: what an adapter's file says of it."""
        self.folder, self.steps, self.facts = folder / "checkpoints", steps, facts

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        epoch_done = batch_idx + 1 >= trainer.num_training_batches
        if trainer.global_step % self.every == 0 or epoch_done:
            self.steps.flush()
            trainer.save_checkpoint(self.last)
        if epoch_done and trainer.is_global_zero:
            epoch = trainer.current_epoch + 1
            facts, stem = self.facts | {"epoch": epoch}, f"epoch-{epoch:03d}"
            if pl_module.llm.trains == "lora":  # all of an LLM would fill the disk
                facts[LLM_SUM] = save_llm(self.folder, pl_module.llm, stem)
            save_adapter(self.folder, pl_module.adapter, facts, stem)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """After an epoch's last step: as if the next epoch were about to begin. From Lightning's own state of that
        moment a resumed run would not call `on_train_epoch_start`, and would count an epoch too few from then on.
        (After the very last epoch its state is right: training is over, `on_train_end` is still to come.)"""
        loop = checkpoint["loops"]["fit_loop"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
        if not batches["is_last_batch"] or trainer.current_epoch + 1 == trainer.max_epochs:
            return
        for counts in (epochs["total"], epochs["current"], batches["total"]):
            counts.update(dict.fromkeys(counts, counts["ready"]))
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


class Bar(Callback):
    """One bar per epoch with the running loss."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self.stack = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.advance is None:
            what = f"epoch {trainer.current_epoch + 1}/{self.num_epochs}"
            self.advance = self.stack.enter_context(
                progress(int(trainer.num_training_batches) - batch_idx, what, "step")
            )

    advance: Callable[..., Any] | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.advance is not None
        self.advance(1, f"loss {pl_module.last_loss:.3f}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self.stack.close()
        self.advance = None
