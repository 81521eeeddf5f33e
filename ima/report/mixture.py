"""Tables of mixtures: the entries of one run, and the same entries of several runs beside each other.

One run: a line per entry with its score, what guessing would get, IMA and hallucination. Several: the table behind "is
IMA a proxy over the variants", a line per run, and all of it as entries.csv.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

from ima.report.curves import Z95
from ima.report.entry_table import HALLUCINATION, Line, entry_lines
from ima.report.page.words import value_text
from ima.report.relations import Point, is_control, relations, training_of
from ima.report.run import Run

HEADS = {"f1": "F1 of yes", "yes_ratio": "says yes", "chair_s": "CHAIR-s", "chair_i": "CHAIR-i"}
NOTE = (
    "Small: 95 % interval. Score: the entry's headline on its first track; without the medium: the same questions"
    " blind; guessed: the most frequent training answer. F1 and how often yes is said: yes/no probes (POPE). CHAIR:"
    " captions (s) and mentions (i) with something that is not there, lower is better."
)


def lines_of(run: Run) -> list[Line]:
    """Empty for a run of one task."""
    entries = run.result["facts"].get("entries")
    if not isinstance(entries, dict):
        return []
    wanted = {"headline", "modality"}
    return entry_lines(run.metrics, {k: v for k, v in entries.items() if isinstance(v, dict) and wanted <= v.keys()})


def number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    limits = f"<small>{value_text(low)} to {value_text(high)}</small>" if low is not None and high is not None else ""
    return f'<td class="number">{value_text(value)}{limits}</td>'


def ima_limits(line: Line) -> tuple[float | None, float | None]:
    if line["ima"] is None or line["ima_se"] is None:
        return None, None
    return line["ima"] - Z95 * line["ima_se"], line["ima"] + Z95 * line["ima_se"]


def by_modality(lines: Sequence[Line]) -> dict[str, tuple[float, int]]:
    """Modality -> mean IMA of its entries, and how many they are."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line["ima"] is not None:
            found.setdefault(line["modality"], []).append(line["ima"])
    return {modality: (statistics.fmean(values), len(values)) for modality, values in found.items()}


def entry_section(run: Run) -> str:
    """The table of a run's entries; "" where it is of one task."""
    lines = lines_of(run)
    if not lines:
        return ""
    heads = {"blind": "without the medium", "prior": "guessed"}
    extra = [name for name in HALLUCINATION if any(line[name] is not None for line in lines)]
    beside = [name for name in heads if any(line[name] is not None for line in lines)]
    columns = ["entry", "modality", "metric", "score", *(heads[name] for name in beside), "IMA",
               *(HEADS[name] for name in extra), "loss"]  # fmt: skip
    body = ""
    for line in lines:
        what = f"{line['metric'].replace('_', ' ')}, {line['track']}" if line["track"] else "not measured"
        body += f'<tr><th scope="row">{escape(line["entry"])}</th>'
        body += (
            "".join(f"<td>{escape(word)}</td>" for word in (line["modality"], what))
            + number(line["value"], line["low"], line["high"])
            + "".join(number(line[name]) for name in beside)
            + number(line["ima"], *ima_limits(line))
            + "".join(number(line[name]) for name in (*extra, "loss"))
            + "</tr>"
        )
    means = "; ".join(
        f"{escape(modality)} {value_text(value)}" + (f" (mean of {count} entries)" if count > 1 else "")
        for modality, (value, count) in by_modality(lines).items()
    )
    told = f"<p>IMA by modality: {means}.</p>" if means else ""
    return table(columns, body, 3) + told + f'<p class="note">{NOTE} Also in tasks.csv beside the run.</p>'


def table(columns: Sequence[str], body: str, num_words: int) -> str:
    head = "".join(
        f'<th scope="col"{" class=number" if place >= num_words else ""}>{escape(name)}</th>'
        for place, name in enumerate(columns)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def by_name(runs: Sequence[Run]) -> list[Run]:
    """In the order of their names, in which variants of one experiment are numbered."""
    return sorted(runs, key=lambda run: run.name)


def run_lines(runs: Sequence[Run]) -> list[Line]:
    """The lines of all mixtures among the runs, each with its run."""
    return [{"run": run.name, **line} for run in by_name(runs) for line in lines_of(run)]


def entry_names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(line["entry"] for line in run_lines(runs)))


def mixture_points(runs: Sequence[Run], entry: str) -> list[Point]:
    """IMA against the headline score of one entry, a point per run that measured both."""
    points = []
    for run in runs:
        for line in lines_of(run):
            if line["entry"] == entry and line["ima"] is not None and line["value"] is not None:
                low, high = (line["value"] if line[end] is None else line[end] for end in ("low", "high"))
                bars = (Z95 * (line["ima_se"] or 0.0), low, high)
                points.append(Point(run.name, line["ima"], line["value"], training_of(run), is_control(run), bars))
    return points


def variant_section(runs: Sequence[Run]) -> str:
    """A line per run: score and IMA of every entry, their means; below, how the two are related over the runs. "" where
    fewer than two runs are mixtures."""
    lines = run_lines(runs)
    names = list(dict.fromkeys(line["run"] for line in lines))
    entries = entry_names(runs)
    if len(names) < 2:
        return ""
    metrics = {line["entry"]: line["metric"] for line in lines}
    body = ""
    for name in names:
        mine = {line["entry"]: line for line in lines if line["run"] == name}
        cells = ""
        for entry in entries:
            line = mine.get(entry)
            cells += number(line["value"], line["low"], line["high"]) if line else number(None)
            cells += number(line["ima"], *ima_limits(line)) if line else number(None)
        cells += number(mean_of(mine, entries, "value")) + number(mean_of(mine, entries, "ima"))
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    body += relation_row(runs, entries)
    top = "".join(f'<th scope="colgroup" class="number" colspan="2">{escape(name)}</th>' for name in (*entries, "mean"))
    heads = [text for entry in entries for text in (metrics[entry].replace("_", " "), "IMA")] + ["score", "IMA"]
    low = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in heads)
    head = f'<tr><th scope="col" rowspan="2">run</th>{top}</tr><tr>{low}</tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>' + (
        '<p class="note">Small: 95 % interval. Means over the entries, where the run has all of them. Last line:'
        " Spearman's rank correlation of the score with IMA over the runs; with this few it only tells the order. All"
        " columns, with guessing and hallucination, are in entries.csv beside this page.</p>"
    )


def mean_of(mine: dict[str, Line], entries: Sequence[str], column: str) -> float | None:
    values: list[Any] = [mine[entry][column] for entry in entries if entry in mine]
    return statistics.fmean(values) if len(values) == len(entries) and None not in values else None


def relation_row(runs: Sequence[Run], entries: Sequence[str]) -> str:
    cells = ""
    for entry in entries:
        points = mixture_points(runs, entry)
        found = relations(points)[0].value if points else math.nan
        cells += f'<td class="number" colspan="2">ρ = {value_text(found)}, n = {len(points)}</td>'
    return f'<tr class="blind"><th scope="row">score with IMA</th>{cells}<td colspan="2"></td></tr>'
