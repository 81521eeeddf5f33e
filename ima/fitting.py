"""Training a run into its folder: the trainer around the parts, what is recorded on the way, the result at the end.

The same call again resumes where a killed run left off. The order of things matters here and nowhere else: load,
encode, bring the fresh adapter to scale, train and measure, write.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate

from ima.callbacks import (
    AlignmentLogger,
    Bar,
    Checkpointer,
    EpochMeasure,
    GenerationScorer,
    Recorder,
    StepRecorder,
    drop_unfinished,
)
from ima.checkpoint import SafetensorsIO, last_checkpoint, load_checkpoint, save_adapter, weight_sum
from ima.config import config_hash
from ima.data.collate import Collate
from ima.data.loader import TrainLoader
from ima.evaluation import Evaluator, is_main
from ima.interventions import stack
from ima.interventions.auto import resolved
from ima.parts import Parts, assemble, device_of
from ima.progress import timed
from ima.provenance import provenance
from ima.ready import fast, make_ready, run_facts, say_plan, typical_tokens
from ima.results import RowWriter, read_result, read_rows, write_atomic, write_json
from ima.samples import write_samples
from ima.types import Row, Sample

NUM_SCALE_SAMPLES = 64


class Data(pl.LightningDataModule):
    """The training loader, made when the ranks are known. Its place in the epoch travels in the checkpoint as the data
    module's state: Lightning restores that of a loader only when it counts the epoch as unfinished."""

    def __init__(self, parts: Parts, samples: Sequence[Sample], seed: int) -> None:
        super().__init__()
        self.parts, self.samples, self.seed = parts, samples, seed
        self.loader: TrainLoader | None = None
        self.resumed: dict[str, Any] = {}

    def train_dataloader(self) -> TrainLoader:
        assert self.trainer is not None
        t = self.parts.training
        collate = Collate(self.parts.task, self.parts.llm, self.parts.percepts, training=True, loss_on=t.loss_on)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        self.loader = TrainLoader(self.samples, collate, t.batch_size, self.seed, rank, world, t.num_workers)
        if self.resumed:
            self.loader.load_state_dict(self.resumed)
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict() if self.loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)


