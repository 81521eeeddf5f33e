"""The page: one HTML file that needs nothing else, for one run or for many.

Everything from a run is escaped. A content security policy inside the page refuses every request and every script
but our own, so that a caption cannot run code or call out even where escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from ima.report.figures.drawing import Figure
from ima.report.figures.style import css_variables
from ima.report.findings import findings
from ima.report.mixture import entry_section, variant_section
from ima.report.page import tables
from ima.report.page.decoded import decoded_section
from ima.report.page.patches import patch_section
from ima.report.page.samples import sample_section
from ima.report.page.words import AGAINST, HEADLINES, MAX_HEADLINES, in_words_of, seconds_text, value_text
from ima.report.proxies import proxy_section
from ima.report.run import Run


def page_html(
    runs: Sequence[Run], figures: Sequence[Figure], proxies: Sequence[dict[str, Any]] = (), refresh: int = 0
) -> str:
    """The whole document. `proxies`: the correlations over several runs. refresh: seconds after which a browser loads
    the page again (0: never)."""
    whole = run_page(runs[0], figures) if len(runs) == 1 else comparison_page(runs, figures, proxies)
    if refresh:
        whole = whole.replace("<meta name", f'<meta http-equiv="refresh" content="{refresh}"><meta name', 1)
    return whole.encode("utf-8", "replace").decode()  # a generated text may hold half a surrogate pair


def run_page(run: Run, figures: Sequence[Figure]) -> str:
    sections = [
        ("figures", "What happened", figure_grid(figures)),
        ("samples", "What it says", sample_section(run)),
        ("tasks", "Task metrics", folded("Every score by track and epoch", tables.task_table(run))),
        *([("words", "What perceptual tokens decode to", words)] if (words := decoded_section(run)) else []),
        *([("patches", "What patches are near to", maps)] if (maps := patch_section(run)) else []),
        ("facts", "Run facts", folded("All metrics", tables.metric_table(run))
         + folded("Facts and versions", tables.facts_table(run))
         + folded("Configuration, resolved", tables.config_table(run))),
        ("reproduce", "How to reproduce", reproduce(run)),
    ]  # fmt: skip
    header = (
        f"<h1>{escape(run.name)} {tables.status_badge(run.status)}</h1>"
        f'<p class="lead">{lead(run)}</p>{alerts(run)}{said(run)}{entry_section(run) or headlines(run)}'
    )
    return document(f"ima · {run.name}", header, sections)


def comparison_page(runs: Sequence[Run], figures: Sequence[Figure], proxies: Sequence[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    states = " ".join(f"{tables.status_badge(status)} {count}" for status, count in sorted(counts.items()))
    sections = [("overview", "Runs", tables.overview(runs)), ("figures", "Compared", figure_grid(figures))]
    if found := proxy_section(proxies):
        sections.append(("proxies", "IMA against performance", found))
    if found := variant_section(runs):
        sections.insert(1, ("variants", "Tasks and IMA of the mixtures", found))
    if len(runs) <= 8:
        sections.append(("differences", "Where the configurations differ", tables.difference_table(runs)))
    notes = "".join(f'<p class="alert">{escape(run.name)}: {escape(note)}</p>' for run in runs for note in run.notes)
    header = (
        f'<h1>{len(runs)} runs</h1><p class="lead">{states}</p>{notes}{beside(runs) if len(runs) == 2 else ""}'
        '<p class="note">One run in full: <code>python -m ima report outputs/&lt;run&gt;</code></p>'
    )
    return document(f"ima · {len(runs)} runs", header, sections)


def beside(runs: Sequence[Run]) -> str:
    """What each of two runs shows, side by side."""
    columns = "".join(f"<div><h3>{escape(run.name)}</h3>{said(run)}</div>" for run in runs)
    return f'<div class="columns">{columns}</div>'


def document(title: str, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>' for name, heading, content in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{css_variables()}\n{asset('page.css')}</style></head>"
        f'<body><header><p class="mark">ima · implicit multimodal alignment</p>{header}<nav>{links}</nav></header>'
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )


@cache
def asset(name: str) -> str:
    return files("ima.report").joinpath("assets", name).read_text(encoding="utf-8")


def folded(summary: str, content: str) -> str:
    """What few look at, a click away."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def said(run: Run) -> str:
    """What the run shows, in sentences; the sign and the words tell, not the colour alone."""
    signs = {"yes": ("✓", "right"), "no": ("✗", "wrong"), "open": ("○", "")}
    lines = "".join(
        f'<li><span class="verdict {signs[one.verdict][1]}">{signs[one.verdict][0]}</span> {escape(one.text)}</li>'
        for one in findings(run)
    )
    return f'<ul class="findings">{lines}</ul>' if lines else ""


