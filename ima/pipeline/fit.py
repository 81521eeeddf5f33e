"""Training a run into its folder: the trainer around the parts, and what is recorded on the way.

The same call again resumes where a killed run left off. The order of things matters here and nowhere else: load,
encode, bring the fresh adapter to scale, train and measure, write.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from ima.config.instantiation import build, flags_of, made
from ima.core.distributed import Place, place_of
from ima.core.errors import UserError, prefix_errors
from ima.core.files import write_json
from ima.core.types import Batch, Sample
from ima.data.collate import MixedCollate
from ima.data.loader import TrainLoader, check_passes
from ima.data.mixture import Mixture
from ima.interventions.stack import stack
from ima.models.llm.tuning import trained_names, weight_sum
from ima.pipeline.assemble import assemble, device_of
from ima.pipeline.callbacks import Bar, Checkpointer, Export, StepRecorder
from ima.pipeline.checkpoint import ADAPTER_SUM, LLM_SUM, SafetensorsIO, load_checkpoint, save_adapter, save_llm
from ima.pipeline.foresight import Foresight
from ima.pipeline.init_adapters import init_adapters
from ima.pipeline.moments import DUE, Measurements
from ima.pipeline.parts import Parts
from ima.pipeline.prepare import fast, make_ready, print_plan, resolve_plan, run_facts
from ima.pipeline.ranks import KnownRanks
from ima.pipeline.record import RunInProgress, is_lightnings
from ima.pipeline.recorder import Recorder
from ima.pipeline.stages import apply_stage
from ima.pipeline.streams import Measure, facts_of, measures_of
from ima.pipeline.throughput import Throughput
from ima.runs.folders import last_checkpoint
from ima.runs.identity import with_dtype
from ima.runs.record import RunRecord, read_record

CHARACTERS_OF_A_MEDIUM = 60
# What Lightning would add by itself is done by our own callbacks.
OWN: dict[str, Any] = {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
    "inference_mode": False,  # what is measured may be kept and used in a later step
}


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
        t, parts = self.parts.loader, self.parts
        collates = {s.name: s.collate(parts.llm, training=True, loss_on=t.loss_on) for s in parts.streams}
        rank, world = self.trainer.global_rank, self.trainer.world_size
        is_fixed = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        samples = [sample for pool in self.pools for sample in pool]
        self.loader = TrainLoader(
            samples, MixedCollate(collates), t.batch_size, self.seed, rank, world, t.num_workers,
            mixture_of(parts, self.pools), self.trainer.accumulate_grad_batches, is_fixed,
        )  # fmt: skip
        limit = self.trainer.limit_train_batches
        most = int(limit * len(self.loader)) if isinstance(limit, float) else limit
        self.loader.limit = max(1, min(most, len(self.loader)))
        if self.resumed:
            self.loader.load_state_dict(self.resumed)
        return self.loader

    def val_dataloader(self) -> DataLoader[int]:
        """One turn of Lightning's validation loop: callbacks measure in it, over samples of their own."""
        return DataLoader([0], batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        if self.loader is None:
            return {}
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if isinstance(batch, Batch) else batch


def mixture_of(parts: Parts, pools: Sequence[Sequence[Sample]]) -> Mixture:
    """`pools`: the training samples of each stream."""
    t = parts.loader
    for stream, pool in zip(parts.streams, pools, strict=True):
        if not pool:
            raise UserError(f"{stream.key}: the train split is empty")
    lengths = [text_length(sample) for pool in pools for sample in pool] if t.group_lengths else None
    sizes, weights = [len(pool) for pool in pools], [stream.weight for stream in parts.streams]
    return Mixture(sizes, weights, t.temperature, t.batches, lengths)


def text_length(sample: Sample) -> int:
    """Characters, near enough for putting samples of similar length together."""
    told = sum(len(text) for _, text in sample.turns) or len(sample.question) + len(next(iter(sample.references), ""))
    return told + CHARACTERS_OF_A_MEDIUM * len(sample.media_samples)


def train(
    config: dict[str, Any], folder: Path, command: str, init: Path | None = None, anew: bool = False
) -> RunRecord:
    """Train into `folder`. `config`: resolved, checked, plain. init: where training starts from, the adapter (and LLM)
    of an earlier stage. anew: not from a checkpoint, which another rank may be about to clear."""
    place = place_of(flags_of(config))
    resume = None if anew or not last_checkpoint(folder).is_file() else last_checkpoint(folder)
    earlier = read_record(folder).facts if resume else {}
    with RunInProgress(config, folder, command, place.is_main, earlier) as run:
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        if config["trainer"].get("deterministic"):  # before the first product on a GPU
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        with run.timed("load"):
            parts = load_parts(config, earlier)
            check_passes(parts.loader.batch_size, parts.flags.accumulate_grad_batches, place.num)
            frozen_before = frozen_sum(parts, place)
        with run.timed("encode"):
            prepared = make_ready(parts, training=True, report=place.is_main)
        plan = resolve_plan(parts, prepared, config["llm"])
        pools = [one.train for one in prepared]
        module = parts.module()
        facts = run_facts(parts, prepared, plan)
        facts |= kept_facts(earlier) if resume else init_adapters(parts, pools, init)
        if place.is_main:
            print_plan(parts.llm, plan)
        run.set_facts(facts)
        recorder = run.open_recorder(facts_of(parts.streams[0]), reached(resume) if resume and place.is_main else None)
        measures = measures_of(parts, module.model, prepared, recorder, folder)
        measurements, callbacks = callbacks_of(parts, run, recorder, measures)
        throughput = Throughput()
        trainer = trainer_of(apply_stage(config), parts, place, folder, [throughput, *callbacks])
        with run.timed("fit"), stack(parts.llm, parts.acting), fast(parts, training=True):
            fit_module(trainer, module, Data(parts, pools, config["seed"]), resume)
            if measurements.due is not None:  # it was killed after its last step, and there was nothing to train
                module.to(device_of(parts.flags, place.local))
                measurements.on_train_end(trainer, module)
        assert frozen_sum(parts, place) == frozen_before, "the frozen LLM changed during training"
        end = measurements.done
        assert end is not None and end.last, "the last measurement is missing"
        run.clock |= {"measure": measurements.seconds, "train": run.clock["fit"] - measurements.seconds}
        per_token = plan_flops(facts).get("prefill_per_token")
        facts["throughput"] = throughput.facts(parts.llm, run.clock["train"], run.clock["fit"], per_token, place.num)
        run.gather(recorder, measures)
        facts |= {"num_steps": trainer.global_step, "num_epochs": end.epoch}
        if place.is_main:
            write_json(folder / "adapter.json", facts | {"config": config, "metrics": recorder.metrics})
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return run.stop("trainer.fast_dev_run: all parts of the run work; without it the same command trains")
        return run.finish_record(measures, end.epoch)


def load_parts(config: dict[str, Any], earlier: dict[str, Any]) -> Parts:
    """A resumed run goes on in the dtype that it began in (`earlier` facts), whatever is fastest here."""
    made = apply_stage(config)
    return assemble({**made, "llm": with_dtype(made["llm"], earlier)})


def plan_flops(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of the plan that acts, if its interventions say them."""
    return (facts.get("plan") or {}).get("flops") or {}


def frozen_sum(parts: Parts, place: Place) -> str:
    llm = parts.llm.to(device_of(parts.flags, place.local))  # Lightning leaves it on the CPU
    return weight_sum(llm, trained_names(llm))


def kept_facts(earlier: dict[str, Any]) -> dict[str, Any]:
    """What only the beginning of a resumed run knew."""
    return {"start_norm": earlier["start_norm"]} if "start_norm" in earlier else {}


def reached(checkpoint: Path) -> tuple[int, int, int | None]:
    """(steps made, step of the last measurement or -1, rows written) of a checkpoint."""
    state = load_checkpoint(checkpoint)
    if DUE not in state:
        raise UserError(f"{checkpoint}: of an earlier version and cannot be gone on from; overwrite=true trains anew")
    told = {name: value for each in state["callbacks"].values() for name, value in each.items()}
    measured = told.get("measured") or {"step": -1}
    return state["global_step"], measured["step"], told.get("num_rows")


def callbacks_of(
    parts: Parts, run: RunInProgress, recorder: Recorder, measures: Sequence[Measure]
) -> tuple[Measurements, list[pl.Callback]]:
    """What measures, and all callbacks in the order in which they are called."""
    facts = run.record.facts

    def export() -> None:
        """What was trained, before it is measured for the last time: the same command goes on with that measurement."""
        if parts.llm.trains != "none":
            facts[LLM_SUM] = save_llm(run.folder, parts.llm)
        facts[ADAPTER_SUM] = save_adapter(run.folder, parts.adapter, facts | {"config": run.record.config})

    measured = [part for measure in measures for part in measure.parts]
    measurements = Measurements(measured, recorder)
    steps = StepRecorder(recorder, parts.flags.log_every_n_steps or 1)
    chosen = [build(run.record.config["callbacks"], name, "callbacks.") for name in run.record.config["callbacks"]]
    for name, callback in zip(run.record.config["callbacks"], chosen, strict=True):
        if not isinstance(callback, pl.Callback):
            raise UserError(f"callbacks.{name}: a {type(callback).__name__} is no lightning.pytorch.Callback")
        if isinstance(callback, Checkpointer):
            callback.begin(run.folder, facts, parts.alignment.every_num_steps if parts.alignment else None)
    foresight = Foresight(run.folder, lambda: measurements.seconds)
    return measurements, [Export(export), *measured, measurements, steps, *chosen, foresight, Bar()]


def trainer_of(
    config: dict[str, Any], parts: Parts, place: Place, folder: Path, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """The trainer of the config around what is made here."""
    # Deterministic kernels, without torch's filling of every new tensor (a tenth of the step).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    flags, device = parts.flags, device_of(parts.flags, place.local)
    node = OWN | {key: value for key, value in config["trainer"].items() if value is not None}
    node |= {"accelerator": device.type, "strategy": flags.strategy if place.num > 1 else "auto"}
    if place.num == 1:
        node["devices"] = [device.index] if device.type == "cuda" else 1
    node.setdefault("deterministic", device.type == "cpu")
    if any(isinstance(callback, Checkpoint) for callback in callbacks):
        node["enable_checkpointing"] = True
    if parts.alignment is not None and parts.alignment.every_num_steps is not None:
        every = parts.alignment.every_num_steps * flags.accumulate_grad_batches
        node = {"val_check_interval": every, "check_val_every_n_epoch": None} | node
    with prefix_errors("trainer"):
        make = made(node, _partial_=True, _convert_="all")
        trainer = make(
            plugins=[SafetensorsIO(), KnownRanks(place)],
            default_root_dir=folder,  # under Slurm Lightning looks there for checkpoints of its own
            callbacks=callbacks,
            use_distributed_sampler=False,
            logger=loggers_of(config, folder) or False,
        )
    assert isinstance(trainer, pl.Trainer)
    return trainer


def loggers_of(config: Mapping[str, Any], folder: Path) -> list[Logger]:
    nodes = {"logger": config.get("logger")}
    nodes |= {f"loggers.{name}": node for name, node in (config.get("loggers") or {}).items()}
    return [found for key, node in nodes.items() if (found := logger_of(node, folder, key)) is not None]


def logger_of(node: Mapping[str, Any] | None, folder: Path, key: str) -> Logger | None:
    """A logger of Lightning's, writing into the run's folder where the config says nothing else."""
    if not node or not is_lightnings(node):
        return None
    with prefix_errors(key):
        make = made({**node, "_partial_": True}, _convert_="all")
        asks = "save_dir" in inspect.signature(make.func).parameters and "save_dir" not in node
        found = make(save_dir=folder) if asks else make()
    if not isinstance(found, Logger):
        raise UserError(f"{key}: a {type(found).__name__} is no lightning.pytorch.loggers.Logger")
    return found


def fit_module(trainer: pl.Trainer, module: pl.LightningModule, data: Data, resume: Path | None) -> None:
    """Raises KeyboardInterrupt where training was interrupted."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=False)
    except SystemExit as leave:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from leave
    if not trainer.state.finished or trainer.interrupted:
        raise KeyboardInterrupt
