"""Two runs on the same test examples: the paired difference of a per-example score, with its interval.

Pairing by example takes the examples' difficulty out; resampling clusters (stamps, not pictures) keeps the interval
honest. `python -m ima compare outputs/demo outputs/demo_control` prints it and writes comparison.json into the second
run's folder. Reads predictions.jsonl only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.files import json_lines
from ima.core.metric_names import TRACKS_WITHOUT_MEDIA
from ima.core.resampling import mean, paired_difference
from ima.runs.record import read_record

Line = dict[str, Any]


def read_predictions(folder: Path) -> dict[str, dict[str, Line]]:
    """track -> id -> line of predictions.jsonl. Raises UserError for a run without them and for a broken line."""
    path = folder / "predictions.jsonl"
    if not path.is_file():
        status = read_record(folder).status
        raise UserError(f"{path}: not found; the run's status is {status!r}, only a finished run has predictions")
    tracks: dict[str, dict[str, Line]] = {}
    for number, line in json_lines(path):
        track, name = line.get("track"), line.get("id")
        if not isinstance(track, str) or not isinstance(name, str):
            raise UserError(f"{path}:{number}: no prediction; evaluate the run again")
        if name in tracks.setdefault(track, {}):
            raise UserError(f"{path}:{number}: {name} of track {track} is there twice; evaluate the run again")
        tracks[track][name] = line
    return tracks


def compare(first: Path, second: Path, metric: str = "right", tracks: Sequence[str] = ()) -> dict[str, Any]:
    """Per track: both means and their paired difference with a 95 % cluster-bootstrap interval.

    tracks: empty for all that both runs have (a run on noise has none of spoilt media).
    Raises UserError where the runs were not measured on the same examples or where `metric` is no number of all.
    """
    runs = [read_predictions(folder) for folder in (first, second)]
    own = [name for name in runs[0] if name not in TRACKS_WITHOUT_MEDIA]
    names = list(tracks) or [name for name in own if name in runs[1]] or own
    found = {name: compare_track(first, second, runs, name, metric) for name in names}
    return {"first": str(first), "second": str(second), "metric": metric, "tracks": found}


def compare_track(
    first: Path, second: Path, runs: Sequence[dict[str, dict[str, Line]]], track: str, metric: str
) -> dict[str, Any]:

    for folder, run in zip((first, second), runs, strict=True):
        if track not in run:
            raise UserError(f"--track: {track!r} was not measured in {folder}; {nearest(track, run)}")
    lines = [run[track] for run in runs]
    if lines[0].keys() != lines[1].keys():
        odd = sorted(lines[0].keys() ^ lines[1].keys())
        raise UserError(
            f"{first} and {second} were measured on different examples of {track}: {len(odd)} are in one only, such "
            f"as {odd[0]}; compare runs of the same data"
        )
    order = list(lines[0])
    values = [
        [value_of(folder, run[name], metric) for name in order]
        for folder, run in zip((first, second), lines, strict=True)
    ]
    clusters = [str(lines[0][name].get("cluster") or name) for name in order]
    difference = paired_difference(values[0], values[1], clusters)
    out: dict[str, Any] = {"n": len(clusters), "num_clusters": difference.num_clusters}
    for name, interval in (
        ("first", mean(values[0], clusters)),
        ("second", mean(values[1], clusters)),
        ("difference", difference),
    ):
        out[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return out


def value_of(folder: Path, line: Line, metric: str) -> float:
    value = line.get(metric)
    if not isinstance(value, bool | int | float):
        numbers = [name for name, other in line.items() if isinstance(other, bool | int | float) and name != "epoch"]
        raise UserError(f"--metric: {metric!r} is no number of {line['id']} in {folder}; {nearest(metric, numbers)}")
    return float(value)


def lines_of(comparison: dict[str, Any]) -> Iterable[str]:
    """What is printed: a line per track."""
    first, second = (Path(comparison[name]).name or comparison[name] for name in ("first", "second"))
    yield f"{shown_name(comparison)}, 95 % intervals over clusters"
    for track, found in comparison["tracks"].items():
        cells = [f"{name} {text_of(found[key])}" for name, key in ((first, "first"), (second, "second"))]
        size = f"n = {found['n']}, {found['num_clusters']} clusters"
        yield f"{track:4} {' | '.join(cells)} | difference {text_of(found['difference'], '+')} | {size}"


def shown_name(comparison: dict[str, Any]) -> str:
    """What "right" means for the first run's task, as its result.json says; other metrics by their own name."""
    if comparison["metric"] != "right":
        return str(comparison["metric"])
    try:
        headline = read_record(Path(comparison["first"])).facts.get("headline")
    except UserError:
        headline = None
    return str(headline or "right").replace("_", " ")


def text_of(interval: dict[str, float], sign: str = "") -> str:
    return f"{interval['value']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"
