"""Run folders -> plain Python values, forgiving about what a killed run left behind.

Only result.json is needed to be a run. Everything else may be absent or torn: what could not be read becomes a note
that the page shows. Rows stay dictionaries; pandas would cost a second of start-up and buy nothing here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.metric_names import current_row
from ima.report.curves import by_step
from ima.report.labels import name_jobs
from ima.report.run import Run
from ima.runs.record import RunRecord, read_record
from ima.runs.results import read_rows

NOT_RUNS = {"hub", "wandb", "media", "figures", "checkpoints", "masks", "__pycache__"}


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders named by `paths`: each is a run itself or a folder that holds runs at any depth, in stable order.
    Files among several paths are passed over, as `outputs/*` names them, too.

    Raises UserError for a path that is neither.
    """
    found: dict[Path, Path] = {}
    named = [Path(path) for path in paths]
    some_folder = any(path.is_dir() for path in named)
    for path in named:
        if path.is_file() and some_folder:
            continue
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"{path}: {what}; give a run folder (outputs/<run>) or a folder of runs")
        below = list(runs_below(path))
        if not below:
            raise UserError(f"{path}: no result.json in it or below; give a run folder (outputs/<run>)")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def runs_below(path: Path) -> Iterable[Path]:
    for folder, children, files in os.walk(path):
        if "result.json" in files:
            children.clear()
            yield Path(folder)
        else:
            order = {name: place for place, name in enumerate(jobs_in(Path(folder)))} if "sweep.json" in files else {}
            kept = (name for name in children if name not in NOT_RUNS and not name.startswith("."))
            children[:] = sorted(kept, key=lambda name: (order.get(name, len(order)), name))


def jobs_in(sweep: Path) -> list[str]:
    """Folders of a sweep's jobs in its order; empty where its file does not tell."""
    try:
        found = json.loads((sweep / "sweep.json").read_text()).get("folders") or []
        return [str(name) for name in found]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short names that tell the folders apart: the path below what all have in common."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    resolved = [folder.resolve() for folder in folders]
    top = os.path.commonpath([folder.parent for folder in resolved])
    return [folder.relative_to(top).as_posix() for folder in resolved]


def load_run(folder: Path, name: str | None = None, details: bool = True) -> Run:
    """One run. `details=False` reads result.json only (a thousand runs are listed that way).

    Raises UserError where result.json is missing or broken.
    """
    run = Run(folder, name or folder.resolve().name, read_record(folder).to_dict())
    if details:
        read_details(run)
    return run


def read_details(run: Run) -> None:
    try:
        for row in read_rows(run.folder / "rows.jsonl"):
            run.rows.append(current_row(row))
    except (UserError, UnicodeDecodeError) as error:
        run.notes.append(f"rows.jsonl was read up to a broken line: {error}")
    alignment = run.result["config"].get("alignment")
    if isinstance(alignment, dict) and alignment.get("every_num_steps"):
        run.rows = by_step(run.rows)
    run.samples, broken = read_samples(run.folder / "samples.jsonl")
    if broken:
        run.notes.append(f"samples.jsonl: {broken} line(s) could not be read and are left out")


def read_samples(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The shown samples and the number of lines that are none."""
    if not path.exists():
        return [], 0
    samples: list[dict[str, Any]] = []
    broken = 0
    for line in path.read_bytes().splitlines():
        try:
            sample = json.loads(line)
        except ValueError:
            sample = None
        if isinstance(sample, dict):
            samples.append(sample)
        elif line.strip():
            broken += 1
    return samples, broken


def load_runs(paths: Iterable[str | Path], max_detailed: int = 8) -> list[Run]:
    """All runs of `paths`; curves and samples are read where there are at most `max_detailed` of them.

    One broken result.json among several becomes a failed run with its reason; alone it raises UserError.
    """
    folders = find_runs(paths)
    names = run_names(folders)
    if len(folders) == 1:
        return [load_run(folders[0], names[0])]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        try:
            runs.append(load_run(folder, name, details=len(folders) <= max_detailed))
        except UserError as error:
            runs.append(Run(folder, name, RunRecord("failed", str(error)).to_dict()))
    name_jobs(runs)
    return runs


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> dotted keys, leaves as they are; an empty mapping stays visible as {}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_keys(runs: Sequence[Run], limit: int = 12) -> list[str]:
    """Config keys on which the runs differ, those with the fewest distinct values first: they are the grid."""
    values: dict[str, dict[str, int]] = {}
    for run in runs:
        if run.result["config"]:
            for key, value in flatten(run.result["config"]).items():
                seen = values.setdefault(key, {})
                seen[text(value)] = seen.get(text(value), 0) + 1
    num_runs = sum(bool(run.result["config"]) for run in runs)
    differ = {
        key: len(seen)
        for key, seen in values.items()
        if (len(seen) > 1 or sum(seen.values()) < num_runs) and not names_run(key, runs)
    }
    return sorted(differ, key=lambda key: (differ[key], key))[:limit]


def names_run(key: str, runs: Sequence[Run]) -> bool:
    """True where the value only repeats the run's name or folder: that tells nothing new."""
    values = [(run, flatten(run.result["config"]).get(key)) for run in runs if run.result["config"]]
    return all(isinstance(value, str) and value.endswith((run.name, run.folder.name)) for run, value in values)


def text(value: Any) -> str:
    """A config value as one short piece of text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)
