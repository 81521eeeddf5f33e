"""`collect`: any set of run folders -> one tidy table, a row per run, as CSV and Parquet.

Reads result.json only, so a thousand runs take seconds; no torch. Columns: run, status, reason, facts of the run,
folder, every config value as config.<dotted key>, every metric under its own name. Failed runs are rows with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ima.core.csv_text import csv_text
from ima.core.files import replace_atomic, write_atomic
from ima.report.load import flatten, load_runs, text
from ima.report.run import Run

FIRST = ("run", "status", "reason", "wall_seconds", "commit", "dirty", "command", "folder")


def collect(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One dictionary per run below `folders`, all with the same keys in the same order; None where a run lacks it.

    Raises UserError for a folder that neither is a run nor holds one.
    """
    return table_rows(load_runs(folders, max_detailed=0))


def table_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = [table_row(run) for run in runs]
    config = sorted({key for row in rows for key in row if key.startswith("config.")})
    metrics = sorted({key for row in rows for key in row} - set(FIRST) - set(config))
    return [{key: row.get(key) for key in (*FIRST, *config, *metrics)} for row in rows]


def table_row(run: Run) -> dict[str, Any]:
    """A metric that would hide one of the fixed columns gets the prefix metric."""
    result = run.result
    row: dict[str, Any] = {
        "run": run.name, "status": run.status, "reason": run.reason or None,
        "wall_seconds": result.get("wall_seconds"), "commit": result["git"].get("commit"),
        "dirty": result["git"].get("dirty"), "command": result.get("command") or None,
        "folder": str(run.folder)}  # fmt: skip
    for key, value in flatten(result["config"]).items():
        row[f"config.{key}"] = value if isinstance(value, (int, float, str, bool)) or value is None else text(value)
    for name, metric in run.metrics.items():
        row[f"metric.{name}" if name in FIRST or name.startswith("config.") else name] = metric
    return row


def csv_table(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with a header; empty cells where there is no value."""
    names = list(rows[0]) if rows else list(FIRST)
    return csv_text(names, [[row[name] for name in names] for row in rows])


def write_csv(rows: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Write the table of `collect`, whole or not at all."""
    write_atomic(Path(path), csv_table(rows))
    return Path(path)


def write_table(rows: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """The same table twice, as CSV (`path`) and as Parquet beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(rows[0]) if rows else list(FIRST)
    columns = {name: column([row[name] for row in rows]) for name in names}
    replace_atomic(Path(path).with_suffix(".parquet"), lambda file: pq.write_table(pa.table(columns), file))
    return write_csv(rows, path)


def column(values: Sequence[Any]) -> Any:
    """One type a column, as Parquet wants it: numbers stay numbers, booleans booleans; a mixture is text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
