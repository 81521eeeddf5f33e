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

from ima.config.instantiation import training_of
from ima.core.distributed import place_of
from ima.core.errors import UserError
from ima.core.files import write_atomic, write_json
from ima.core.progress import timed
from ima.core.provenance import provenance
from ima.core.types import Row, Sample
from ima.data.collate import MixedCollate
from ima.data.loader import TrainLoader
from ima.data.mixture import Mixture
from ima.interventions.base import Setting
from ima.interventions.plan import plan_of
from ima.interventions.stack import stack
from ima.models.llava import is_foreign
from ima.models.llm.tuning import trained_names, weight_sum
from ima.pipeline.assemble import assemble, device_of
from ima.pipeline.calibration import CalibrationTask
from ima.pipeline.callbacks import Bar, Checkpointer, EpochMeasure, Export, StepRecorder
from ima.pipeline.checkpoint import SafetensorsIO, load_adapter, load_checkpoint, load_llm, save_adapter, save_llm
from ima.pipeline.loggers.wandb import failures_told
from ima.pipeline.parts import Parts, Stream
from ima.pipeline.predictions import write_all_samples
from ima.pipeline.prepare import fast, make_ready, print_plan, run_facts, typical_tokens
from ima.pipeline.ranks import KnownRanks
from ima.pipeline.recorder import Recorder, drop_unfinished
from ima.pipeline.stages import effective
from ima.pipeline.streams import facts_of, gather, measures_of, seconds_of, write_table
from ima.runs.find import run_folder
from ima.runs.folders import last_checkpoint
from ima.runs.identity import identified, with_dtype
from ima.runs.results import RowWriter, read_result, read_rows

NUM_SCALE_SAMPLES = 64
CHARACTERS_OF_A_MEDIUM = 60


class Data(pl.LightningDataModule):
    """The training loader, made when the ranks are known. Its place in the epoch travels in the checkpoint as the data
    module's state: Lightning restores that of a loader only when it counts the epoch as unfinished."""

    def __init__(self, parts: Parts, pools: Sequence[Sequence[Sample]], seed: int) -> None:
        super().__init__()
        self.parts, self.pools, self.seed = parts, pools, seed
        self.loader: TrainLoader | None = None
        self.resumed: dict[str, Any] = {}

    def train_dataloader(self) -> TrainLoader:
        assert self.trainer is not None
        t, parts = self.parts.training, self.parts
        collates = {s.name: s.collate(parts.llm, training=True, loss_on=t.loss_on) for s in parts.streams}
        rank, world = self.trainer.global_rank, self.trainer.world_size
        samples = [sample for pool in self.pools for sample in pool]
        self.loader = TrainLoader(
            samples, MixedCollate(collates), t.batch_size, self.seed, rank, world, t.num_workers,
            mixture_of(parts, self.pools),
        )  # fmt: skip
        if self.resumed:
            self.loader.load_state_dict(self.resumed)
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict() if self.loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)


def mixture_of(parts: Parts, pools: Sequence[Sequence[Sample]]) -> Mixture:
    """`pools`: the training samples of each stream."""
    t = parts.training
    for stream, pool in zip(parts.streams, pools, strict=True):
        if not pool:
            raise UserError(f"{stream.key}: the train split is empty")
    lengths = [text_length(sample) for pool in pools for sample in pool] if t.group_lengths else None
    sizes, weights = [len(pool) for pool in pools], [stream.weight for stream in parts.streams]
    return Mixture(sizes, weights, t.temperature, t.batches, lengths)


def text_length(sample: Sample) -> int:
    """Characters, near enough for putting samples of similar length together."""
    told = sum(len(text) for _, text in sample.turns) or len(sample.question) + len(next(iter(sample.references), ""))
    return told + CHARACTERS_OF_A_MEDIUM * len(sample.shown)


