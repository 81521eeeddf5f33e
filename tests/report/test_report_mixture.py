"""Pages of mixtures: nothing of one entry is shown as another's or left out, for one run and for several."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import ENTRIES, make_mixture, make_run, write_page

from ima.report import curves as series
from ima.report.entry_table import entry_lines, text_rows
from ima.report.figures.order import figures_of
from ima.report.load import load_run, load_runs
from ima.report.mixture import by_modality, lines_of, mixture_points, variant_section


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mixture(tmp_path_factory.mktemp("outputs") / "mixed")
    write_page([folder])
    return folder


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("variants")
    for seed in range(3):
        make_mixture(top / f"variant-{seed}", seed=seed)
    write_page([top])
    return top


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_layer_figure_has_every_entrys_own_values(run: Path) -> None:
    wanted = {
        (row["task"], row["epoch"], row["layer_b"]): row["value"]
        for row in rows_of(run)
        if (row["score"], row["variant"], row["role_b"]) == ("sim", "raw", "T")
    }
    found = {
        (row["entry"], int(row["epoch"]), int(row["layer"])): float(row["value"])
        for row in table(run / "figures" / "ima_by_layer.csv")
    }
    assert len(wanted) == 3 * 3 * 7 and found == wanted
    heat = table(run / "figures" / "ima_heatmap.csv")
    assert {(r["entry"], int(r["epoch"]), int(r["layer"])): float(r["value"]) for r in heat} == wanted


def test_the_epoch_figure_has_a_line_for_each_entry(run: Path) -> None:
    wanted = {
        (row["task"], row["epoch"]): row["value"]
        for row in rows_of(run)
        if (row["score"], row["variant"]) == ("ima", "raw")
    }
    rows = [row for row in table(run / "figures" / "ima_by_epoch.csv") if row["score"] == "IMA"]
    assert {(row["entry"], int(row["epoch"])): float(row["value"]) for row in rows} == wanted
    assert {row["entry"]: row["modality"] for row in rows} == {
        name: modality for name, (modality, _) in ENTRIES.items()
    }


def test_validation_losses_of_the_entries_are_not_joined(run: Path) -> None:
    rows = table(run / "figures" / "training.csv")
    ends = {row["curve"]: float(row["value"]) for row in rows}
    assert {name: ends[f"val {name}"] for name in ENTRIES} == {name: 2.0 + i - 0.4 for i, name in enumerate(ENTRIES)}


@pytest.mark.parametrize("name", ["norms", "consecutive", "ima_variants", "ima_gap", "tasks"])
def test_every_other_figure_has_a_panel_for_each_entry(run: Path, name: str) -> None:
    rows = table(run / "figures" / f"{name}.csv")
    names = {(row.get("entry") or row["panel"]).split(" (")[0] for row in rows}
    assert names == set(ENTRIES)
    figure = (run / "report.html").read_text().partition(f'id="plot-{name}"')[2]
    drawn = figure.partition("</title>")[2].partition("</svg>")[0]
    assert all(entry in drawn for entry in ENTRIES)


def test_the_page_has_a_line_per_entry_with_score_ima_and_hallucination(run: Path) -> None:
    html = (run / "report.html").read_text()
    for entry in ENTRIES:
        assert f'<th scope="row">{entry}</th>' in html
    assert "F1 of yes" in html and "0.610" in html and "0.720" in html
    assert "IMA by modality: image" in html and "(mean of 2 entries); audio" in html
    assert "No headline metric" not in html
    assert html.count("<svg ") == 10
    assert "image_caption: T0 · seen objects" not in html and "<td>image_caption</td>" in html


def test_ima_of_a_modality_is_the_mean_of_its_entries(run: Path) -> None:
    lines = lines_of(load_run(run))
    found = by_modality(lines)
    assert found["image"] == (pytest.approx((lines[0]["ima"] + lines[1]["ima"]) / 2), 2)
    assert found["audio"] == (lines[2]["ima"], 1)


def test_a_table_leaves_out_what_no_entry_has_and_says_nothing_for_what_one_lacks() -> None:
    metrics = {"a/T0/accuracy": 0.5, "b/val/f1": 0.25, "b/val/accuracy": 1.0, "a/T0/chair_s": float("nan")}
    lines = entry_lines(metrics, {name: {"modality": "image", "headline": "accuracy"} for name in "ab"})
    assert text_rows(lines) == [
        ["entry", "modality", "track", "metric", "value", "f1"],
        ["a", "image", "T0", "accuracy", "0.500", ""],
        ["b", "image", "val", "accuracy", "1.000", "0.250"],
    ]


def test_a_run_of_one_task_and_a_mixture_of_one_entry_are_one_group() -> None:
    row = dict.fromkeys(("split", "track", "task", "modality_a", "dataset_a"))
    alone = [{**row, "score": "sim", "task": "caption"}, {**row, "score": "accuracy", "task": "caption", "track": "T0"}]
    assert series.by_entry(alone) == {"": alone}
    mixed = [{**row, "score": "sim", "task": "only"}, {**row, "score": "accuracy", "task": "only", "track": "only/T0"}]
    assert series.by_entry(mixed) == {"only": [mixed[0], {**mixed[1], "track": "T0"}]}


def test_a_mixture_before_its_first_task_metric_still_has_all_entries(tmp_path: Path) -> None:
    folder = make_mixture(tmp_path / "early", epochs=0)
    kept = [row for row in rows_of(folder) if row["track"] is None]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    figures = {figure.name: figure for figure in figures_of(load_run(folder))}
    assert {row[0] for row in figures["ima_by_layer"].table[1]} == set(ENTRIES)
    assert "before the first evaluation" in figures["tasks"].missing
    assert "map needs two" in figures["ima_heatmap"].missing


# -- several runs ------------------------------------------------------------------------------------------------------


def test_the_grid_has_five_measures_of_every_run_and_entry(variants: Path) -> None:
    rows = table(variants / "figures" / "compare_measures.csv")
    found = {(row["measure"], row["run"], row["entry"]) for row in rows}
    measures = {measure for measure, _, _ in found}
    assert measures == {"sim", "consecutive", "norm", "kl", "vocabulary_cosine"}
    assert len(found) == 5 * 3 * 3
    one = next(row for row in rows_of(variants / "variant-1") if row["score"] == "norm_q50" and row["task"] == "sounds"
               and row["epoch"] == 2 and (row["role_a"], row["layer_a"]) == ("P", 4))  # fmt: skip
    drawn = [row for row in rows if (row["measure"], row["run"], row["entry"]) == ("norm", "variant-1", "sounds")]
    assert [float(r["value"]) for r in drawn if (r["role"], r["layer"]) == ("P", "4")] == [one["value"]]


def test_measures_that_were_not_taken_are_named(tmp_path: Path) -> None:
    for seed in range(2):
        make_mixture(tmp_path / f"v{seed}", seed=seed, vocabulary=False)
    write_page([tmp_path])
    html = (tmp_path / "report.html").read_text()
    assert "Not measured: KL(P || T) (nats)" in html.replace("&amp;", "&") and "alignment.num_reservoir" in html


def test_the_table_of_variants_has_scores_and_ima_of_every_entry(variants: Path) -> None:
    html = (variants / "report.html").read_text()
    assert "Tasks and IMA of the mixtures" in html and 'colspan="2">sounds</th>' in html and "ρ = " in html
    lines = table(variants / "entries.csv")
    assert [(line["run"], line["entry"]) for line in lines] == [
        (f"variant-{seed}", entry) for seed in range(3) for entry in ENTRIES
    ]
    result = json.loads((variants / "variant-2" / "result.json").read_text())["metrics"]
    last = lines[-1]
    assert float(last["ima"]) == pytest.approx(result["sounds/ima/mean"], abs=5e-4)
    assert float(last["value"]) == pytest.approx(result["sounds/T0/noun_accuracy"], abs=5e-4)


def test_points_of_an_entry_are_its_own_and_a_line_a_run(variants: Path) -> None:
    runs = load_runs([variants])
    points = mixture_points(runs, "image_pope")
    assert [point.y for point in points] == [pytest.approx(0.5 + 0.05 * seed) for seed in range(3)]
    assert len({point.group for point in points}) == 3
    assert variant_section(runs[:1]) == ""


def test_a_run_of_one_task_stands_with_the_entry_of_its_data(tmp_path: Path) -> None:
    for seed in range(2):
        make_mixture(tmp_path / f"v{seed}", seed=seed)
    make_run(tmp_path / "single", layers=6, epochs=2, samples=0)
    path = tmp_path / "single" / "rows.jsonl"
    path.write_text(
        path.read_text().replace('"dataset_a": "stampworld"', '"dataset_a": "data 2"').replace("image", "audio")
    )
    write_page([tmp_path], drawn=False)
    panels = {(row["panel"], row["line"]) for row in table(tmp_path / "figures" / "compare_ima_by_layer.csv")}
    assert ("sounds (audio)", "single") in panels and len(panels) == 7
