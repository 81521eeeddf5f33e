"""Wires the parts of a run: config in, run folder out. The only file that knows them all.

`fit` trains an adapter (resuming where a killed run left off), measures it and writes checkpoints, rows, predictions,
`result.json` and the page. `evaluate` measures a trained adapter, perhaps under interventions.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
from ima.checkpoint import SafetensorsIO, load_adapter, load_checkpoint, save_adapter, weight_sum
from ima.config import config_hash, run_folder
from ima.data.collate import Collate
from ima.data.loader import TrainLoader
from ima.errors import UserError
from ima.evaluation import Evaluator
from ima.folders import finished, owned, recorded, run_name
from ima.interventions import stack
from ima.llm.fast import accelerate
from ima.parts import Parts, assemble, device_of
from ima.provenance import provenance
from ima.report.build import write_report
from ima.results import RowWriter, read_result, read_rows, write_atomic, write_json
from ima.samples import write_samples
from ima.types import Row, Sample

NUM_SCALE_SAMPLES = 64


# -- the scripts' entries --------------------------------------------------------------------------------------------


def fit(config: dict[str, Any]) -> int:
    """train.py: a run folder from a composed config; the same command again resumes it. Returns the exit code."""
    quiet()
    folder = Path(config["output_dir"]) / run_name(config)
    command = command_line("train.py", config)
    if not is_main():
        train(config, folder, command)
        return 0
    with owned(folder):
        if config["resume"] == "must" and not last_checkpoint(folder).is_file():
            raise UserError(f"resume: must, but there is no {last_checkpoint(folder)}; use resume=auto")
        result = finished(folder, config)
        if result is not None:
            print(f"{folder}: this run is finished already; overwrite=true trains it anew")
        else:
            with recorded(folder):
                result = train(config, folder, command)
        summarise(folder, result)
    return 0


def evaluate(config: dict[str, Any]) -> int:
    """evaluate.py: measure a trained adapter into a folder below its run."""
    quiet()
    run, checkpoint = find_adapter(config["checkpoint"])
    folder = (
        Path(config["output_dir"]) / config["name"] if config.get("name") else run / f"evaluate-{config_hash(config)}"
    )
    with owned(folder):
        result = finished(folder, config)
        if result is not None:
            print(f"{folder}: evaluated already; overwrite=true measures again")
        else:
            with recorded(folder):
                result = measure(config, folder, command_line("evaluate.py", config), run, checkpoint)
        summarise(folder, result)
    return 0


def command_line(script: str, config: dict[str, Any]) -> str:
    overrides = (config.get("choices") or {}).get("overrides") or sys.argv[1:]
    return shlex.join(["python", script, *overrides])


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.safetensors"


def find_adapter(checkpoint: str) -> tuple[Path, Path]:
    """(run folder, adapter file) of what the user named: a run folder or one of its files."""
    run, path = run_folder(checkpoint), Path(checkpoint)
    if path.is_file():
        return run, path
    for candidate in (path / "adapter.safetensors", last_checkpoint(run)):
        if candidate.is_file():
            return run, candidate
    raise UserError(f"checkpoint: {checkpoint} has no adapter.safetensors and no checkpoint yet; train it first")


def summarise(folder: Path, result: dict[str, Any]) -> None:
    """The headline numbers on the terminal, and the page."""
    metrics, headline = result["metrics"], result["facts"].get("headline", "noun_accuracy")
    for name in sorted(metrics):
        if name.endswith(f"/{headline}") or name in ("ima/mean", "val/loss"):
            low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
            interval = f"  [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
            value = metrics[name]
            print(f"{name:24s} {'nan' if value is None else f'{value:.3f}'}{interval}")
    print(f"page: {write_report([folder])}")


def quiet() -> None:
    """Lightning's hints about things that are decided here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*number of training batches.*",
        ".*No device id.*",
        ".*module\\(s\\) in eval mode.*",
    ):
        warnings.filterwarnings("ignore", message)


