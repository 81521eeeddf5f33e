"""Figures of `alignment=full`: made where their rows are, silent where not, and their CSV is the rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run

from ima.core.csv_text import csv_text
from ima.report.figures.cones import compared_cones
from ima.report.figures.drawing import Figure
from ima.report.figures.order import figures_of, full_figures
from ima.report.load import load_run, load_runs
from ima.report.page.html import page_html

LAYERS, RESERVOIR = 4, (0, 2, 4)
SITES = ("resid_pre", "ln1", "sa", "resid_mid", "ln2", "fc1", "fc2", "resid_post")
COMMON = {"run": "r", "epoch": 2, "split": "val", "track": None, "dataset_a": "d", "dataset_b": "d",
          "modality_a": "image", "modality_b": "text", "se": 0.01, "n": 50}  # fmt: skip
NAMES = ("full_variants", "full_sites", "full_cones", "full_norms", "full_vocabulary", "full_token_pairs",
         "full_geometry", "full_tsne")  # fmt: skip
LABELS = {"raw": "raw", "no sink": "nosink", "no massive tokens": "nomassive", "scaled dimensions": "scaled",
          "centred": "centred", "no massive": "nomassive"}  # fmt: skip
SCORES = {"all pairs": "sim", "own text only": "sim_matched", "own text minus all pairs": "gap_read",
          "P as it enters (layer 0)": "sim_p0"}  # fmt: skip
PAIRS = {"max": "maxsim", "mean of max": "maxmeansim", "median": "medsim", "mean": "meansim", "min": "minsim"}
GEOMETRY = {"CKA": "cka_read", "CKA, debiased": "cka_debiased_read", "mutual kNN": "mutual_knn_read",
            "Procrustes": "procrustes_read", "MIR part": "mir_fid"}  # fmt: skip


def full_measurement() -> list[dict[str, Any]]:
    """Rows with the names and fields of alignment=full, every value another."""
    rows: list[dict[str, Any]] = []

    def put(score: str, a: int, b: int | None, roles: tuple[str, str | None] = ("P", "T"), **fields: Any) -> None:
        value = 0.2 + 0.001 * len(rows)
        row = {**COMMON, "score": score, "value": value, "layer_a": a, "layer_b": b, "site": "resid_post",
               "role_a": roles[0], "role_b": roles[1], "variant": "raw", "note": None, **fields}  # fmt: skip
        rows.append(row)

    for site in SITES:
        for layer in range(0 if site == "resid_post" else 1, LAYERS + 1):
            for variant in ("raw", "nosink", "nomassive", "scaled", *(["update"] if site == "resid_post" else [])):
                for score in ("sim", "sim_matched", "gap_read"):
                    put(score, layer, layer, variant=variant, site=site)
                put("sim", layer, layer, ("P", "T.prompt"), variant=variant, site=site)
                for role, names in (("P", {"modality_b": "image"}), ("T", {"modality_a": "text"})):
                    put("cone", layer, layer, (role, role), variant=variant, site=site, **names)
                if site == "resid_post":
                    put("sim_p0", 0, layer, variant=variant)
            for role in ("P", "T"):
                for quartile in ("q25", "q50", "q75"):
                    put(f"norm_{quartile}", layer, None, (role, None), site=site, se=None)
    for layer in range(LAYERS + 1):
        put("sim_matched", layer, layer, variant="centred")
    for layer, after in zip(RESERVOIR, (*RESERVOIR[1:], None), strict=True):
        for variant in ("raw", "nomassive"):
            for score in PAIRS.values():
                put(f"{score}_matched", layer, layer, variant=variant)
                put(f"{score}_across", layer, layer, variant=variant)
            put("retrieval_read", layer, layer, variant=variant)
        for score in (*GEOMETRY.values(), "kl", "js"):
            put(score, layer, layer)
        for role in ("P", "T"):
            put("entropy", layer, layer, (role, role))
            if after is not None:
                put("vocabulary_cosine", layer, after, (role, role))
            for cloud in ("mean", "tokens"):
                for n in range(5):
                    for axis in "xy":
                        put(f"tsne_{axis}", layer, None, (role, None), variant=cloud, n=n, note=f"s{n}", se=None)
    return rows


def full_run(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    make_run(folder, layers=LAYERS, epochs=1, samples=2)
    path = folder / "rows.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"loss"' in line or '"track": "T' in line]
    measured = full_measurement() if rows is None else rows
    path.write_text("".join(f"{line}\n" for line in [*kept, *map(json.dumps, measured)]))
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_run(tmp_path_factory.mktemp("outputs") / "full")


def table(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(*figure.table))))


def fields_of(name: str, panel: str, label: str) -> dict[str, Any]:
    """What a line of a figure stands for, as fields of a row."""
    place, _, variant = panel.partition(", ")
    cross = {"role_a": "P", "role_b": "T", "site": "resid_post"}
    if name == "full_variants":
        return {**cross, "score": SCORES[panel], "variant": LABELS[label]}
    if name == "full_sites":
        if label == "whole update":
            return {**cross, "score": "sim", "variant": "update"}
        return {**cross, "score": "sim", "variant": LABELS[variant], "site": label}
    if name == "full_cones":
        role_a, role_b = label.split(" with ")
        score = "cone" if role_a == role_b else "sim"
        return {**cross, "score": score, "variant": LABELS[panel], "role_a": role_a, "role_b": role_b}
    if name == "full_norms":
        return {"score": "norm_q50", "site": panel, "role_a": label}
    if name == "full_vocabulary":
        score = {"K": "kl", "J": "js", "e": "entropy", "w": "vocabulary_cosine"}[panel[0]]
        return {**cross, "score": score} | ({"role_a": label, "role_b": label} if label in "PT" else {})
    if name == "full_token_pairs":
        kind = {"own text": "matched", "other texts": "across"}[place]
        return {**cross, "score": f"{PAIRS[label]}_{kind}", "variant": LABELS[variant]}
    if panel.startswith("retrieval"):
        return {**cross, "score": "retrieval_read", "variant": LABELS[label]}
    return {**cross, "score": GEOMETRY[label], "variant": "raw"}


@pytest.mark.parametrize("name", NAMES[:-1])
def test_csv_of_a_figure_is_the_rows(measured: Path, name: str) -> None:
    rows = full_measurement()
    figure = next(figure for figure in full_figures(load_run(measured).rows) if figure.name == name)
    lines: dict[tuple[str, str], dict[int, float]] = {}
    for cells in table(figure):
        value = float(cells.get("value") or cells["median"])
        lines.setdefault((cells["panel"], cells["line"]), {})[int(cells["layer"])] = value
    assert len(lines) > 5
    for (panel, label), found in lines.items():
        wanted = fields_of(name, panel, label)
        chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
        layer = "layer_a" if name == "full_norms" else "layer_b"
        assert found == {row[layer]: row["value"] for row in chosen}, (panel, label)
    used = {fields_of(name, *key)["score"] for key in lines}
    expected = {
        "full_variants": set(SCORES.values()),
        "full_sites": {"sim"},
        "full_cones": {"cone", "sim"},
        "full_norms": {"norm_q50"},
        "full_vocabulary": {"kl", "js", "entropy", "vocabulary_cosine"},
        "full_token_pairs": {f"{score}_{kind}" for score in PAIRS.values() for kind in ("matched", "across")},
        "full_geometry": {*GEOMETRY.values(), "retrieval_read"},
    }
    assert used == expected[name]


def test_quartiles_and_intervals_stand_beside_the_values(measured: Path) -> None:
    figures = {figure.name: figure for figure in full_figures(load_run(measured).rows)}
    rows = full_measurement()
    cells = next(c for c in table(figures["full_norms"]) if (c["panel"], c["line"], c["layer"]) == ("sa", "T", "3"))
    for quartile in ("q25", "q75"):
        assert float(cells[quartile]) == next(
            row["value"] for row in rows
            if (row["score"], row["site"], row["role_a"], row["layer_a"]) == (f"norm_{quartile}", "sa", "T", 3)
        )  # fmt: skip
    for cells in table(figures["full_cones"]):
        assert float(cells["high"]) - float(cells["low"]) == pytest.approx(2 * 1.96 * 0.01, rel=1e-3)


def test_tsne_joins_the_two_rows_of_each_point(measured: Path) -> None:
    figure = full_figures(load_run(measured).rows)[-1]
    points = {(c["cloud"], int(c["layer"]), c["role"], int(c["n"])): (float(c["x"]), float(c["y"]))
              for c in table(figure)}  # fmt: skip
    wanted: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in full_measurement():
        if row["score"].startswith("tsne_"):
            key = (row["variant"], row["layer_a"], row["role_a"], row["n"])
            wanted.setdefault(key, {})[row["score"]] = row["value"]
    assert points == {key: (value["tsne_x"], value["tsne_y"]) for key, value in wanted.items()}
    assert len(points) == 2 * 2 * 5 * len(RESERVOIR)


def test_page_of_a_full_evaluation_has_every_figure_once_and_ids_stay_unique(measured: Path) -> None:
    run = load_run(measured)
    html = page_html([run], figures_of(run))
    assert [name for name in NAMES if html.count(f'id="plot-{name}"') != 1] == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "#0b0b" not in html


def test_a_default_run_gets_none_of_these_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "inline", lambda figure: f'<svg id="{figure.name}"></svg>')
    run = load_run(make_run(tmp_path / "run", layers=3, epochs=1, samples=1))
    cone = {**COMMON, "score": "cone", "value": 0.5, "layer_a": 1, "layer_b": 1, "site": "resid_post", "role_a": "P",
            "role_b": "P", "variant": "nosink"}  # fmt: skip
    assert full_figures([*run.rows, {**run.rows[-1], **cone}]) == []
    assert full_figures([]) == []
    html = page_html([run], figures_of(run))
    assert "full_" not in html and "decode to" not in html


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        (lambda row: row["score"].startswith("sim") and row["site"] == "resid_post", {"full_variants", "full_cones"}),
        (lambda row: row["score"].startswith("tsne"), {"full_tsne"}),
        (lambda row: row["score"] in ("kl", "entropy") or row["variant"] == "update", {"full_vocabulary"}),
    ],
)
def test_only_figures_with_rows_are_made(
    tmp_path: Path, keep: Callable[[dict[str, Any]], bool], names: set[str]
) -> None:
    folder = full_run(tmp_path / "run", [row for row in full_measurement() if keep(row)])
    found = full_figures(load_run(folder).rows)
    assert names <= {figure.name for figure in found}
    assert not {"full_token_pairs", "full_norms", "full_geometry"} & {figure.name for figure in found}
    assert all(figure.inline().startswith("<svg") for figure in found)


def test_values_that_are_not_numbers_leave_gaps_and_do_not_stop_the_page(tmp_path: Path) -> None:
    rows = [{**row, "value": None, "se": None} if index % 4 == 0 else row for index, row in
            enumerate(full_measurement())]  # fmt: skip
    run = load_run(full_run(tmp_path / "some", rows))
    assert "plot-full_geometry" in page_html([run], figures_of(run))
    none = load_run(full_run(tmp_path / "none", [{**row, "value": None} for row in rows]))
    assert full_figures(none.rows) == []


def test_the_last_epoch_and_one_dataset_are_drawn(tmp_path: Path) -> None:
    rows = full_measurement()
    early = [{**row, "value": 9.0, "epoch": 1} for row in rows]
    other = [{**row, "value": 8.0, "dataset_a": "e"} for row in rows if row["variant"] == "raw"]
    run = load_run(full_run(tmp_path / "run", early + rows + other))
    values = [float(c.get("value") or c.get("median") or c["x"]) for f in full_figures(run.rows) for c in table(f)]
    assert len(values) > 100
    assert max(values) < 8


def cone_file(path: Path, pairs: list[tuple[str, str]], role: str = "P") -> None:
    modality = {"a": "image", "b": "audio", "other": "video"}
    lines = [
        {**COMMON, "score": "cone", "value": 0.1 * layer, "layer_a": layer, "layer_b": layer, "site": "resid_post",
         "role_a": "P", "role_b": role, "variant": "raw", "note": f"{one} ~ {two}", "modality_a": modality[one],
         "modality_b": modality[two] if role == "P" else "text"}
        for one, two in pairs for layer in range(3)
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_cones_across_runs_are_those_of_the_compared_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, layers=2, epochs=0, samples=0)
    runs = load_runs([tmp_path])
    assert compared_cones(runs) == []
    cone_file(tmp_path / "cones" / "rows.jsonl", [("a", "a"), ("b", "b"), ("a", "b"), ("a", "other")])
    (figure,) = compared_cones(runs)
    lines = {cells["line"] for cells in table(figure)}
    assert lines == {"image ~ image", "audio ~ audio", "image ~ audio"}
    assert [float(c["value"]) for c in table(figure) if c["line"] == "image ~ audio"] == [0, 0.1, 0.2]
    cone_file(tmp_path / "cones" / "rows.jsonl", [("a", "a"), ("b", "b"), ("a", "b"), ("b", "a")], role="T")
    figure, across = compared_cones(runs)
    lines = {cells["line"] for cells in table(figure)}
    assert lines == {"image ~ image", "audio ~ audio", "image ~ audio"}
    assert {(cells["panel"], cells["line"]) for cells in table(across)} == {
        (f"P of {one}, raw", f"T of {other}") for one in ("image", "audio") for other in ("image", "audio")
    }
    assert across.inline().startswith("<svg")
    (tmp_path / "cones" / "rows.jsonl").write_text("{broken\n")
    assert compared_cones(runs) == []


def test_decoded_words_are_shown_escaped_and_a_broken_file_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", layers=2, epochs=0, samples=0)
    top = [{"sample": "s<1>", "layer": layer, "token": token, "top": [["<script>", 0.5], [" cow\n", 0.25]]}
           for layer in (0, 2) for token in range(2)]  # fmt: skip
    (folder / "alignment.json").write_text(json.dumps({"top_tokens": top}))
    html = page_html([load_run(folder)], [])
    part = html.partition('<section id="words">')[2].partition("</section>")[0]
    assert part.count("<tr>") == 3 and part.count("layer 2") == 1
    assert part.count("&lt;script&gt;</code> 0.50") == 4 and part.count("·cow\\n</code> 0.25") == 4
    assert "s&lt;1&gt;" in part and html.count("<script>") == 1
    for broken in ("{", "[]", '{"top_tokens": [1]}', '{"top_tokens": [{"sample": 1}]}'):
        (folder / "alignment.json").write_text(broken)
        assert 'id="words"' not in page_html([load_run(folder)], [])