def train(
    config: dict[str, Any], folder: Path, command: str, init: Path | None = None, anew: bool = False
) -> dict[str, Any]:
    """Train into `folder`; returns the result. `config`: resolved, checked, plain. init: where training starts from,
    the adapter (and LLM) of an earlier stage. anew: not from a checkpoint, which another rank may be about to clear."""
    started = time.perf_counter()
    place = place_of(training_of(config))
    main = place.is_main
    last = last_checkpoint(folder)
    resume = not anew and last.is_file()
    record = {"status": "running", "config": config, "command": command, "seeds": {"seed": config["seed"]}}
    record |= identified(config) | provenance()
    earlier = read_result(folder).get("facts", {}) if resume else {}
    if main:
        write_json(folder / "result.json", record | {"metrics": {}, "facts": earlier, "wall_seconds": None})
    clock: dict[str, float] = {}
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    with timed(clock, "load"):
        made = effective(config)  # a resumed run goes on in the dtype that it began in, whatever is fastest here
        parts = assemble({**made, "llm": with_dtype(made["llm"], earlier)})
        t = parts.training
        device = device_of(t, place.local)
        parts.llm.to(device)
        frozen_before = weight_sum(parts.llm, trained_names(parts.llm))
    with timed(clock, "encode"):
        shown = make_ready(parts, training=True, report=main)
    parts.resolve(Setting(typical_tokens(parts, shown), None, config["llm"], CalibrationTask))
    plan = plan_of(parts.llm, parts.acting, typical_tokens(parts, shown))
    pools = [one.train for one in shown]
    steps_per_epoch = mixture_of(parts, pools).num_batches(t.batch_size)
    module = parts.module(num_steps=steps_per_epoch * t.epochs)
    facts = run_facts(parts, shown, plan)
    if resume:
        facts |= {"start_norm": earlier["start_norm"]} if "start_norm" in earlier else {}
    else:
        facts |= begin(parts, pools, init)

    if main:
        print_plan(parts.llm, plan)
        write_json(folder / "result.json", record | {"metrics": {}, "facts": facts, "wall_seconds": None})
    writer = RowWriter(folder / "rows.jsonl") if main else None
    recorder = Recorder(folder.name, writer, facts_of(parts.streams[0]))
    if writer is not None:
        if resume:
            state = load_checkpoint(last)
            drop_unfinished(writer, state["global_step"], measured_epoch(state))
        else:
            write_atomic(folder / "rows.jsonl", "")
    measures = measures_of(parts, module.model, shown, recorder, folder)

    def export() -> None:
        """What was trained, before it is measured for the last time: the same command goes on with that measurement."""
        save_adapter(folder, module.adapter, facts | {"config": config})
        if parts.llm.trains != "none":
            save_llm(folder, parts.llm)

    borders = EpochMeasure([part for measure in measures for part in measure.parts], t.epochs)
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
        strategy=t.strategy if place.num > 1 else "auto",
        max_epochs=t.epochs,
        precision="32-true",
        plugins=[SafetensorsIO(), KnownRanks(place)],
        default_root_dir=folder,  # under Slurm Lightning looks there for checkpoints of its own
        callbacks=[Export(export, t.epochs), borders, steps, checkpointer, Bar(t.epochs)],
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
    with failures_told(logger), timed(clock, "fit"), stack(parts.llm, parts.acting), fast(parts):
        try:
            trainer.fit(
                module,
                datamodule=Data(parts, pools, config["seed"]),
                ckpt_path=str(last) if resume else None,
                weights_only=False,
            )
        except SystemExit as leave:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from leave
    if not trainer.state.finished or trainer.interrupted:
        raise KeyboardInterrupt
    frozen_after = weight_sum(parts.llm.to(device), trained_names(parts.llm))
    assert frozen_after == frozen_before, "the frozen LLM changed during training"
    assert borders.measured == t.epochs, "the last measurement is missing"
    clock |= {"measure": borders.seconds, "train": clock["fit"] - borders.seconds}
    facts |= {
        "seconds": {key: round(value, 2) for key, value in (clock | seconds_of(measures)).items()},
        "num_steps": trainer.global_step,
    }
    gather(recorder, measures)
    result = record | {
        "status": "ok",
        "metrics": recorder.metrics,
        "facts": facts,
        "wall_seconds": round(time.perf_counter() - started, 2),
    }
    if main:
        write_json(folder / "adapter.json", facts | {"config": config, "metrics": recorder.metrics})
        write_all_samples(folder, [measure.final for measure in measures], t.epochs)
        write_table(folder, result)
        write_json(folder / "result.json", result)
    if logger is not None:
        logger.finish(recorder.metrics)
    return result


def measured_epoch(state: dict[str, Any]) -> int:
    return max((value["measured"] for value in state["callbacks"].values() if "measured" in value), default=-1)


def kept_rows(folder: Path) -> list[Row]:
    rows = read_rows(folder / "rows.jsonl")
    return [Row(**row | {"value": math.nan if row["value"] is None else row["value"]}) for row in rows]


def begin(parts: Parts, pools: Sequence[Sequence[Sample]], init: Path | None) -> dict[str, Any]:
    """Fresh adapters brought to scale, or those of `init` taken over. Returns the facts of it."""
    scaled: dict[str, Any] = {}
    if init is not None:
        foreign = is_foreign(init)
        where = init if foreign or init.is_file() else init / "adapter.safetensors"
        if not where.exists():
            raise UserError(
                f"init: {where} does not exist; give a finished run, or one of its checkpoints/*.safetensors"
            )
        earlier = {} if foreign else read_result(run_folder(str(init), "init"))
        load_adapter(where, parts.adapter)
        trained = earlier.get("facts", {}).get("llm_train", "none")
        if trained != "none" and parts.llm.trains != trained:
            raise UserError(f"init: {init} has an LLM trained by {trained}; use llm.train={trained} here too")
        if trained != "none":
            load_llm(where, parts.llm)
        norms = earlier.get("facts", {}).get("start_norm", {})
        scaled = norms if norms and "before" not in norms else dict.fromkeys(parts.channels, norms)
    for stream, pool in zip(parts.streams, pools, strict=True):
        if stream.channel.name not in scaled:
            found = start_channel(parts, stream, pool)
            if found is not None:
                scaled[stream.channel.name] = found
    out: dict[str, Any] = {"start_norm": scaled[""] if list(parts.channels) == [""] and scaled else scaled}
    return out | ({"init": str(init)} if init is not None else {})


def start(parts: Parts, pool: Sequence[Sample]) -> dict[str, float]:
    """Bring a fresh adapter's output to the scale of the LLM's embeddings, on features of some samples."""
    found = start_channel(parts, parts.streams[0], pool)
    assert found is not None
    return found


@torch.no_grad()
def start_channel(parts: Parts, stream: Stream, pool: Sequence[Sample]) -> dict[str, float] | None:
    """None where no sample shows anything."""
    samples = list(pool[:: max(1, len(pool) // NUM_SCALE_SAMPLES)])[:NUM_SCALE_SAMPLES]
    media = [medium for sample in samples for medium in sample.shown]
    if not media:
        return None
    batch = stream.percepts(media, None)
    features = batch["features_BNE"] if "features_BNE" in batch else stream.channel.encoder(batch["media"])
    adapter, norm = stream.channel.adapter, parts.llm.embedding_norm
    return {"before": adapter.cpu().start_at_norm(features.float().cpu(), norm), "target": norm}