# -- training --------------------------------------------------------------------------------------------------------


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
    pool, val, tracks = parts.samples("train"), parts.samples(measured_split(parts), t.eval_samples), parts.tracks()
    controls = parts.controls()
    with timed(clock, "encode"):
        if parts.store is not None:
            everything = itertools.chain(pool, val, *tracks.values(), *controls.values())
            parts.store.ensure(
                list({sample.id: sample for sample in everything}.values()), device, t.eval_batch_size, t.num_workers
            )
    steps_per_epoch = -(-len(pool) // t.batch_size)
    module = parts.module(num_steps=steps_per_epoch * t.epochs)
    facts = run_facts(parts, config)
    if resume:
        facts |= {"start_norm": earlier["start_norm"]} if "start_norm" in earlier else {}
    else:
        facts["start_norm"] = start(parts, pool)

    if main:
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
    scorer = GenerationScorer(evaluator, tracks, controls, t, recorder)
    borders = EpochMeasure([AlignmentLogger(evaluator, val, parts.alignment, recorder), scorer], t.epochs)
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
                datamodule=Data(parts, pool, config["seed"]),
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


def fast(parts: Parts) -> AbstractContextManager[object]:
    """Blocks as single autograd nodes where they are of a kind that is understood; entered after interventions."""
    return accelerate(parts.llm.model) if parts.training.fast else nullcontext()


def measured_split(parts: Parts) -> str:
    return parts.alignment.split if parts.alignment else "val"


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


def run_facts(parts: Parts, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "llm": parts.llm.name,
        "llm_dtype": str(parts.llm.dtype).removeprefix("torch."),
        "llm_width": parts.llm.width,
        "llm_blocks": parts.llm.num_blocks,
        "encoder": type(parts.encoder).__name__,
        "encoder_fingerprint": parts.encoder.fingerprint,
        "encoder_dim": parts.encoder.dim,
        "encoder_tokens": parts.encoder.num_tokens,
        "adapter": type(parts.adapter).__name__,
        "num_trainable": sum(p.numel() for p in parts.adapter.parameters()),
        "num_frozen": sum(p.numel() for p in parts.llm.parameters()),
        "source": parts.source.name,
        "headline": parts.task.headline,
        "source_fingerprint": parts.source.fingerprint,
        "num_samples": {split: len(parts.source.samples(split)) for split in parts.source.splits},
        "device": str(device_of(parts.training)),
        "feature_cache_bytes": parts.store.num_bytes() if parts.store else 0,
    }


# -- evaluation ------------------------------------------------------------------------------------------------------


def measure(config: dict[str, Any], folder: Path, command: str, run: Path, checkpoint: Path) -> dict[str, Any]:
    """Measure the adapter at `checkpoint` (of the run folder `run`) and write rows and result into `folder`."""
    started = time.perf_counter()
    record = {"status": "running", "config": config, "command": command, "seeds": {"seed": config["seed"]}}
    record |= {"config_hash": config_hash(config)} | provenance()
    write_json(folder / "result.json", record | {"metrics": {}, "wall_seconds": None})
    clock: dict[str, float] = {}
    trained = read_result(run).get("facts", {})
    if config["llm"].get("dtype") == "auto" and trained.get("llm_dtype"):
        config["llm"]["dtype"] = trained["llm_dtype"]  # the same numbers as in training, whatever is fastest here
    with timed(clock, "load"):
        parts = assemble(config)
        t = parts.training
        load_adapter(checkpoint, parts.adapter)
        device = device_of(t)
        module = parts.module().to(device).eval()
    val, tracks, controls = parts.samples(measured_split(parts), t.eval_samples), parts.tracks(), parts.controls()
    with timed(clock, "encode"):
        if parts.store is not None:
            everything = itertools.chain(val, *tracks.values(), *controls.values())
            parts.store.ensure(
                list({sample.id: sample for sample in everything}.values()), device, t.eval_batch_size, t.num_workers
            )
    facts = run_facts(parts, config) | {"evaluated": str(checkpoint)}
    (folder / "rows.jsonl").unlink(missing_ok=True)
    recorder = Recorder(
        folder.name,
        RowWriter(folder / "rows.jsonl"),
        {"task": parts.task.name, "dataset_a": parts.source.name, "modality_a": parts.source.modality},
    )
    evaluator = Evaluator(module, parts.task, parts.source, parts.percepts, t.eval_batch_size, t.num_workers)
    scorer = GenerationScorer(evaluator, tracks, controls, t, recorder)
    epoch = t.epochs
    with stack(parts.llm, parts.interventions), fast(parts):
        AlignmentLogger(evaluator, val, parts.alignment, recorder).measure(epoch, 0, last=True)
        scorer.measure(epoch, 0, last=True)
    facts["seconds"] = {key: round(value, 2) for key, value in (clock | evaluator.seconds).items()}
    result = record | {
        "status": "ok",
        "metrics": recorder.metrics,
        "facts": facts,
        "wall_seconds": round(time.perf_counter() - started, 2),
    }
    write_samples(folder, scorer.final, parts.task, parts.source, epoch)
    write_json(folder / "result.json", result)
    return result


# -- small things ----------------------------------------------------------------------------------------------------


def is_main() -> bool:
    """Whether this process is rank 0, known before any process group exists."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    # Lightning starts its own processes with LOCAL_RANK, perhaps inside a Slurm job of one task.
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


class timed:  # noqa: N801 (reads as a statement)
    """Seconds of a phase, added to a clock."""

    def __init__(self, clock: dict[str, float], phase: str) -> None:
        self.clock, self.phase = clock, phase

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock[self.phase] = self.clock.get(self.phase, 0.0) + time.perf_counter() - self.start
