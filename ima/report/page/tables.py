"""Tables of the page: task metrics, facts, configuration, and the overview of many runs that sorts and filters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ima.core.metric_names import CONTROL_TRACKS, is_limit, limits_of
from ima.report import curves as series
from ima.report.figures.drawing import thinned
from ima.report.labels import varied
from ima.report.load import differing_keys, flatten, text
from ima.report.page.words import HEADLINES, seconds_text, track_name, value_text
from ima.report.run import Run, number

MAX_METRIC_COLUMNS = 8
MAX_EPOCH_COLUMNS = 10
MAX_REASON = 160
MAX_COMPARED_KEYS = 60
SIGNS = {"ok": "✓", "failed": "✗", "running": "…"}


def status_badge(status: str) -> str:
    kind = status if status in SIGNS else "unknown"
    return f'<span class="status {kind}">{SIGNS.get(status, "?")} {escape(status)}</span>'


def interval_text(run: Run, name: str) -> str:
    low, high = (run.metrics.get(limit) for limit in limits_of(name))
    return "" if low is None or high is None else f"{value_text(low)} to {value_text(high)}"


def pairs(items: Iterable[tuple[str, Any]]) -> str:
    """Two-column table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(plain(value))}</td></tr>' for name, value in items
    )
    return f'<div class="scroll"><table class="pairs">{rows}</table></div>' if rows else ""


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "–"
    return value_text(value)


def facts_table(run: Run) -> str:
    result = run.result
    git = result["git"]
    commit = str(git.get("commit") or "–")[:12] + (" (with uncommitted changes)" if git.get("dirty") else "")
    facts: list[tuple[str, Any]] = [("status", run.status), ("wall time", seconds_text(result.get("wall_seconds")))]
    for name, value in result["facts"].items():
        if name in ("seconds", "times") and isinstance(value, dict):
            value = {phase: seconds_text(spent) for phase, spent in value.items()}
        if name == "throughput" and isinstance(value, dict):
            value = throughput_words(value)
        facts.append((str(name).replace("_", " "), value))
    facts += [("seeds", result.get("seeds")), ("commit", commit)]
    facts += [(f"{name} version", version) for name, version in result["versions"].items()]
    return pairs(facts)


def throughput_words(found: dict[str, Any]) -> dict[str, str]:
    """Shares in percent, bytes in GB."""
    out = {}
    for name, value in found.items():
        words = name.replace("_", " ")
        if isinstance(value, dict):
            out[words] = ", ".join(f"{part} {100 * (number(share) or 0):.0f} %" for part, share in value.items())
        elif name.startswith("share"):
            out[words] = f"{100 * (number(value) or 0):.0f} %"
        elif name.endswith("_bytes"):
            out[words.removesuffix(" bytes")] = f"{(number(value) or 0) / 1e9:.2f} GB"
        else:
            out[words] = value_text(number(value))
    return out


def config_table(run: Run) -> str:
    config = flatten(run.result["config"])
    if not config:
        return '<p class="missing">The result holds no configuration.</p>'
    return pairs((key, text(value)) for key, value in config.items())


def metric_table(run: Run) -> str:
    """Every metric of the result with its interval, limits folded into their metric's row."""
    names = [name for name in run.metrics if not (is_limit(name) and name.rsplit("/", 1)[0] in run.metrics)]
    first = [name for name, _, _ in HEADLINES if name in names]
    names = [*first, *sorted(name for name in names if name not in first)]
    if not names:
        return '<p class="missing">The result holds no metrics.</p>'
    return pairs(
        (
            name,
            value_text(run.metrics[name]) + (f"  ({limits_text})" if (limits_text := interval_text(run, name)) else ""),
        )
        for name in names
    )


def task_table(run: Run) -> str:
    """Task metrics: a row per metric and track (what stands beside the tracks last), a column per epoch. Of a mixture,
    one entry after the other."""
    groups = {entry: series.task_scores(rows) for entry, rows in series.by_entry(run.rows).items()}
    named = len(groups) > 1
    curves = [found for scores in groups.values() for tracks in scores.values() for found in tracks.values()]
    measured = sorted({int(epoch) for found in curves for epoch in found.x})
    if not curves:
        return '<p class="missing">No task metric rows: was the run evaluated?</p>'
    shown = thinned(measured, MAX_EPOCH_COLUMNS)
    head = '<th scope="col">entry</th>' if named else ""
    head += '<th scope="col">metric</th><th scope="col">track</th>'
    head += "".join(f'<th scope="col" class="number">epoch {epoch}</th>' for epoch in shown)
    left_out = "" if shown == measured else f" {len(shown)} of {len(measured)} epochs; figures/tasks.csv has all."
    body, modality = "", run.result["facts"].get("modality")
    for entry, scores in groups.items():
        for score, tracks in sorted(scores.items(), key=lambda pair: interest(pair[0])):
            for track, found in tracks.items():
                points = {at: (value, se, found.limits.get(at)) for at, value, se in found.points}
                cells = "".join(f'<td class="number">{cell(points.get(epoch))}</td>' for epoch in shown)
                kind = ' class="blind"' if track in CONTROL_TRACKS else ""
                body += (
                    f"<tr{kind}>{f'<td>{escape(entry)}</td>' if named else ''}"
                    f'<th scope="row">{escape(score.replace("_", " "))}</th>'
                    f'<td class="words">{escape(track_name(track, modality))}</td>{cells}</tr>'
                )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr>'
        f'</thead><tbody>{body}</tbody></table></div><p class="note">Small: 95 % interval.{left_out}</p>'
    )


def interest(score: str) -> tuple[int, str]:
    """Scores that stand for a task first, then parts of it by name."""
    first = [name.rpartition("/")[2] for name, _, _ in HEADLINES]
    return (first.index(score) if score in first else len(first), score)


