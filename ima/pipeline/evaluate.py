"""Measuring a trained adapter, perhaps under interventions, into a folder of its own.

With the same config it gives the numbers that the run itself ended with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ima.config.instantiation import alignment_of, build, evaluation_of, flags_of, loader_of
from ima.core.errors import UserError, prefix_errors
from ima.core.trust import recorded_dtype
from ima.core.types import Sample
from ima.data.source import Source
from ima.interventions.base import Intervention, Setting
from ima.interventions.plan import Plan, plan_facts, plan_of
from ima.interventions.stack import stack
from ima.models.hf_multimodal import Lmm, declared_kind
from ima.models.llm.load import going_to
from ima.models.multimodal import MultimodalModel
from ima.pipeline.assemble import assemble, build_interventions, device_of
from ima.pipeline.callbacks import AlignmentLogger, GenerationScorer
from ima.pipeline.checkpoint import load_adapter, load_llm
from ima.pipeline.hf_evaluator import LmmCalibration, LmmEvaluator
from ima.pipeline.parts import Parts, TaskStream
from ima.pipeline.plan_seconds import Passes, plan_seconds, say_seconds, time_passes
from ima.pipeline.prepare import (
    NUM_TYPICAL,
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
        with stack(parts.llm, parts.acting), fast(parts, training=False):
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
    """Measure a multimodal model that was trained elsewhere, perhaps under interventions."""
    with RunInProgress(config, folder, command) as run:
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        with run.timed("load"):
            loader, evaluation, alignment = loader_of(config), evaluation_of(config), alignment_of(config)
            device = device_of(flags_of(config))
            interventions = build_interventions(config)
            source, task = build(config, "data"), build(config, "task")
            known = declared_kind(str(config["lmm"].get("path")), config["lmm"].get("revision"))
            if known:  # before its weights are loaded
                check_shown(source, known.modalities, known.model_type)
            with going_to(device.type):
                lmm: Lmm = build(config, "lmm").to(device)
            check_shown(source, lmm.modalities, lmm.llm.name)
        nothing: Any = None  # no encoder and no adapter of ours
        stream = TaskStream("", source, task, nothing, nothing, None, loader, evaluation)
        split = alignment.split if alignment else "val"
        val = stream.samples(split, evaluation.num_samples) if split in source.splits else []
        evaluator = LmmEvaluator(lmm, task, source, loader.eval_batch_size, loader.num_workers)
        plan = plan_of_whole(evaluator, interventions, val or next(iter(stream.tracks().values()), []))
        print_plan(lmm.llm, plan)
        evaluated = {"evaluated": str(config["lmm"].get("path")), "device": str(device)}
        run.set_facts(whole_facts(lmm, stream) | evaluated | ({"plan": plan_facts(plan)} if interventions else {}))
        recorder = run.open_recorder(facts_of(stream), job_type="evaluate")
        scorer = GenerationScorer(evaluator, stream.tracks(), {}, evaluation, recorder)
        parts = [*([AlignmentLogger(evaluator, val, alignment, recorder, folder)] if val else []), scorer]
        with stack(lmm.llm, plan.interventions):
            for part in parts:
                part.measure(None, 0, last=True)
        measures = [Measure(stream, recorder, evaluator, scorer, parts)]
        run.gather(recorder, measures)
        if val and any(each.saves_time for each in plan.interventions):
            found = whole_plan_seconds(evaluator, plan.interventions, val)
            say_seconds(found)
            run.record.facts |= {"plan_seconds": found}
        return run.finish_record(measures, None)


def check_shown(source: Source, modalities: Sequence[str], name: str) -> None:
    if source.modality not in modalities:
        raise UserError(f"data: {source.name} is {source.modality}; {name} is shown: {', '.join(modalities)}")


def plan_of_whole(evaluator: LmmEvaluator, chosen: dict[str, Intervention], samples: Sequence[Sample]) -> Plan:
    """The interventions as they act on this model, and what they do for a typical prompt. Raises UserError with the key
    of one that does not fit."""
    lmm, tokens = evaluator.lmm, evaluator.typical_tokens(samples[:NUM_TYPICAL])

    def calibrate(run: Path | str, num_examples: int, seed: int) -> LmmCalibration:
        if str(run) != lmm.llm.name:
            raise UserError(f"run: {run}; a whole model is calibrated on the samples of data, leave it out")
        return LmmCalibration(lmm, evaluator.task, evaluator.source, num_examples, seed)

    setting, acting = Setting(tokens, Path(lmm.llm.name), None, calibrate), []
    for name, intervention in chosen.items():
        with prefix_errors(f"intervention.{name}"):
            with intervention.apply(lmm.llm):
                pass
            acting.append(intervention.resolve(lmm.llm, setting))
    return plan_of(lmm.llm, acting, tokens)


def whole_plan_seconds(
    evaluator: LmmEvaluator, interventions: Sequence[Intervention], samples: Sequence[Sample]
) -> dict[str, Any]:
    """Seconds of a batch with and without the interventions; the model's encoder is in neither pass over the prompt."""
    lmm = evaluator.lmm
    batch = next(iter(evaluator.batches(samples[: evaluator.batch_size], answers=False)))
    x_BSD, roles_BS, _ = lmm.splice(batch)
    ids = [sample.id for sample in batch.samples]
    passes = Passes(
        lambda: None, lambda: lmm.llm(x_BSD, roles_BS, ids), lambda: lmm.generate(batch, evaluator.settings)
    )
    return time_passes(lmm.llm, interventions, passes, len(batch))


def whole_facts(lmm: Lmm, stream: TaskStream) -> dict[str, Any]:
    num_frozen = sum(p.numel() for p in lmm.whole.parameters())
    return llm_facts(lmm.llm) | task_facts(stream) | {"num_trainable": 0, "num_frozen": num_frozen}
