"""Measuring a trained adapter, perhaps under interventions, into a folder of its own.

With the same config it gives the numbers that the run itself ended with.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate

from ima.config.instantiation import alignment_of, build, training_of
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.core.progress import timed
from ima.core.provenance import provenance
from ima.core.trust import recorded_dtype
from ima.interventions.base import Setting
from ima.interventions.plan import plan_of
from ima.interventions.stack import stack
from ima.models.hf_multimodal import Lmm
from ima.pipeline.assemble import assemble, device_of
from ima.pipeline.calibration import CalibrationTask
from ima.pipeline.callbacks import AlignmentLogger, GenerationScorer
from ima.pipeline.checkpoint import load_adapter, load_llm
from ima.pipeline.hf_evaluator import LmmEvaluator
from ima.pipeline.loggers.wandb import failures_told
from ima.pipeline.parts import Stream
from ima.pipeline.plan_seconds import plan_seconds, say_seconds
from ima.pipeline.predictions import write_all_samples
from ima.pipeline.prepare import (
    fast,
    llm_facts,
    make_ready,
    print_plan,
    run_facts,
    task_facts,
    typical_tokens,
)
from ima.pipeline.recorder import Recorder
from ima.pipeline.stages import effective
from ima.pipeline.streams import facts_of, gather, measures_of, seconds_of, write_table
from ima.runs.find import run_config
from ima.runs.identity import identified, with_dtype
from ima.runs.results import RowWriter, read_result

MADE = ("encoder", "adapter", "llm", "mixture", "stage", "trainer")  # what says how a run's adapters were made


def measure(config: dict[str, Any], folder: Path, command: str, run: Path, checkpoint: Path) -> dict[str, Any]:
    """Measure the adapter at `checkpoint` (of the run folder `run`) and write rows and result into `folder`."""
    started, record = time.perf_counter(), begin(config, folder, command)
    clock: dict[str, float] = {}
    trained = read_result(run).get("facts", {})
    dtype = recorded_dtype(trained, "llm_dtype", run / "result.json")
    config["llm"] = with_dtype(
        config["llm"], {"llm_dtype": dtype}
    )  # the same numbers as in training, whatever is fastest here
    with timed(clock, "load"):
        made = effective(run_config(str(run), MADE), training=False)
        parts = assemble(effective(config, training=False), trained=made if made.get("mixture") else None)
        t = parts.training
        load_adapter(checkpoint, parts.adapter)
        if parts.llm.trains != "none":
            load_llm(checkpoint, parts.llm)
            if parts.interventions:  # they act on stock blocks; without them the numbers are those of the run's end
                parts.llm.merge()
        device = device_of(t)
        model = parts.model().to(device).eval()
    with timed(clock, "encode"):
        shown = make_ready(parts, training=False)
    parts.resolve(Setting(typical_tokens(parts, shown), run, config["llm"], CalibrationTask))
    plan = plan_of(parts.llm, parts.acting, typical_tokens(parts, shown))
    facts = run_facts(parts, shown, plan) | {"evaluated": str(checkpoint)}
    print_plan(parts.llm, plan)
    recorder, logger = recording(config, folder, facts_of(parts.streams[0]))
    measures = measures_of(parts, model, shown, recorder, folder)
    named = re.fullmatch(r"epoch-(\d+)", checkpoint.stem)
    epoch = int(named[1]) if named else t.epochs
    with failures_told(logger), stack(parts.llm, parts.acting), fast(parts):
        for part in (part for measure in measures for part in measure.parts):
            part.measure(epoch, 0, last=True)
    gather(recorder, measures)
    facts["seconds"] = {key: round(value, 2) for key, value in (clock | seconds_of(measures)).items()}
    if any(each.saves_time for each in parts.acting) and shown[0].val:
        items = [(sample, 0) for sample in shown[0].val[: t.eval_batch_size]]
        batch = parts.streams[0].collate(parts.llm, answers=False)(items)
        settings = measures[0].evaluator.settings
        facts["plan_seconds"] = plan_seconds(model, parts.acting, batch, settings, t.fast)
        say_seconds(facts["plan_seconds"])
    result = ended(record, recorder, facts, started)
    write_all_samples(folder, [measure.final for measure in measures], epoch)
    write_table(folder, result)
    write_json(folder / "result.json", result)
    if logger is not None:
        logger.finish(recorder.metrics)
    return result


def measure_whole(config: dict[str, Any], folder: Path, command: str) -> dict[str, Any]:
    """Measure a multimodal model that was trained elsewhere."""
    started, record = time.perf_counter(), begin(config, folder, command)
    clock: dict[str, float] = {}
    with timed(clock, "load"):
        t = training_of(config)
        alignment = alignment_of(config)
        source, task = build(config, "data"), build(config, "task")
        if source.modality != "image":
            raise UserError(f"data: {source.name} is {source.modality}; a whole model is shown pictures")
        lmm = build(config, "lmm").to(device_of(t))
    nothing: Any = None  # no encoder and no adapter of ours
    stream = Stream("", source, task, nothing, nothing, None, t)
    split = alignment.split if alignment else "val"
    val = stream.samples(split, t.eval_samples) if split in source.splits else []
    facts = whole_facts(lmm, stream) | {"evaluated": str(config["lmm"].get("path")), "device": str(device_of(t))}
    recorder, logger = recording(config, folder, facts_of(stream))
    evaluator = LmmEvaluator(lmm, task, source, t.eval_batch_size, t.num_workers)
    scorer = GenerationScorer(evaluator, stream.tracks(), {}, t, recorder)
    parts = [*([AlignmentLogger(evaluator, val, alignment, recorder, folder)] if val else []), scorer]
    with failures_told(logger):
        for part in parts:
            part.measure(None, 0, last=True)
    facts["seconds"] = {key: round(value, 2) for key, value in (clock | evaluator.seconds).items()}
    result = ended(record, recorder, facts, started)
    write_all_samples(folder, [("", scorer.final, task, source)], None)
    write_json(folder / "result.json", result)
    if logger is not None:
        logger.finish(recorder.metrics)
    return result


def whole_facts(lmm: Lmm, stream: Stream) -> dict[str, Any]:
    num_frozen = sum(p.numel() for p in lmm.whole.parameters())
    return llm_facts(lmm.llm) | task_facts(stream) | {"num_trainable": 0, "num_frozen": num_frozen}


def begin(config: dict[str, Any], folder: Path, command: str) -> dict[str, Any]:
    """What `result.json` says from the start; from here on draws come from the seed."""
    record = {"status": "running", "config": config, "command": command, "seeds": {"seed": config["seed"]}}
    record |= identified(config) | provenance()
    write_json(folder / "result.json", record | {"metrics": {}, "wall_seconds": None})
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    return record


def recording(config: dict[str, Any], folder: Path, facts: dict[str, Any]) -> tuple[Recorder, Any]:
    """The recorder of a new `rows.jsonl`, and its mirror where there is one."""
    (folder / "rows.jsonl").unlink(missing_ok=True)
    recorder, logger = Recorder(folder.name, RowWriter(folder / "rows.jsonl"), facts), None
    if config.get("logger"):
        kind = {} if "job_type" in config["logger"] else {"job_type": "evaluate"}
        logger = instantiate(config["logger"])(folder, config, **kind)
        recorder.mirrors.append(logger.mirror)
    return recorder, logger


def ended(record: dict[str, Any], recorder: Recorder, facts: dict[str, Any], started: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - started, 2)
    return record | {"status": "ok", "metrics": recorder.metrics, "facts": facts, "wall_seconds": seconds}
