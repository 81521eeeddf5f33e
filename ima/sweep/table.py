"""The table of a sweep: every run as a line of table.csv (all columns), and the few columns that a person compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.metric_names import CONTROL_TRACKS, IMA_MEAN, VAL_LOSS, limits_of
from ima.report.collect import collect, write_table
from ima.report.entry_table import entry_lines
from ima.report.run import number
from ima.runs.record import RunRecord
from ima.sweep.job import Job
from ima.sweep.view import MEANING, seconds_text

HEADLINES = ("noun_accuracy", "accuracy", "cider_d")  # the first of these that a run has is shown, for each track
ALONE = (IMA_MEAN, VAL_LOSS)


def finish_table(folder: Path, jobs: Sequence[Job]) -> None:
    """Write <folder>/table.csv and .parquet, print the short table. Jobs that never started are in the short one
    only."""
    folders = [job.folder for job in jobs if job.result() is not None]
    if folders:
        rows = collect(folders)
        states = {str(job.folder): job for job in jobs}
        for row in rows:
            job = states[row["folder"]]
            if job.state == "failed" and row["status"] != "failed":
                row |= {"status": "failed", "reason": job.reason}
        write_table(rows, folder / "table.csv")
    for line in aligned(short_table(jobs)):
        print(line)
    if folders:
        print(f"table: {folder / 'table.csv'}")


def short_table(jobs: Sequence[Job]) -> list[list[str]]:
    """Header and one row a job: what varies, state, accuracy with interval per track, IMA, seconds."""
    results = [job.result() or RunRecord() for job in jobs]
    metrics = [result.metrics for result in results]
    axes = list(dict.fromkeys(name for job in jobs for name in job.varied))
    entries: dict[str, Any] = {}
    for result in results:
        entries |= result.facts.get("entries") or {}
    shown = entry_headlines(metrics, entries) if entries else headlines(metrics)
    out = [[*axes, "state", *shown, "time"]]
    for job, result, found in zip(jobs, results, metrics, strict=True):
        state = f"{job.state}: {job.reason}" if job.reason else MEANING.get(job.state, job.state)
        seconds = number(result.wall_seconds) if job.state in ("ok", "finished") else job.seconds or None
        time = "" if seconds is None else seconds_text(seconds)
        values = [job.varied.get(name, "") for name in axes]
        out.append([*values, state, *(with_interval(found, name) for name in shown), time])
    return out


def headlines(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for found in metrics for name in found))
    for last in HEADLINES:
        measured = [name for name in names if name.endswith(f"/{last}")]
        if tracks := [name for name in measured if name.split("/")[0] not in CONTROL_TRACKS]:
            return [*tracks, *(name for name in ALONE if name in names)]
    return [name for name in ALONE if name in names]


def entry_headlines(metrics: Sequence[Mapping[str, Any]], entries: Mapping[str, Any]) -> list[str]:
    """Of mixtures: each entry's headline on its first track, and its IMA."""
    names = dict.fromkeys(name for found in metrics for name in found)
    out = []
    for line in entry_lines(names, entries):
        own = (f"{line['track']}/{line['metric']}", IMA_MEAN)
        out += [name for key in own if (name := f"{line['entry']}/{key}") in names]
    return out


def with_interval(metrics: Mapping[str, Any], name: str) -> str:
    value, low, high = (number(metrics.get(key)) for key in (name, *limits_of(name)))
    if value is None:
        return ""
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
