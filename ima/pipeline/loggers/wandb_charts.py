"""What W&B gets of a run that has ended: a chart with layers on x and a line per epoch, the map of layers x epochs, the
predictions with their media, and one artifact with the rows.

Made from the files of the run folder alone. Scores of the paper at the block outputs, variant raw, validation split.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.metric_names import BLOCK_OUTPUTS
from ima.core.types import ROW_FIELDS, Row

# score -> (roles of the two sides, title)
CHARTS = {
    "sim": (("P", "T"), "Implicit alignment by layer (mean cosine, P with T)"),
    "retrieval": (("P", "T.text"), "Retrieval of the own text (text alone) by layer"),
    "gap_read": (("P", "T"), "Own text minus other texts by layer (text that has read the medium)"),
    "norm_q50": (("P", None), "Median norm of perceptual tokens by layer"),
    "consecutive": (("P", "P"), "Perceptual tokens from layer to layer (cosine)"),
}
MAX_LINES = 8
MAX_PREDICTIONS, MAX_ROWS = 1000, 200_000  # lines of the tables
BY_LAYER, PREDICTIONS = "charts/ima_by_layer", "predictions"
FIGURES = ("ima_heatmap", "ima_by_layer", "skip_tradeoff", "masks")
LAYER_COLUMNS = ("line", "entry", "epoch", "step", "layer", *CHARTS)
TABLE_FIELDS = tuple(field for field in ROW_FIELDS if field not in ("run", "schema"))
ADAPTER = ("adapter.safetensors", "adapter.json", "adapter.llm.safetensors", "report.html")
Measured = tuple[int, int]  # (step, epoch)


def variant_of(score: str) -> str:
    return "centred" if score == "retrieval" else "raw"


def charted(row: Row) -> bool:
    roles = CHARTS[row.score][0] if row.score in CHARTS else None
    fits = roles == (row.role_a, row.role_b) and row.variant == variant_of(row.score) and row.site in BLOCK_OUTPUTS
    near = row.score != "consecutive" or row.layer_b == (row.layer_a or 0) + 1
    return fits and near and row.layer_a is not None and row.split != "train" and row.track is None


def layer_rows(rows: Sequence[Row], mixture: bool = False) -> list[list[Any]]:
    """Rows of LAYER_COLUMNS: the first measurement, the last and some between them, of each entry of a mixture."""
    cells: dict[str, dict[Measured, dict[int, dict[str, float]]]] = {}
    for row in rows:
        if charted(row):
            entry, measured = (row.task or "") if mixture else "", (row.step or 0, row.epoch or 0)
            assert row.layer_a is not None
            of_layer = cells.setdefault(entry, {}).setdefault(measured, {}).setdefault(row.layer_a, {})
            of_layer[row.score] = row.value  # measured again, the newer value counts
    out = []
    for entry, by_place in cells.items():
        places = sorted(by_place)
        epochs = [epoch for _, epoch in places]
        if len(places) > MAX_LINES:
            places = [places[round(index * (len(places) - 1) / (MAX_LINES - 1))] for index in range(MAX_LINES)]
        for step, epoch in places:
            name = f"epoch {epoch}" if epochs.count(epoch) == 1 else f"step {step}"
            line = f"{entry}, {name}" if entry else name
            for layer, values in sorted(by_place[step, epoch].items()):
                out.append([line, entry, epoch, step, layer, *(values.get(score, math.nan) for score in CHARTS)])
    return out


def tables(folder: Path, rows: Sequence[Row], mixture: bool) -> dict[str, Any]:
    """What `run.log` takes of a run that is over: the chart by layer, and what the model said."""
    import wandb

    found: dict[str, Any] = {}
    if data := layer_rows(rows, mixture):
        table = wandb.Table(columns=list(LAYER_COLUMNS), data=data)
        found[BY_LAYER] = wandb.plot.line(table, "layer", "sim", stroke="line", title=CHARTS["sim"][1])
    if (said := predictions(folder)) is not None:
        found[PREDICTIONS] = said
    return found


def pictures(folder: Path) -> dict[str, Any]:
    """The same of the page's figures, when it is drawn."""
    import wandb

    return {
        f"figures/{name}": wandb.Image(str(path))
        for name in FIGURES
        if (path := folder / "figures" / f"{name}.png").is_file()
    }


def json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def predictions(folder: Path) -> Any:
    """A `wandb.Table` of what the model said, those with their picture, sound or clip first; None where there is
    nothing."""
    import wandb

    shown, lines = json_lines(folder / "samples.jsonl"), json_lines(folder / "predictions.jsonl")
    seen = {(line["track"], line["id"]) for line in shown}
    lines = [*shown, *(line for line in lines if (line["track"], line["id"]) not in seen)][:MAX_PREDICTIONS]
    if not lines:
        return None
    kinds = {"image": wandb.Image, "sound": wandb.Audio, "clip": wandb.Video}
    media = [kind for kind in kinds if any(kind in line for line in lines)]
    left_out = {"cluster", *kinds}
    names = list(dict.fromkeys(name for line in lines for name in line if name not in left_out))
    table = wandb.Table(columns=[*media, *names], allow_mixed_types=True)
    for line in lines:
        files = [folder / line[kind] if kind in line else None for kind in media]
        cells = [
            kinds[kind](str(path)) if path is not None and path.is_file() else None
            for kind, path in zip(media, files, strict=True)
        ]
        table.add_data(*cells, *(plain(line.get(name)) for name in names))
    return table


def plain(value: Any) -> Any:
    return " | ".join(map(str, value)) if isinstance(value, list) else value


def artifact(run_id: str, folder: Path, rows: Sequence[Row], more: bool) -> Any:
    """Every row, as the file and as a table; more: also the adapter and the page."""
    import wandb

    found = wandb.Artifact(f"ima-{re.sub(r'[^A-Za-z0-9_.-]', '-', run_id)}", "ima-run")
    table = wandb.Table(columns=list(TABLE_FIELDS))
    for row in rows[:MAX_ROWS]:
        table.add_data(*(getattr(row, field) for field in TABLE_FIELDS))
    found.add(table, "rows")
    for name in ("rows.jsonl", "result.json", "predictions.jsonl", *(ADAPTER if more else ())):
        if (folder / name).is_file():
            found.add_file(str(folder / name), name=name, skip_cache=True)
    return found


def summary(record: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of result.json by name: metrics, what is left of the FLOPs and seconds under a plan, sparsity of a
    mask."""
    facts = record.get("facts") or {}
    found = dict(record.get("metrics") or {})
    plan, seconds = facts.get("plan") or {}, facts.get("plan_seconds") or {}
    flops = plan.get("flops") or {}
    for name in ("prefill", "prefill_left", "decoded_token", "decoded_token_left"):
        found[f"plan/flops_{name}"] = flops.get(name)
    for name in ("prefill", "left", "generate", "generate_left"):
        found[f"plan/seconds_{name}"] = seconds.get(name)
    for each in plan.get("interventions") or []:
        if each.get("kind") in ("prune", "mask"):
            found["mask/sparsity"] = each.get("sparsity", each.get("ratio"))
    found |= {f"seconds/{name}": value for name, value in (facts.get("seconds") or {}).items()}
    found["wall_seconds"] = record.get("wall_seconds")
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
