"""Measuring a trained adapter, perhaps under interventions, into a folder of its own.

With the same config it gives the numbers that the run itself ended with.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ima.config.instantiation import alignment_of, build, evaluation_of, flags_of, loader_of
from ima.core.errors import UserError
from ima.core.trust import recorded_dtype
from ima.interventions.stack import stack
from ima.models.hf_multimodal import Lmm
from ima.models.llm.load import going_to
from ima.models.multimodal import MultimodalModel
from ima.pipeline.assemble import assemble, device_of
from ima.pipeline.callbacks import AlignmentLogger, GenerationScorer
from ima.pipeline.checkpoint import load_adapter, load_llm
from ima.pipeline.hf_evaluator import LmmEvaluator
from ima.pipeline.parts import Parts, Stream
from ima.pipeline.plan_seconds import plan_seconds, say_seconds
from ima.pipeline.prepare import (
    PreparedSamples,
    fast,
    llm_facts,
    make_ready,
    print_plan,
    resolve_plan,
    run_facts,
    task_facts,
)
from ima.pipeline.record import RunInProgress
from ima.pipeline.stages import apply_stage
from ima.pipeline.streams import Measure, facts_of, measures_of
from ima.runs.find import run_config
from ima.runs.identity import with_dtype
from ima.runs.record import RunRecord, read_record

MADE = ("encoder", "adapter", "llm", "mixture", "stage", "trainer")  # what says how a run's adapters were made


def measure(config: dict[str, Any], folder: Path, command: str, source: Path, checkpoint: Path) -> RunRecord:
    """Measure the adapter at `checkpoint` (of the run folder `source`) and write rows and record into `folder`."""
    with RunInProgress(config, folder, command) as run:
        dtype = recorded_dtype(read_record(source).facts, "llm_dtype", source / "result.json")
        config = run.record.config
        # the same numbers as in training, whatever is fastest here
        config["llm"] = with_dtype(config["llm"], {"llm_dtype": dtype})
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        with run.timed("load"):
            parts = load_trained(config, source, checkpoint)
            model = parts.model().to(device_of(parts.flags)).eval()
        with run.timed("encode"):
            prepared = make_ready(parts, training=False)
        plan = resolve_plan(parts, prepared, config["llm"], source)
        print_plan(parts.llm, plan)
        run.set_facts(run_facts(parts, prepared, plan) | {"evaluated": str(checkpoint)})
        recorder = run.open_recorder(facts_of(parts.streams[0]), job_type="evaluate")
        measures = measures_of(parts, model, prepared, recorder, folder)
        named = re.fullmatch(r"epoch-(\d+)", checkpoint.stem)
        epoch = int(named[1]) if named else reached_epoch(source, parts)
        with stack(parts.llm, parts.acting), fast(parts):
            for part in (part for measure in measures for part in measure.parts):
                part.measure(epoch, 0, last=True)
        run.gather(recorder, measures)
        run.record.facts |= time_plan(parts, model, prepared[0], measures[0])
        return run.finish_record(measures, epoch)


def reached_epoch(source: Path, parts: Parts) -> int | None:
    """The epoch in which the training of the run in `source` ended."""
    found = read_record(source).facts.get("num_epochs", parts.flags.max_epochs)
    return int(found) if isinstance(found, int) and found >= 0 else None


def load_trained(config: dict[str, Any], source: Path, checkpoint: Path) -> Parts:
    """The parts with the weights of a run's checkpoint."""
    made = apply_stage(run_config(str(source), MADE), training=False)
    parts = assemble(apply_stage(config, training=False), trained=made if made.get("mixture") else None)
    load_adapter(checkpoint, parts.adapter)
    if parts.llm.trains != "none":
        load_llm(checkpoint, parts.llm)
        if parts.interventions:  # they act on stock blocks; without them the numbers are those of the run's end
            parts.llm.merge()
    return parts


def time_plan(parts: Parts, model: MultimodalModel, prepared: PreparedSamples, measure: Measure) -> dict[str, Any]:
    """Seconds of a batch with and without the interventions, as facts, where one of them saves time."""
    if not any(each.saves_time for each in parts.acting) or not prepared.val:
        return {}
    items = [(sample, 0) for sample in prepared.val[: parts.loader.eval_batch_size]]
    batch = parts.streams[0].collate(parts.llm, answers=False)(items)
    found = plan_seconds(model, parts.acting, batch, measure.evaluator.settings, parts.llm.fast)
    say_seconds(found)
    return {"plan_seconds": found}


def measure_whole(config: dict[str, Any], folder: Path, command: str) -> RunRecord:
    """Measure a multimodal model that was trained elsewhere."""
    with RunInProgress(config, folder, command) as run:
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        with run.timed("load"):
            loader, evaluation, alignment = loader_of(config), evaluation_of(config), alignment_of(config)
            device = device_of(flags_of(config))
            source, task = build(config, "data"), build(config, "task")
            if source.modality != "image":
                raise UserError(f"data: {source.name} is {source.modality}; a whole model is shown pictures")
            with going_to(device.type):
                lmm = build(config, "lmm").to(device)
        nothing: Any = None  # no encoder and no adapter of ours
        stream = Stream("", source, task, nothing, nothing, None, loader, evaluation)
        split = alignment.split if alignment else "val"
        val = stream.samples(split, evaluation.num_samples) if split in source.splits else []
        evaluated = {"evaluated": str(config["lmm"].get("path")), "device": str(device)}
        run.set_facts(whole_facts(lmm, stream) | evaluated)
        recorder = run.open_recorder(facts_of(stream), job_type="evaluate")
        evaluator = LmmEvaluator(lmm, task, source, loader.eval_batch_size, loader.num_workers)
        scorer = GenerationScorer(evaluator, stream.tracks(), {}, evaluation, recorder)
        parts = [*([AlignmentLogger(evaluator, val, alignment, recorder, folder)] if val else []), scorer]
        for part in parts:
            part.measure(None, 0, last=True)
        measures = [Measure(stream, recorder, evaluator, scorer, parts)]
        run.gather(recorder, measures)
        return run.finish_record(measures, None)


def whole_facts(lmm: Lmm, stream: Stream) -> dict[str, Any]:
    num_frozen = sum(p.numel() for p in lmm.whole.parameters())
    return llm_facts(lmm.llm) | task_facts(stream) | {"num_trainable": 0, "num_frozen": num_frozen}
