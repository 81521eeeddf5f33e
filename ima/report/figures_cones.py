"""Cones across runs: how near the tokens of datasets and modalities are to each other (rows of ima.alignment.cones).

The rows lie beside the runs in cones/rows.jsonl; only pairs of runs that the page compares are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ima.errors import UserError
from ima.report.drawing import Figure
from ima.report.figures_full import VARIANTS, latest
from ima.report.load import Run
from ima.report.panels import Panel, Stroke, multiples
from ima.report.series import Row
from ima.report.style import DASHES, NUM_CATEGORIES
from ima.results import read_rows

MAX_VARIANTS = 2  # of those that every pair has
ROLES = (("P", "P"), ("T", "T"), ("P", "T"))


def cone_rows(runs: Sequence[Run]) -> list[Row]:
    """Rows of pairs of these runs, `note` the pair ("a ~ b"); empty where none were made or they cannot be read."""
    if not runs:
        return []
    top = Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    names = {run.folder.resolve().name for run in runs}
    found = []
    for folder in (top, top.parent):
        path = folder / "cones" / "rows.jsonl"
        try:
            rows = list(read_rows(path))
        except (UserError, OSError, UnicodeDecodeError):
            continue
        for row in rows:
            pair = str(row["note"] or "").partition(": ")[0]
            if row["score"] == "cone" and set(pair.split(" ~ ")) <= names:
                found.append({**row, "note": pair, "epoch": -1})
        if found:
            return found
    return found


def short(row: Row, rows: Sequence[Row]) -> str:
    """The pair by its modalities or datasets, by the names of the runs where these do not tell the runs apart."""
    sides: dict[str, tuple[object, object]] = {}
    for each in rows:
        one, other = each["note"].split(" ~ ")
        if each["role_a"] == each["role_b"] == "P":
            sides |= {one: (each["modality_a"], each["dataset_a"]), other: (each["modality_b"], each["dataset_b"])}
    for index in (0, 1):
        if None not in (words := [side[index] for side in sides.values()]) and len(set(words)) == len(words):
            return " ~ ".join(str(sides[name][index]) if name in sides else name for name in row["note"].split(" ~ "))
    return str(row["note"])


def compared_cones(runs: Sequence[Run]) -> list[Figure]:
    rows = cone_rows(runs)
    labels = {row["note"]: short(row, rows) for row in rows}
    order = sorted(labels, key=lambda note: (len(set(note.split(" ~ "))), note))
    panels = []
    measured = {variant: {row["note"] for row in rows if row["variant"] == variant} for variant in VARIANTS}
    shown = [variant for variant in ("raw", "nomassive", "scaled", "nosink") if measured[variant] == set(order)]
    for variant in shown[:MAX_VARIANTS]:
        for role_a, role_b in ROLES:
            strokes = [
                Stroke(
                    labels[note],
                    latest(rows, note, score="cone", role_a=role_a, role_b=role_b, variant=variant, note=note),
                    f"c{index % NUM_CATEGORIES}",
                    DASHES[(len(set(note.split(" ~ "))) > 1) + 2 * (index >= NUM_CATEGORIES)],
                )
                for index, note in enumerate(order)
            ]
            name = VARIANTS[variant][0].removesuffix(" tokens").removesuffix(" dimensions")
            panels.append(Panel(f"{role_a} with {role_b}, {name}", strokes))
    return multiples(
        "compare_cones",
        "Cones of datasets and modalities",
        "Mean cosine of tokens of different examples, within a run (solid) and across two (dashed; in P with T the"
        " first gives P). Modalities share a cone where the dashed lines come near the solid ones.",
        panels,
        columns=3,
        ylabel="mean cosine",
    )
