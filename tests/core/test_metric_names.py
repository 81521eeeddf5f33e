"""One name for a metric wherever it is told: result.json, W&B, correlations, the report's tables and curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_mixture import RUN, entry
from test_training import config_of

from ima.core.metric_names import LIMITS, is_limit, limits_of, metric_name
from ima.core.types import Row
from ima.pipeline.fit import train
from ima.pipeline.loggers.wandb_points import scalar_name
from ima.report.correlation import is_column
from ima.report.curves import by_entry, by_epoch, task_scores
from ima.report.entry_table import entry_lines
from ima.runs.record import RunRecord, read_record
from ima.runs.results import read_rows

NAMES: list[tuple[str, dict[str, Any], str | None]] = [
    ("T0/accuracy", {"track": "T0", "score": "accuracy", "split": "test"}, "T0/accuracy"),
    ("its interval", {"track": "T0", "score": "accuracy_low", "split": "test"}, "T0/accuracy/low"),
    ("of an entry", {"track": "a/T0", "score": "accuracy_high", "split": "test", "task": "a"}, "a/T0/accuracy/high"),
    ("validation", {"score": "val_loss", "split": "val", "task": "a"}, "val/loss"),
    ("training", {"score": "train_loss", "split": "train", "task": "a"}, "train/loss"),
    ("learning rate", {"score": "lr", "split": "train"}, "train/lr"),
    ("IMA", {"score": "ima", "role_b": "T", "variant": "raw", "site": "resid_post"}, "ima/mean"),
    ("a variant", {"score": "ima", "role_b": "T", "variant": "nosink", "site": "resid_post"}, "ima/mean/nosink"),
    ("over sites", {"score": "ima_inside", "role_b": "T", "variant": "raw"}, "ima_inside/mean"),
    ("another score", {"score": "knn", "role_b": "T", "variant": "centred"}, "knn/centred"),
    ("inside blocks", {"score": "ima", "role_b": "T", "variant": "raw", "site": "sa"}, None),
    ("the answer alone", {"score": "ima", "role_b": "T.answer", "variant": "raw"}, None),
    ("of text alone", {"score": "retrieval_mean", "role_b": "T.text", "variant": "centred"}, "retrieval/mean"),
    ("a control", {"score": "retrieval_mean", "role_b": "T.text", "variant": "text_twin"}, "retrieval/mean/text_twin"),
    ("the lens", {"score": "lens_over_chance_mean_low", "role_b": "T.text", "variant": "centred"},
     "lens_over_chance/mean/low"),
    ("a layer", {"score": "sim", "role_b": "T", "variant": "raw", "site": "resid_post", "layer_a": 3}, None),
]  # fmt: skip


@pytest.mark.parametrize(("what", "fields", "name"), NAMES, ids=[what for what, _, _ in NAMES])
def test_a_row_names_its_metric(what: str, fields: dict[str, Any], name: str | None) -> None:
    row = Row("run", value=0.5, **fields)
    assert metric_name(row) == name == metric_name(vars(row))
    entry = "" if name is None or row.split == "train" or row.track else f"{row.task}/"
    assert metric_name(row, mixture=True) == (None if name is None else entry + name)


@pytest.fixture(scope="module", params=["alone", "mixture"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, list[Any]]:
    """A tiny run's record and its rows, the last of each metric counts."""
    folder = tmp_path_factory.mktemp("run")
    more = [f"mixture={{a: {entry()}, b: {entry()}}}"] if request.param == "mixture" else []
    train(config_of(*RUN, *more), folder, "test")
    return read_record(folder), list(read_rows(folder / "rows.jsonl"))


def number(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def test_every_place_gives_a_metric_the_same_name(trained: tuple[RunRecord, list[Any]]) -> None:
    record, rows = trained
    mixture = bool(record.config.get("mixture"))
    named = {name: row for row in rows if (name := metric_name(row, mixture)) is not None}
    told = {name for name in record.metrics if not name.endswith("/se") and "alignment/" not in name}
    assert told - named.keys() == ({"val/loss"} if mixture else set()), "the mean over entries has no row"
    assert named.keys() - told == {"train/lr"}
    for name in told & named.keys():
        row = named[name]
        assert record.metrics[name] == number(row["value"]), name
        assert is_column(row, name, mixture), name
        assert scalar_name(Row(**row), mixture) in (name, None)
    scalars = {scalar_name(Row(**row), mixture) for row in rows}
    plain = {name for name in told & named.keys() if named[name]["variant"] in (None, "raw")}
    assert {name for name in plain if "ima" in name or "/loss" in name or named[name]["track"]} <= scalars


def test_curves_and_tables_of_the_report_end_at_the_metrics(trained: tuple[RunRecord, list[Any]]) -> None:
    record, rows = trained
    for name, own in by_entry(rows).items():
        start, scores = f"{name}/" if name else "", task_scores(own)
        assert scores and not any(is_limit(score.replace("_", "/")) for score in scores), LIMITS
        for score, tracks in scores.items():
            for track, found in tracks.items():
                assert record.metrics[f"{start}{track}/{score}"] == number(found.y[-1])
        assert by_epoch(own, "ima").y[-1] == record.metrics[f"{start}ima/mean"]
    for line in entry_lines(record.metrics, record.facts.get("entries") or {}):
        metric = f"{line['entry']}/{line['track']}/{line['metric']}"
        keys = (metric, *limits_of(metric), f"{line['entry']}/ima/mean", f"{line['entry']}/val/loss")
        columns = ("value", *LIMITS, "ima", "loss")
        assert [line[column] for column in columns] == [record.metrics.get(key) for key in keys]


def test_epochs_are_correlated_under_the_names_of_the_result(tmp_path: Path) -> None:
    row = vars(Row("r", "ima", 0.5, role_b="T", variant="nosink", site="resid_post", task="a"))
    assert is_column(row, "ima/mean/nosink") and is_column(row, "ima/nosink") and not is_column(row, "ima/mean")
    assert is_column(row, "a/ima/mean/nosink", mixture=True) and not is_column(row, "b/ima/mean/nosink", mixture=True)