def train(config: dict[str, Any], folder: Path, command: str) -> dict[str, Any]:
    """Train into `folder`; returns the result. `config`: resolved, checked, plain."""
    started = time.perf_counter()
    main = is_main()
    last = last_checkpoint(folder)
    resume = last.is_file() and config["resume"] != "never"
    record = {"status": "running", "config": config, "command": command, "seeds": {"seed": config["seed"]}}
    record |= {"config_hash": config_hash(config)} | provenance()
    earlier = read_result(folder).get("facts", {}) if resume else {}
    if main:
        write_json(folder / "result.json", record | {"metrics": {}, "facts": earlier, "wall_seconds": None})
    clock: dict[str, float] = {}
    with timed(clock, "load"):
        parts = assemble(config)
        t = parts.training
        device = device_of(t)
        parts.llm.to(device)
        frozen_before = weight_sum(parts.llm)
    with timed(clock, "encode"):
        shown = make_ready(parts, training=True, report=main)
    parts.interventions = resolved(parts.interventions, parts.llm, typical_tokens(parts, shown))
    steps_per_epoch = -(-len(shown.train) // t.batch_size)
    module = parts.module(num_steps=steps_per_epoch * t.epochs)
    facts = run_facts(parts, shown)
    if resume:
        facts |= {"start_norm": earlier["start_norm"]} if "start_norm" in earlier else {}
    else:
        facts["start_norm"] = start(parts, shown.train)

    if main:
        say_plan(parts, shown)
        write_json(folder / "result.json", record | {"metrics": {}, "facts": facts, "wall_seconds": None})
    writer = RowWriter(folder / "rows.jsonl") if main else None
    recorder = Recorder(
        folder.name,
        writer,
        {"task": parts.task.name, "dataset_a": parts.source.name, "modality_a": parts.source.modality},
    )
    if writer is not None:
        if resume:
            state = load_checkpoint(last)
            drop_unfinished(writer, state["global_step"], measured_epoch(state))
        else:
            write_atomic(folder / "rows.jsonl", "")
    evaluator = Evaluator(module, parts.task, parts.source, parts.percepts, t.eval_batch_size, t.num_workers)
    scorer = GenerationScorer(evaluator, shown.tracks, shown.controls, t, recorder)
    borders = EpochMeasure([AlignmentLogger(evaluator, shown.val, parts.alignment, recorder, folder), scorer], t.epochs)
    steps = StepRecorder(recorder, t.log_every_num_steps)
    checkpointer = Checkpointer(folder, t.save_every_num_steps, steps, facts)

    logger = instantiate(config["logger"])(folder, config) if main and config.get("logger") else None
    if logger is not None:
        logger.mirror(kept_rows(folder))  # a resumed run is a new one there, and begins with what is known
        recorder.mirrors.append(logger.mirror)
    # Deterministic kernels, without torch's filling of every new tensor (a tenth of the step).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=t.devices,
        num_nodes=t.num_nodes,
        strategy=t.strategy,
        max_epochs=t.epochs,
        precision="32-true",
        plugins=[SafetensorsIO()],
        callbacks=[borders, steps, checkpointer, Bar(t.epochs)],
        deterministic=device.type == "cpu",
        use_distributed_sampler=False,
        # what Lightning would add by itself is done by the callbacks above
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    with timed(clock, "fit"), stack(parts.llm, parts.interventions), fast(parts):
        try:
            trainer.fit(
                module,
                datamodule=Data(parts, shown.train, config["seed"]),
                ckpt_path=str(last) if resume else None,
                weights_only=False,
            )
        except SystemExit as leave:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from leave
    if not trainer.state.finished or trainer.interrupted:
        raise KeyboardInterrupt
    assert weight_sum(parts.llm.to(device)) == frozen_before, "the frozen LLM changed during training"
    assert borders.measured == t.epochs, "the last measurement is missing"
    clock |= {"measure": borders.seconds, "train": clock["fit"] - borders.seconds}
    facts |= {
        "seconds": {key: round(value, 2) for key, value in (clock | evaluator.seconds).items()},
        "num_steps": trainer.global_step,
    }
    result = record | {
        "status": "ok",
        "metrics": recorder.metrics,
        "facts": facts,
        "wall_seconds": round(time.perf_counter() - started, 2),
    }
    if main:
        save_adapter(folder, module.adapter, facts | {"config": config, "metrics": recorder.metrics})
        write_samples(folder, scorer.final, parts.task, parts.source, t.epochs)
        write_json(folder / "result.json", result)
    if logger is not None:
        logger.finish(recorder.metrics)
    return result


def measured_epoch(state: dict[str, Any]) -> int:
    return max((value["measured"] for value in state["callbacks"].values() if "measured" in value), default=-1)


def kept_rows(folder: Path) -> list[Row]:
    rows = read_rows(folder / "rows.jsonl")
    return [Row(**row | {"value": math.nan if row["value"] is None else row["value"]}) for row in rows]


@torch.no_grad()
def start(parts: Parts, pool: Sequence[Sample]) -> dict[str, float]:
    """Bring a fresh adapter's output to the scale of the LLM's embeddings, on features of the first samples."""
    samples = list(pool[:: max(1, len(pool) // NUM_SCALE_SAMPLES)])[:NUM_SCALE_SAMPLES]
    batch = parts.percepts(samples, None)
    features = batch["features_BNE"] if "features_BNE" in batch else parts.encoder(batch["media"])
    found = parts.adapter.cpu().start_at_norm(features.float().cpu(), parts.llm.embedding_norm)
    return {"before": found, "target": parts.llm.embedding_norm}
