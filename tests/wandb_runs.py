"""What a run on W&B holds, offline or at the stand-in server, against the files of its run folder."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wandb_server import WandbServer

from ima.core.types import Row
from ima.pipeline.loggers.wandb_charts import BY_LAYER, LAYER_COLUMNS, TABLE_FIELDS, summary
from ima.pipeline.loggers.wandb_points import scalar_name
from ima.runs.record import read_result
from ima.runs.results import read_rows


def fragments(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def records(run: Path) -> list[dict[str, Any]]:
    """An offline run as W&B's own reader shows it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=run)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in found if record["type"] == "history"]


def exit_codes(found: list[dict[str, Any]]) -> list[int]:
    return [record["exit"]["exit_code"] for record in found if record["type"] == "exit"]


def header(found: list[dict[str, Any]]) -> dict[str, Any]:
    (run,) = (record["run"] for record in found if record["type"] == "run")
    return dict(run)


def number(value: Any) -> Any:
    return None if value == "NaN" or (isinstance(value, float) and math.isnan(value)) else value


def assert_points(points: list[dict[str, Any]], rows: list[dict[str, Any]], mixture: bool = False) -> None:
    """Each row that belongs to a chart is there once, at its place."""
    for row in rows:
        name = scalar_name(Row(**row), mixture)
        if name is not None:
            at = [
                number(item[name])
                for item in points
                if name in item and (item.get("epoch"), item.get("trainer/global_step")) == (row["epoch"], row["step"])
            ]
            assert at == [row["value"]], (name, row["step"])


def assert_table(table: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Every row, in the order of the file."""
    assert table["columns"] == list(TABLE_FIELDS)
    assert [[number(cell) for cell in line] for line in table["data"]] == [
        [row[field] for field in TABLE_FIELDS] for row in rows
    ]


def assert_chart(table: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Every epoch's similarity by layer."""
    wanted = {
        (f"epoch {row['epoch']}", row["layer_a"]): row["value"]
        for row in rows
        if (row["score"], row["site"], row["role_a"], row["role_b"], row["variant"])
        == ("sim", "resid_post", "P", "T", "raw")
    }
    assert table["columns"] == list(LAYER_COLUMNS)
    line, layer, sim = (LAYER_COLUMNS.index(name) for name in ("line", "layer", "sim"))
    assert {(cells[line], cells[layer]): number(cells[sim]) for cells in table["data"]} == wanted and wanted


def assert_mirrored(folder: Path) -> None:
    """All fragments of the offline run together hold what the files hold; the last one has what comes at the end."""
    found = [records(run) for run in fragments(folder)]
    assert len({header(one)["run_id"] for one in found}) == 1
    rows = list(read_rows(folder / "rows.jsonl"))
    points = [item for one in found for item in history(one)]
    assert_points(points, rows)
    steps = [item["_step"] for item in points]
    assert steps == sorted(set(steps)), "the fragments would overwrite each other"
    files = fragments(folder)[-1] / "files"
    (drawn,) = [item[f"{BY_LAYER}_table.path"] for item in points if f"{BY_LAYER}_table.path" in item]
    assert_chart(json.loads((files / drawn).read_text()), rows)
    kept: dict[str, Any] = {}
    for record in found[-1]:
        if record["type"] == "summary":
            kept |= record["summary"].get("update", {})
    wanted = summary(read_result(folder))
    assert {name: number(kept.get(name)) for name in wanted} == {name: number(value) for name, value in wanted.items()}
    assert exit_codes(found[-1]) == [0]


def sent_artifact(server: WandbServer, run: str) -> dict[str, Any]:
    committed = {name: one for name, one in server.committed().items() if run in name}
    assert len(committed) <= 3
    return committed[f"ima-{run}"]


def assert_sent(server: WandbServer, folder: Path, run: str) -> None:
    """The server has what the files hold."""
    rows = list(read_rows(folder / "rows.jsonl"))
    assert_points(server.history(run), rows)
    artifact = sent_artifact(server, run)
    assert_table(json.loads(server.content(artifact, "rows.table.json")), rows)
    assert server.content(artifact, "rows.jsonl") == (folder / "rows.jsonl").read_bytes()
    files = {name.partition("/")[2]: data for name, data in server.files.items() if name.startswith(f"{run}/media")}
    (drawn,) = [json.loads(data) for name, data in files.items() if "ima_by_layer" in name and name.endswith("json")]
    assert_chart(drawn, rows)
    kept, wanted = server.summary[run], summary(read_result(folder))
    assert {name: number(kept.get(name)) for name in wanted} == {name: number(value) for name, value in wanted.items()}
    whole = {name: value for name, value in read_result(folder)["config"].items() if value != {}}  # W&B drops those
    assert {name: value for name, value in server.config(run).items() if name != "_wandb"} == whole
    assert server.exit_codes[run] == 0


def until(what: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
