"""Figures of the groups of measures: each is there where its rows are, and shows their values."""

from __future__ import annotations

from typing import Any

import pytest

from ima.report.curves import alignment_rows
from ima.report.figures.alignment import retrieval
from ima.report.figures.groups import group_figures

COMMON = {"run": "r", "epoch": 2, "split": "val", "track": None, "task": None, "dataset_a": "d", "dataset_b": "d",
          "modality_a": "audio", "modality_b": "text", "se": None, "n": 50, "step": 1, "note": None,
          "site": "resid_post"}  # fmt: skip


def row(score: str, value: float, a: int | None = None, b: int | None = None, **fields: Any) -> dict[str, Any]:
    return {**COMMON, "score": score, "value": value, "layer_a": a, "layer_b": b, "role_a": "P", "role_b": "T.text",
            "variant": "centred", **fields}  # fmt: skip


def rows() -> list[dict[str, Any]]:
    out = [row("retrieval_map", 0.1 * a + 0.01 * b, a, b) for a in range(4) for b in range(4)]
    out += [row("cka_debiased_z", 1.0 + layer, layer, layer, variant="calibrated") for layer in range(4)]
    out += [row("sink_share", 0.3, layer, role_b=None, variant="raw") for layer in range(4)]
    out += [row("sim", 0.5, layer, layer, role_b="T", variant="raw") for layer in range(4)]
    out += [row("probe_noun", 0.4, layer, role_b=None, variant="nosinkdim") for layer in range(4)]
    out += [row(score, 0.05 * layer, layer, 2) for layer in range(4) for score in ("lens_share", "lens_chance")]
    asked = {"role_a": "T.answer", "role_b": "P", "variant": "raw"}
    out += [row("attention_mass", 0.1 * layer, layer, layer, **asked) for layer in range(1, 4)]
    out += [row("retrieval", 0.2 * layer, layer, layer) for layer in range(4)]
    return [*out, row("retrieval_chance", 0.125)]


def test_each_group_has_its_figure_with_the_rows_values() -> None:
    found = {figure.name: figure for figure in group_figures(alignment_rows(rows()))}
    assert list(found) == ["layer_maps", "calibrated", "sinks", "probes", "lens", "attention"]
    header, table = found["layer_maps"].table
    assert list(header) == ["map", "layer_a", "layer_b", "value"]
    assert ["retrieval_map", 3, 1, pytest.approx(0.31)] in [list(line) for line in table]
    assert [line[3] for line in found["calibrated"].table[1]] == [1.0, 2.0, 3.0, 4.0]
    assert all(figure.inline().startswith("<svg") for figure in found.values())
    assert "sound" in found["layer_maps"].title


def test_without_groups_there_is_no_figure_of_them() -> None:
    assert group_figures(alignment_rows([row("sim", 0.5, 1, 1, role_b="T", variant="raw")])) == []


def test_retrieval_is_drawn_against_its_chance_and_names_the_medium() -> None:
    figure = retrieval(alignment_rows(rows()))
    assert figure.title == "Does a sound find its own text?" and "sounds" in figure.caption
    assert [line[2] for line in figure.table[1]] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert "chance 0.125" in figure.inline()


def test_what_was_measured_on_another_split_alone_is_shown() -> None:
    other = [{**each, "split": "T0"} for each in rows()]
    assert len(alignment_rows(other)) == len(rows())
    assert {each["split"] for each in alignment_rows([*other, *rows()])} == {"val"}
