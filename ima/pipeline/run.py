"""The entries of train.py and evaluate.py: config in, run folder out.

`fit` trains an adapter (resuming where a killed run left off), measures it and writes checkpoints, rows, predictions,
`result.json` and the page. `evaluate` measures a trained adapter, perhaps under interventions. Here are folders, exit
codes and what the terminal says; the modules `fit` and `evaluate` do the work.
"""

from __future__ import annotations

import functools
import logging
import shlex
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ima.config.instantiation import flags_of
from ima.core.commands import arguments, command_of
from ima.core.distributed import hint_of_ranks, place_of
from ima.core.errors import UserError
from ima.core.metric_names import GROWTH, GROWTH_NULL, IMA_MEAN, RETRIEVAL, RETRIEVAL_CHANCE, VAL_LOSS, limits_of
from ima.models.llava import is_foreign
from ima.pipeline.evaluate import measure, measure_whole
from ima.pipeline.fit import train
from ima.pipeline.loggers import wandb
from ima.pipeline.stages import stage_configs
from ima.pipeline.streams import print_table
from ima.report.build import write_report
from ima.runs.find import evaluation_folder, find_adapter, run_folder
from ima.runs.folders import is_finished, last_checkpoint, load_finished_or_clear, run_lock, run_name
from ima.runs.hub import local
from ima.runs.record import RunRecord


def fit(config: dict[str, Any]) -> int:
    """train.py: a run folder from a composed config; the same command again resumes it. Returns the exit code.

    Stages are trained one after the other, each one's folder below the run's; the last one is the run itself."""
    quiet()
    place = place_of(flags_of(config))
    main, hint = place.is_main, hint_of_ranks(place)
    top = Path(config["output_dir"]) / run_name(config)
    init = Path(local(config["init"], "init")) if config.get("init") else None
    if init is not None and not is_foreign(init):
        run_folder(str(init), "init")
    trainings = stage_configs(config, run_name(config))
    command = command_line("train", config)
    anew = config["overwrite"] or config["resume"] == "never"
    with run_lock(top, hint) if main else nullcontext():
        if len(trainings) > 1 and main and anew:
            load_finished_or_clear(top, config)  # also clears the stages below
        for name, staged in trainings:
            folder = Path(config["output_dir"]) / name
            last = folder == top
            with run_lock(folder, hint) if main and not last else nullcontext():
                kept = staged | ({} if len(trainings) == 1 else {"overwrite": False})
                record = fit_one(kept, folder, command, init, anew, main)
            if not last:
                wandb.close(folder)
            init = folder
            if not last and dist.is_initialized():
                dist.barrier()  # the next stage starts from what the first rank wrote
        if main and record is not None and not record.is_ok:
            print(record.reason)
        elif main and record is not None:
            summarise(top, record)
    return 0


def fit_one(
    config: dict[str, Any], folder: Path, command: str, init: Path | None, anew: bool, main: bool
) -> RunRecord | None:
    """One training into a folder that is ours; its record (None on other ranks than the first). anew: whatever is there
    is trained again; other ranks must not look, the first may not have cleared it yet."""
    if not main:
        if anew or not is_finished(folder, config):
            train(config, folder, command, init, anew)
        return None
    if config["resume"] == "must" and not last_checkpoint(folder).is_file():
        raise UserError(f"resume: must, but there is no {last_checkpoint(folder)}; use resume=auto")
    record = load_finished_or_clear(folder, config)
    if record is not None:
        print(f"{folder}: this run is finished already; overwrite=true trains it anew")
        return record
    return train(config, folder, command, init, anew)


def evaluate(config: dict[str, Any]) -> int:
    """evaluate.py: measure a trained adapter into a folder below its run, or a whole model into one of its own."""
    quiet()
    folder = evaluation_folder(config)
    if config.get("lmm"):
        return evaluated(config, folder, measure_whole)
    run, checkpoint = find_adapter(config["checkpoint"])
    return evaluated(config, folder, functools.partial(measure, source=run, checkpoint=checkpoint))


def evaluated(config: dict[str, Any], folder: Path, measured: Callable[..., RunRecord]) -> int:
    """measured: (config, folder, command) -> record."""
    with run_lock(folder):
        record = load_finished_or_clear(folder, config)
        if record is not None:
            print(f"{folder}: evaluated already; overwrite=true measures again")
        else:
            record = measured(config, folder, command_line("evaluate", config))
        summarise(folder, record)
    return 0


def command_line(script: str, config: dict[str, Any]) -> str:
    """What a person types for this run."""
    overrides = (config.get("choices") or {}).get("overrides") or arguments()
    return " ".join([command_of(script), *map(shlex.quote, overrides)])


def summarise(folder: Path, record: RunRecord) -> None:
    """The headline numbers on the terminal, and the page."""
    metrics, headline = record.metrics, record.facts.get("headline", "noun_accuracy")
    several = bool(record.facts.get("entries"))
    if several:
        print_table(record)
    for name in () if several else sorted(metrics):
        if name.endswith(f"/{headline}") or name in (IMA_MEAN, RETRIEVAL, GROWTH, VAL_LOSS):
            low, high = (metrics.get(limit) for limit in limits_of(name))
            interval = f"  [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
            value = metrics[name]
            says = f"  {say(metrics)}" if (say := SAYS.get(name)) and value is not None else ""
            print(f"{name:24s} {'nan' if value is None else f'{value:.3f}'}{interval}{says}")
    print(f"page: {write_report([folder])}")
    if told := wandb.close(folder):
        record.more["wandb"] = told
        record.write(folder)
        if told.get("url"):
            print(f"W&B: {told['url']}")


def against(metrics: Mapping[str, float | None], name: str) -> str:
    value = metrics.get(name)
    return "?" if value is None else f"{value:.3f}"


# What a number can say, beside it on the terminal.
SAYS: dict[str, Callable[[Mapping[str, float | None]], str]] = {
    IMA_MEAN: lambda _: "how close media and texts lie; noise reaches the same",
    RETRIEVAL: lambda metrics: f"media that find their own text; chance {against(metrics, RETRIEVAL_CHANCE)}",
    GROWTH: lambda metrics: f"what the LLM adds to the adapter; by chance {against(metrics, GROWTH_NULL)}",
}


def quiet() -> None:
    """Lightning's hints about things that are decided here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*number of training batches.*",
        ".*No device id.*",
        ".*module\\(s\\) in eval mode.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message)