def lead(run: Run) -> str:
    """Which parts, on what, for how long: one line."""
    facts, config = run.result["facts"], run.result["config"]
    parts = []
    for part in ("encoder", "adapter", "llm"):
        name = facts.get(part) or name_of(config.get(part))
        if name:
            parts.append(f"<b>{escape(tables.plain(name))}</b>")
    line = " → ".join(parts)
    trained = facts.get("num_trainable_parameters", facts.get("num_trainable"))
    if isinstance(trained, (int, float)):
        line += f" · {value_text(int(trained))} trained parameters"
    for fact in ("device", "dtype"):
        if facts.get(fact):
            line += f" · {escape(tables.plain(facts[fact]))}"
    if run.result.get("wall_seconds") is not None:
        line += f" · {seconds_text(run.result['wall_seconds'])}"
    return line.removeprefix(" · ")


def name_of(part: Any) -> Any:
    if isinstance(part, dict):
        return part.get("name") or str(part.get("_target_") or "").rpartition(".")[2]
    return part


def alerts(run: Run) -> str:
    lines = []
    if run.status == "failed":
        lines.append(f"This run failed: {run.reason or 'no reason was recorded'}.")
    elif run.status != "ok":
        lines.append(f"This run is not finished (status {run.status}); what it wrote so far is shown.")
    return "".join(f'<p class="alert">{escape(line)}</p>' for line in (*lines, *run.notes))


def reason_of(run: Run, name: str) -> str:
    """Why a metric is not a number, as its last row says."""
    track, _, score = name.rpartition("/")
    rows = (row for row in reversed(run.rows) if row["score"] == score and row["track"] == track)
    row = next(rows, {"note": None})
    return row["note"] or "nothing to measure it on"


def headlines(run: Run) -> str:
    present = [entry for entry in HEADLINES if entry[0] in run.metrics][:MAX_HEADLINES]
    if not present:
        return '<p class="missing">No headline metric was measured.</p>'
    cards, modality = "", run.result["facts"].get("modality")
    for name, title, meaning in present:
        value, limits = run.metrics[name], tables.interval_text(run, name)
        limit_line = f'<p class="limits">95 % interval {limits}</p>' if limits else ""
        if against := AGAINST.get(name):
            other = run.metrics.get(against[0])
            limit_line = f'<p class="limits">{against[1]} {value_text(other)}</p>' if other is not None else ""
        if value is None:
            limit_line = f'<p class="limits">not a number: {escape(reason_of(run, name))}</p>'
        cards += (
            f'<div class="headline"><h3>{escape(title)}</h3><p class="big">{value_text(value)}</p>{limit_line}'
            f'<p class="meaning">{escape(in_words_of(modality, meaning))}</p></div>'
        )
    return f'<div class="headlines">{cards}</div>'


def figure_grid(figures: Sequence[Figure]) -> str:
    drawn = "".join(
        f'<figure class="plot{" wide" if figure.wide else ""}" id="plot-{escape(figure.name)}">'
        f"<h3>{escape(figure.title)}</h3>{figure.inline()}"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in figures
        if figure.draw
    )
    missing = "".join(
        f"<li><b>{escape(figure.title)}</b>: {escape(figure.missing)}.</li>"
        for figure in figures
        if figure.draw is None
    )
    listed = f'<div class="missing"><p>Not drawn:</p><ul>{missing}</ul></div>' if missing else ""
    files_line = (
        '<p class="note">Every figure is also in figures/ beside this page: SVG, PNG, and its numbers as CSV.</p>'
        if drawn
        else ""
    )
    return f'<div class="plots">{drawn}</div>{listed}{files_line}'


def reproduce(run: Run) -> str:
    result, git = run.result, run.result["git"]
    lines = []
    if git.get("commit"):
        lines.append(f"git checkout {git['commit']}")
    lines.append(str(result.get("command") or "# the command was not recorded"))
    dirty = (
        '<p class="note">The working tree had uncommitted changes: the commit alone may not give the same numbers.</p>'
        if git.get("dirty")
        else ""
    )
    overrides = result.get("overrides") or []
    listed = tables.pairs(
        [("overrides", overrides if isinstance(overrides, list) else [overrides]), ("seeds", result.get("seeds"))]
    )
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>{dirty}{listed}"
