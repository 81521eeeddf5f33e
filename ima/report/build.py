"""From folders to files: the page, and the figures and the table beside it. The drawing code is imported only here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ima.core.errors import UserError
from ima.core.files import write_atomic
from ima.report.collect import csv_table, table_rows, write_table
from ima.report.entry_table import csv_of
from ima.report.figures.order import comparison_figures, figures_of
from ima.report.load import find_runs, load_runs
from ima.report.mixture import run_lines
from ima.report.page.html import page_html
from ima.report.proxies import correlation_table
from ima.report.run import Run
from ima.runs.folders import is_held

MAX_DETAILED = 16
RUNNING = "running"


def write_report(paths: Iterable[str | Path], out: str | Path | None = None, refresh: int = 0) -> Path:
    """Write the page for all runs of `paths` and return its path. refresh: seconds after which a browser that shows it
    loads it again, while a run of it is going on.

    Default place: report.html in the run's own folder, or, for several runs, in the folder that holds them all.
    Beside it: figures/<name>.svg, .png, .csv, and for several runs runs.csv and .parquet (see `collect`), proxies.csv,
    and entries.csv where runs are mixtures.
    Raises UserError for a folder without a run and for a place that cannot be written.
    """
    given = [Path(path) for path in paths]
    runs = load_runs(given, MAX_DETAILED)
    target = Path(out) if out is not None else default_place(given, runs)
    if target.is_dir():
        target = target / "report.html"
    try:
        return write_files(runs, target, refresh if any(run.status == RUNNING for run in runs) else 0)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); give another place with --out"
        ) from error


def default_place(paths: list[Path], runs: list[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder / "report.html"
    folders = paths if len(paths) == 1 else [run.folder.resolve().parent for run in runs]
    return Path(os.path.commonpath(folders)) / "report.html"


def write_files(runs: list[Run], target: Path, refresh: int = 0) -> Path:

    figures = figures_of(runs[0]) if len(runs) == 1 else comparison_figures(runs)
    proxies = correlation_table(runs) if len(runs) > 1 else []
    write_atomic(target, page_html(runs, figures, proxies, refresh))
    for figure in figures:
        figure.save(target.parent / "figures")
    if len(runs) > 1:
        write_table(table_rows(runs), target.parent / "runs.csv")
    if len(runs) > 1 and (lines := run_lines(runs)):
        write_atomic(target.parent / "entries.csv", csv_of(lines))
    if proxies:
        write_atomic(target.parent / "proxies.csv", csv_table(proxies))
    return target


def watch(paths: Iterable[str | Path], out: str | Path | None, seconds: int, wait: Callable[[float], None]) -> Path:
    """Write the page anew whenever a run has measured something, until none of them is going on (a killed one
    is not); the path of it."""
    given = [Path(path) for path in paths]
    seen: dict[Path, int] = {}
    while True:
        stamp = {path: path.stat().st_mtime_ns for folder in find_runs(given) for path in watched(folder)}
        if stamp != seen:
            seen = stamp
            write_report(given, out, seconds)
        if not any(run.status == RUNNING and is_held(run.folder) for run in load_runs(given, 0)):
            return write_report(given, out)
        wait(seconds)


def watched(folder: Path) -> list[Path]:
    return [path for name in ("result.json", "rows.jsonl", "samples.jsonl") if (path := folder / name).is_file()]