def cell(point: tuple[float, float, tuple[float, float] | None] | None) -> str:
    if point is None:
        return "–"
    value, se, limits = point
    if limits is not None and all(map(math.isfinite, limits)):
        return f"{value_text(value)} <small>{value_text(limits[0])} – {value_text(limits[1])}</small>"
    return value_text(value) + (f"<small> ± {value_text(series.Z95 * se)}</small>" if se > 0 else "")


def metric_columns(runs: Sequence[Run]) -> list[str]:
    """Headline metrics that a run has, then the most frequent others."""
    seen: dict[str, int] = {}
    for run in runs:
        for name, value in run.metrics.items():
            if value is not None and not is_limit(name):
                seen[name] = seen.get(name, 0) + 1
    first = [name for name, _, _ in HEADLINES if name in seen]
    others = sorted((name for name in seen if name not in first), key=lambda name: (-seen[name], name))
    return (first + others)[:MAX_METRIC_COLUMNS]


def overview(runs: Sequence[Run]) -> str:
    """One row per run; the inline script sorts by a click on a heading, filters by words and shows where the
    configurations of the chosen rows differ."""
    columns, metrics = overview_columns(runs), metric_columns(runs)
    heads = ["run", "status", *columns, *metrics, "time"]
    numeric = {*metrics, "time"}
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=number" if name in numeric else ""}>'
        f'<button type="button">{breakable(name)}</button></th>'
        for name in heads
    )
    body = "".join(
        overview_row(run, [values[place] for values in columns.values()], metrics) for place, run in enumerate(runs)
    )
    return (
        f'<label class="filter">Filter <input type="search" id="filter" placeholder="words that a row must hold">'
        f'</label> <span id="count" class="note">{len(runs)} of {len(runs)} runs</span>'
        f'<div class="scroll"><table class="sortable" id="runs"><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><div id="chosen" class="scroll" aria-live="polite"></div>'
        f"{difference_data(runs)}"
        f'<p class="note">Choose two runs or more to see where their configurations differ. All configuration values'
        f" and metrics of every run are in runs.csv and runs.parquet beside this page.</p>"
    )


def overview_columns(runs: Sequence[Run], most: int = 8) -> dict[str, list[str]]:
    """What was varied, for each run: what the commands gave differently, else where the configurations differ; a
    part's class says nothing more where its choice stands beside it."""
    given = list(varied(runs).items())[:most]
    if given:
        return {key: ["–" if value is None else value for value in values] for key, values in given}
    keys = differing_keys(runs, limit=MAX_COMPARED_KEYS)
    told = {key.removeprefix("choices.") for key in keys if key.startswith("choices.")}
    kept = [key for key in keys if not (key.endswith("._target_") and key.split(".")[0] in told)][:most]
    configs = [flatten(run.result["config"]) for run in runs]
    return {key: [text(config[key]) if key in config else "–" for config in configs] for key in kept}


def difference_data(runs: Sequence[Run]) -> str:
    """For the script: every config key on which the runs differ, its values once, and which value each run has."""
    flat = [{key: text(value) for key, value in flatten(run.result["config"]).items()} for run in runs]
    table = []
    for key in differing_keys(runs, limit=MAX_COMPARED_KEYS):
        values = list(dict.fromkeys(config.get(key) for config in flat))
        places = {value: place for place, value in enumerate(values)}
        table.append([key, values, [places[config.get(key)] for config in flat]])
    data = json.dumps(table, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="differences-data">{data}</script>'


def breakable(name: str) -> str:
    """A long key may wrap after its dots, slashes and underscores."""
    marked = escape(name)
    for sign in "./_":
        marked = marked.replace(sign, f"{sign}<wbr>")
    return marked.replace("<<wbr>", "<").replace("</<wbr>", "</")


def overview_row(run: Run, values: Sequence[str], metrics: Sequence[str]) -> str:
    pick = '<label class="compare"><input type="checkbox" class="pick"> compare</label>'
    tools = f'<div class="tools">{pick}{how_to(run)}</div>'
    cells = [f'<th scope="row">{escape(run.name)}{tools}</th><td>{status_badge(run.status)}{reason(run)}</td>']
    cells += [f"<td>{escape(value)}</td>" for value in values]
    for name in metrics:
        value, limits = run.metrics.get(name), interval_text(run, name)
        small = f"<small>{limits}</small>" if limits else ""
        cells.append(f'<td class="number" data-v="{"" if value is None else value}">{value_text(value)}{small}</td>')
    wall = run.result.get("wall_seconds")
    cells.append(
        f'<td class="number" data-v="{wall if isinstance(wall, (int, float)) else ""}">{seconds_text(wall)}</td>'
    )
    return f"<tr>{''.join(cells)}</tr>"


def how_to(run: Run) -> str:
    command = run.result.get("command")
    return f"<details><summary>command</summary><code>{escape(str(command))}</code></details>" if command else ""


def reason(run: Run) -> str:
    if not run.reason:
        return ""
    short = run.reason if len(run.reason) <= MAX_REASON else run.reason[: MAX_REASON - 1] + "…"
    return f'<small class="reason">{escape(short)}</small>'


def difference_table(runs: Sequence[Run]) -> str:
    """Config keys on which a few runs differ, a column per run."""
    keys = differing_keys(runs, limit=40)
    if not keys:
        return '<p class="missing">The configurations are the same.</p>'
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    flat = [flatten(run.result["config"]) for run in runs]
    body = "".join(
        f'<tr><th scope="row">{breakable(key)}</th>'
        + "".join(f"<td>{escape(text(config[key])) if key in config else '–'}</td>" for config in flat)
        + "</tr>"
        for key in keys
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">key</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
