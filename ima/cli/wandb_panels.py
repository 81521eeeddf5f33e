"""The panels of the W&B dashboard: those, and only those, for which runs have logged something.

`logged` says what runs hold, from their folders; `panels` makes sections of it. Names are those of the mirror
(`ima.pipeline.loggers.wandb_points`, `ima.pipeline.loggers.wandb_charts`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.extras import how_to_install
from ima.core.metric_names import CONTROL_TRACKS
from ima.core.types import Row
from ima.pipeline.loggers.wandb_charts import BY_LAYER, PREDICTIONS, charted, summary
from ima.pipeline.loggers.wandb_points import Tail, scalar_name
from ima.runs.record import read_record

HEADLINES = ("noun_accuracy", "accuracy", "f1", "cider_d")  # where a run does not say its own
MAX_PANELS = 12  # of one section
LAYERS = {"sim": "IMA by layer, a line per epoch", "retrieval": "Retrieval of the own text by layer"}
FLOPS, SECONDS, SPARSITY = "plan/flops_prefill_left", "plan/seconds_left", "mask/sparsity"
LEFT = {FLOPS: "FLOPs left", SECONDS: "seconds left", SPARSITY: "sparsity"}


@dataclasses.dataclass
class Logged:
    """points: names with a curve; totals: names in summaries; by_layer: scores of the table of layers; tasks: the
    headline scores; has_predictions: whether there is a table of them."""

    points: set[str] = dataclasses.field(default_factory=set)
    totals: set[str] = dataclasses.field(default_factory=set)
    by_layer: set[str] = dataclasses.field(default_factory=set)
    tasks: set[str] = dataclasses.field(default_factory=set)
    has_predictions: bool = False


def logged(folders: Iterable[Path]) -> Logged:
    """What the mirrors of these runs send."""
    out = Logged()
    for folder in folders:
        record = read_record(folder)
        mixture = bool(record.config.get("mixture"))
        for row in Tail(folder / "rows.jsonl").rows():
            out.points |= {name} if (name := scalar_name(row, mixture)) is not None else set()
            out.by_layer |= {row.score} if charted(row) else set()
        totals = summary(record.to_dict())
        changed = {each.get("kind") for each in (record.facts.get("plan") or {}).get("interventions") or []}
        out.totals |= {name for name in totals if name != FLOPS or changed}  # without a plan all is left
        entries = record.facts.get("entries") or {}
        told = [record.facts.get("headline"), *(each.get("headline") for each in as_dicts(entries))]
        headlines = {str(each) for each in told if each}
        out.tasks |= {name for name in totals if is_task(name, headlines or set(HEADLINES))}
        out.has_predictions |= (folder / "samples.jsonl").is_file()
    return out


def as_dicts(entries: Any) -> list[dict[str, Any]]:
    values = entries.values() if isinstance(entries, dict) else entries
    return [each for each in values if isinstance(each, dict)]


def is_task(name: str, headlines: Iterable[str]) -> bool:
    """Whether a metric is a headline score of a track that is no control."""
    track, _, score = name.rpartition("/")
    return score in headlines and bool(track) and track.rpartition("/")[2] not in CONTROL_TRACKS


def usual() -> Logged:
    """What a training of one task logs, where there is no run to look at."""
    pooled: dict[str, Any] = {"role_a": "P", "role_b": "T", "variant": "raw"}
    names = {scalar_name(Row("run", score, 0.5, **pooled)) for score in ("ima", "ima_gap_read", "ima_matched")}
    points = {name for name in names if name} | {"train/loss", "train/lr", "val/loss", "ima_layer/L00"}
    tasks = {f"{track}/{HEADLINES[0]}" for track in ("T0", "T1")}
    return Logged(points | tasks, points | tasks, set(LAYERS), tasks, True)


def panels(found: Logged) -> dict[str, list[Any]]:
    """Section -> its panels; a section without any is left out."""
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise UserError(how_to_install("wandb_workspaces")) from None

    def curves(title: str, x: str, pattern: str) -> list[Any]:
        names: list[Any] = sorted(name for name in found.points if re.fullmatch(pattern, name))
        return [wr.LinePlot(title=title, x=x, y=names)] if names else []

    def scatter(x: str, y: str, title: str) -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))

    tasks = sorted(found.tasks)
    means = sorted(name for name in found.totals if re.fullmatch(r"(.+/)?ima/mean", name))
    by_layer = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": f"{BY_LAYER}_table"}},
            chart_name="wandb/line/v0",
            chart_fields={"x": "layer", "y": score, "stroke": "line"},
            chart_strings={"title": title},
        )
        for score, title in LAYERS.items()
        if score in found.by_layer
    ]
    layers = [wr.LinePlot(title="IMA of each layer by epoch", x="epoch", metric_regex=".*ima_layer/.*")]
    sections = {
        "Alignment": [
            *by_layer,
            *curves("IMA by epoch", "epoch", r"(.+/)?ima/mean"),
            *curves("matched and gap by epoch", "epoch", r"(.+/)?ima_(matched|gap_read)/mean"),
            *curves("retrieval of the own text by epoch", "epoch", r"(.+/)?retrieval/(mean|chance|growth|growth_null)"),
            *(layers if any("ima_layer/" in name for name in found.points) else []),
        ],
        "Tasks": [wr.BarPlot(title=name, metrics=[name]) for name in tasks],
        "IMA against performance (within one LLM only)": [
            scatter(mean, name, f"{name} over {mean}")
            for name in tasks
            for mean in means
            if mean.removesuffix("ima/mean") in ("", f"{name.split('/')[0]}/")
        ],
        "Skips and masks": [
            scatter(x, name, f"{name} over {title}") for x, title in LEFT.items() if x in found.totals for name in tasks
        ],
        "Learning": [
            *curves("training loss", "trainer/global_step", "train/loss"),
            *curves("validation loss", "epoch", "(.+/)?val/loss"),
            *curves("learning rate", "trainer/global_step", "train/lr"),
        ],
        "Predictions": [wr.WeavePanelSummaryTable(table_name=PREDICTIONS)] if found.has_predictions else [],
        "Runs": [wr.RunComparer(diff_only="split")],
    }
    return {title: shown[:MAX_PANELS] for title, shown in sections.items() if shown}


def drawn(sections: Sequence[Sequence[Any]]) -> set[str]:
    """Names of metrics that panels ask for."""
    names: set[str] = set()
    for panel in (panel for section in sections for panel in section):
        for key in ("x", "y", "metrics"):
            value = getattr(panel, key, None)
            found = value if isinstance(value, list) else [value]
            names |= {str(getattr(each, "name", each)) for each in found if each is not None}
    return names
