"""Names of a sweep's jobs for people: their folders are named by a hash, their rows by what varies.

A label is made of the overrides that not all jobs share: `focus_vit layer=10`. An evaluation of an epoch is called as
its training, with the epoch; evaluations of several runs begin with the run's name.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ima.report.run import Run

HASH = re.compile(r"[0-9a-f]{12}")
EPOCH = re.compile(r"epoch-0*(\d+)\.safetensors")
PLACES = ("name", "output_dir", "checkpoint", "overwrite", "resume")


def name_jobs(runs: Sequence[Run]) -> None:
    """Give runs in folders named by a hash a label instead; no two runs get the same name."""
    jobs = [run for run in runs if HASH.fullmatch(run.folder.name)]
    given = {id(run): overrides_of(run) for run in jobs}
    for script in {script_of(run) for run in jobs}:
        same = [run for run in jobs if script_of(run) == script]
        shared = set.intersection(*(set(given[id(run)]) for run in same)) if len(same) > 1 else set()
        for run in same:
            given[id(run)] = [text for text in given[id(run)] if text not in shared]
    labels = {id(run): " ".join(map(brief, given[id(run)])) for run in jobs}
    trained = {str(run.folder.resolve()): labels[id(run)] for run in jobs}
    several = len({run.result["config"].get("checkpoint") for run in jobs} - {None}) > 1
    for run in jobs:
        found = EPOCH.search(checkpoint := str(run.result["config"].get("checkpoint") or ""))
        if found:
            first = trained.get(str(Path(checkpoint).resolve().parent.parent), "")
            words = [first, labels[id(run)] if labels[id(run)] != first else "", f"epoch {found[1]}"]
            labels[id(run)] = " ".join(filter(None, words))
        elif several and checkpoint:
            labels[id(run)] = f"{run_of(Path(checkpoint))} {labels[id(run)]}".strip()
    counts = Counter(labels.values())
    for run in jobs:
        label, path = labels[id(run)], Path(run.name)
        if not label or counts[label] > 1:
            label = f"{label} {run.folder.name[:6]}".strip()
        run.name = label if path.name == run.name else f"{path.parent.as_posix()}/{label}"


def run_of(checkpoint: Path) -> str:
    """The name of the run that a checkpoint is of, given as its folder or its adapter."""
    return checkpoint.parent.name if checkpoint.suffix == ".safetensors" else checkpoint.name


def overrides_of(run: Run, places: Sequence[str] = PLACES) -> list[str]:
    """What the run's command gave it, without where it goes."""
    try:
        words = shlex.split(str(run.result.get("command") or ""))
    except ValueError:
        return []
    return [text for text in words[2:] if "=" in text and text.split("=", 1)[0] not in places]


def varied(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """What the commands gave differently: for each key, in the order in which they come, the value of each run."""
    kept = tuple(place for place in PLACES if place != "checkpoint")
    given = [dict(text.split("=", 1) for text in overrides_of(run, kept)) for run in runs]
    keys = dict.fromkeys(key for each in given for key in each)
    values = {key: [each.get(key) for each in given] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def script_of(run: Run) -> str:
    """train.py or evaluate.py, also where it was called as `ima train`."""
    words = str(run.result.get("command")).split()
    if "ima" in words[:3]:
        return f"{words[words.index('ima') + 1]}.py" if words[-1] != "ima" else ""
    return next((word for word in words if word.endswith(".py")), "")


def brief(text: str) -> str:
    """encoder=noise -> noise, encoder.layer=3 -> layer=3, seed=1 as it is."""
    name, value = text.split("=", 1)
    if "." in name:
        return f"{name.rpartition('.')[2]}={value}"
    return text if name in ("seed",) else value


def shortened(label: str, most: int = 26) -> str:
    """For a legend: the middle of a long name goes."""
    short = label if len(label) <= most else f"{label[:12]}…{label[-(most - 13) :]}"
    return f" {short}" if short.startswith("_") else short  # matplotlib leaves labels with an underscore out
