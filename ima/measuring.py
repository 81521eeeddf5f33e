"""Measuring a trained adapter, perhaps under interventions, into a folder of its own.

With the same config it gives the numbers that the run itself ended with.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from ima.callbacks import AlignmentLogger, GenerationScorer, Recorder
from ima.checkpoint import load_adapter
from ima.config import config_hash
from ima.dashboard import failures_told
from ima.data.collate import Collate
from ima.evaluation import Evaluator
from ima.interventions import stack
from ima.interventions.auto import resolved
from ima.interventions.latency import plan_seconds, say_seconds
from ima.parts import assemble, device_of
from ima.progress import timed
from ima.provenance import provenance
from ima.ready import fast, make_ready, run_facts, say_plan, typical_tokens
from ima.results import RowWriter, read_result, write_json
from ima.samples import write_samples


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
    with timed(clock, "encode"):
        shown = make_ready(parts, training=False)
    parts.interventions = resolved(parts.interventions, parts.llm, typical_tokens(parts, shown), run)
    facts = run_facts(parts, shown) | {"evaluated": str(checkpoint)}
    say_plan(parts, shown)
    (folder / "rows.jsonl").unlink(missing_ok=True)
    recorder = Recorder(
        folder.name,
        RowWriter(folder / "rows.jsonl"),
        {"task": parts.task.name, "dataset_a": parts.source.name, "modality_a": parts.source.modality},
    )
    logger = None
    if config.get("logger"):
        kind = {} if "job_type" in config["logger"] else {"job_type": "evaluate"}
        logger = instantiate(config["logger"])(folder, config, **kind)
        recorder.mirrors.append(logger.mirror)
    evaluator = Evaluator(module, parts.task, parts.source, parts.percepts, t.eval_batch_size, t.num_workers)
    scorer = GenerationScorer(evaluator, shown.tracks, shown.controls, t, recorder)
    named = re.fullmatch(r"epoch-(\d+)", checkpoint.stem)
    epoch = int(named[1]) if named else t.epochs
    with failures_told(logger), stack(parts.llm, parts.interventions), fast(parts):
        AlignmentLogger(evaluator, shown.val, parts.alignment, recorder, folder).measure(epoch, 0, last=True)
        scorer.measure(epoch, 0, last=True)
    facts["seconds"] = {key: round(value, 2) for key, value in (clock | evaluator.seconds).items()}
    if parts.interventions:
        batch = Collate(parts.task, parts.llm, parts.percepts, answers=False)(shown.val[: t.eval_batch_size])
        facts["plan_seconds"] = plan_seconds(module, parts.interventions, batch, evaluator.settings, t.fast)
        say_seconds(facts["plan_seconds"])
    result = record | {
        "status": "ok",
        "metrics": recorder.metrics,
        "facts": facts,
        "wall_seconds": round(time.perf_counter() - started, 2),
    }
    write_samples(folder, scorer.final, parts.task, parts.source, epoch)
    write_json(folder / "result.json", result)
    if logger is not None:
        logger.finish(recorder.metrics)
    return result
