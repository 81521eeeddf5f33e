"""Cones across runs: how near the tokens of datasets and modalities are to each other (rows of ima.alignment.cones).

The rows lie beside the runs in cones/rows.jsonl; only pairs of runs that the page compares are drawn.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.report.curves import Curve, Row
from ima.report.figures.drawing import Figure
from ima.report.figures.full import VARIANTS, latest
from ima.report.figures.panels import Panel, Stroke, multiples
from ima.report.figures.style import DASHES, NUM_CATEGORIES
from ima.report.run import Run
from ima.runs.results import read_rows

SEPARATOR = " ~ "
MAX_RUNS = 4
NARROW_NAME = 8  # letters; longer names have two columns
MAX_VARIANTS = 2  # of those that every pair has


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
            if row["score"] == "cone" and set(pair.split(SEPARATOR)) <= names:
                found.append({**row, "note": pair, "epoch": -1})
        if found:
            return found
    return found


def short_names(rows: Sequence[Row]) -> dict[str, str]:
    """Run -> its modality or dataset where that tells the runs apart, else its name."""
    sides: dict[str, tuple[object, object]] = {}
    for row in rows:
        one, other = row["note"].split(SEPARATOR)
        if row["role_a"] == row["role_b"] == "P":
            sides |= {one: (row["modality_a"], row["dataset_a"]), other: (row["modality_b"], row["dataset_b"])}
    for index in (0, 1):
        words = [side[index] for side in sides.values()]
        if None not in words and len(set(words)) == len(words):
            return {name: str(side[index]) for name, side in sides.items()}
    return {name: name for name in sides}


def compared_cones(runs: Sequence[Run]) -> list[Figure]:
    """P with P and T with T in one figure, P with T in another: a panel for each run that gives P."""
    rows = cone_rows(runs)
    words = short_names(rows)
    several = f" The first {MAX_RUNS} runs are drawn." if len(words) > MAX_RUNS else ""
    names = list(words)[:MAX_RUNS]
    pairs = [(one, one) for one in names] + list(itertools.combinations(names, 2))
    notes = {row["note"] for row in rows}
    measured = {variant: {row["note"] for row in rows if row["variant"] == variant} for variant in VARIANTS}
    shown = [variant for variant in ("raw", "nomassive", "scaled", "nosink") if notes and measured[variant] == notes]
    labels = {variant: VARIANTS[variant][0] for variant in shown[:MAX_VARIANTS]}

    def cosine(one: str, other: str, role_a: str, role_b: str, variant: str) -> Curve:
        note = (f"{one}{SEPARATOR}{other}", *([f"{other}{SEPARATOR}{one}"] if role_a == role_b else []))
        return latest(rows, variant, score="cone", role_a=role_a, role_b=role_b, variant=variant, note=note)

    alike = [
        Panel(f"{role} with {role}, {label}", [
            Stroke(f"{words[one]} ~ {words[other]}", cosine(one, other, role, role, variant),
                   f"c{index % NUM_CATEGORIES}", DASHES[(one != other) + 2 * (index >= NUM_CATEGORIES)])
            for index, (one, other) in enumerate(pairs)
        ])
        for variant, label in labels.items() for role in ("P", "T")
    ]  # fmt: skip
    across = [
        Panel(f"P of {words[one]}, {label.removesuffix(' tokens').removesuffix(' dimensions')}", [
            Stroke(f"T of {words[other]}", cosine(one, other, "P", "T", variant), f"c{index}", DASHES[index])
            for index, other in enumerate(names)
        ])
        for variant, label in labels.items() for one in names
    ]  # fmt: skip
    return multiples(
        "compare_cones",
        "Cones of datasets and modalities",
        "Mean cosine of tokens of different examples, within a run (solid) and across two (dashed). Two modalities"
        f" share a cone where their dashed line comes near the solid ones.{several}",
        alike,
        ylabel="mean cosine",
    ) + multiples(
        "compare_cones_text",
        "Perceptual tokens and the texts of every run",
        "Mean cosine of a run's perceptual tokens with its own and with the other runs' textual tokens. Equal lines:"
        f" P is near text as such, not near its own task's.{several}",
        across,
        columns=min(3 if max(map(len, words.values()), default=0) <= NARROW_NAME else 2, len(names)) or 1,
        ylabel="cosine, P with T",
    )
