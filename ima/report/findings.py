"""What a run shows, in sentences: learnt or not, aligned or not. Each is computed from numbers, which stand in it.

A sentence says "above" or "below" only where a 95 % interval says so; else that it is not shown.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ima.core.metric_names import (
    GROWTH,
    GROWTH_NULL,
    RETRIEVAL,
    RETRIEVAL_CHANCE,
    TRACKS_WITHOUT_MEDIA,
    VAL_LOSS,
    error_of,
    limits_of,
)
from ima.report.curves import MEDIA, Z95
from ima.report.page.words import track_name, value_text
from ima.report.run import Run, number

TRACKS = ("T0", "test", "val")  # the first one that a run has is the one that others stand beside
HEADLINES = ["noun_accuracy", "accuracy", "cider_d"]  # of runs whose facts do not tell
GROWTH_P, SMALL = "retrieval/growth_p", 0.05
COMPARISON = "comparison.json"


@dataclasses.dataclass(frozen=True)
class Finding:
    """kind: learnt, new, aligned or growth. verdict: "yes", "no" or "open"."""

    kind: str
    verdict: str
    text: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval, as far as there is one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.low) or not math.isfinite(self.high):
            return value_text(self.value)
        return f"{value_text(self.value)} [{value_text(self.low)}, {value_text(self.high)}]"

    def against(self, other: Measured) -> str:
        """yes: above, no: below, open: the intervals overlap. A number without an interval is taken as it is."""
        low, high = (limit if math.isfinite(limit) else other.value for limit in (other.low, other.high))
        return "yes" if self.low > high else "no" if self.high < low else "open"

    @property
    def share(self) -> str:
        """As a percentage."""
        limits = f" [{100 * self.low:.0f}, {100 * self.high:.0f}]" if math.isfinite(self.low) else ""
        return f"{100 * self.value:.0f} %{limits}"


def findings(run: Run) -> list[Finding]:
    """Sentences about a run of one task, or about each entry of a mixture."""
    entries: Mapping[str, Any] = run.result["facts"].get("entries") or {}
    found = list(against_twins(run))
    for name, facts in entries.items() if entries else [("", run.result["facts"])]:
        prefix = f"{name}/" if name else ""
        of_entry = [*task_findings(run, prefix, facts), *alignment_findings(run, prefix, facts)]
        found += [dataclasses.replace(one, text=f"{name}: {one.text}") for one in of_entry] if name else of_entry
    return found


# -- the task ----------------------------------------------------------------------------------------------------------


def task_findings(run: Run, prefix: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    names = [str(facts["headline"])] if facts.get("headline") else HEADLINES
    pairs = [(one, name) for name in names for one in TRACKS if f"{prefix}{one}/{name}" in run.metrics]
    track, headline = next(iter(pairs), (None, ""))
    mine = measured(run, f"{prefix}{track}/{headline}")
    if track is None or mine is None:
        return
    word, many = media_words(facts)
    score = score_name(headline)
    said = f"On {place(track, facts)}, {score} is {mine}"
    loss = measured(run, f"{prefix}{VAL_LOSS}")
    beside = {one: found for one in TRACKS_WITHOUT_MEDIA if (found := measured(run, f"{prefix}{one}/{headline}"))}
    if not beside:
        yield Finding("learnt", "open", f"{said}; nothing was measured to compare it with.")
        return
    name, best = max(beside.items(), key=lambda pair: pair[1].value)
    what = f"without the {word} (blind)" if name == "blind" else "by guessing from the training answers (prior)"
    verdict = mine.against(best)
    end = {
        "yes": f"what it says depends on the {many}",
        "no": f"the {many} do harm",
        "open": f"the intervals overlap, so it is not shown that it uses the {many}",
    }[verdict]
    if is_noise(facts):
        end = {"yes": "above it although the encoder gives noise", "no": "below it, from noise"}.get(
            verdict, f"no more than chance, as is right where the encoder gives noise in place of {many}"
        )
    tail = f" Validation loss {value_text(loss.value)}." if loss is not None else ""
    yield Finding("learnt", verdict, f"{said}; {what} {best}: {end}.{tail}")
    new = measured(run, f"{prefix}T1/{headline}")
    if track == "T0" and new is not None and not is_noise(facts):
        verdict = new.against(best)
        end = {"yes": "it reaches what was never trained on", "no": "worse than that"}.get(
            verdict, "not shown to be above it"
        )
        yield Finding("new", verdict, f"On {place('T1', facts)}, {score} is {new}: {end}.")


def against_twins(run: Run) -> Iterator[Finding]:
    """The paired differences that `python -m ima compare` wrote for this run and another."""
    for comparison, is_first in comparisons_of(run.folder):
        other = Path(str(comparison["second" if is_first else "first"])).name
        for track, found in list(comparison["tracks"].items())[:1]:
            values = [number(found["difference"].get(key)) for key in ("value", "low", "high")]
            if any(value is None for value in values):
                continue
            value, low, high = (value or 0.0 for value in values)
            mine = Measured(value, low, high) if is_first else Measured(-value, -high, -low)
            verdict = mine.against(Measured(0.0, 0.0, 0.0))
            end = {"yes": f"better than {other}", "no": f"worse than {other}"}.get(
                verdict, f"no difference from {other}"
            )
            shown = "is shown" if verdict == "open" else "on the same examples"
            what = (
                comparison["metric"]
                if comparison["metric"] != "right"
                else run.result["facts"].get("headline", "right")
            )
            yield Finding(
                "learnt", verdict, f"{track}: {end} {shown}; the paired difference of {score_name(what)} is {mine}."
            )


def comparisons_of(folder: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """(comparison, whether the run is its first)."""
    folder = folder.resolve()
    for path in sorted(folder.parent.glob(f"*/{COMPARISON}")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            first, second = (Path(str(found[key])).name for key in ("first", "second"))
            is_whole = isinstance(found["tracks"], dict) and all(
                "difference" in one for one in found["tracks"].values()
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_whole and (path.parent, second) == (folder, folder.name):
            yield found, False
        elif is_whole and path.parent != folder and first == folder.name:
            yield found, True


# -- the alignment -----------------------------------------------------------------------------------------------------


def alignment_findings(run: Run, prefix: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    value, chance = run.metrics.get(prefix + RETRIEVAL), run.metrics.get(prefix + RETRIEVAL_CHANCE)
    if value is None or chance is None:
        if prefix + RETRIEVAL in run.metrics:
            yield Finding("aligned", "open", f"Alignment is not known: {why_not(run)}.")
        return
    _, many = media_words(facts)
    mine = with_error(run, prefix + RETRIEVAL, value)
    verdict = mine.against(Measured(chance, chance, chance))
    end = {
        "yes": "aligned, above chance",
        "no": "below chance",
        "open": "not shown to be above chance, so not shown to be aligned",
    }[verdict]
    yield Finding(
        "aligned",
        verdict,
        f"{mine.share} of the {many} find their own text inside the LLM (mean over the blocks); by chance "
        f"{100 * chance:.0f} %: {end}.",
    )
    grown, null, p = (run.metrics.get(prefix + name) for name in (GROWTH, GROWTH_NULL, GROWTH_P))
    if grown is None or null is None or p is None:
        return
    adds = "the LLM adds to what the adapter does" if p < SMALL else "it is not shown that the LLM adds anything"
    yield Finding(
        "growth",
        "yes" if p < SMALL else "open",
        f"From the first block on, that grows by {with_error(run, prefix + GROWTH, grown)}; by chance "
        f"{value_text(null)}, p = {value_text(p)}: {adds}.",
    )


def why_not(run: Run) -> str:
    rows = (row for row in reversed(run.rows) if row["score"] == "retrieval_mean")
    note = next(rows, {"note": None})["note"]
    return str(note or "it has no number").rstrip(".")


# -- numbers and words -------------------------------------------------------------------------------------------------


def measured(run: Run, name: str) -> Measured | None:
    value = run.metrics.get(name)
    if value is None:
        return None
    low, high = (run.metrics.get(limit) for limit in limits_of(name))
    return Measured(value, math.nan, math.nan) if low is None or high is None else Measured(value, low, high)


def with_error(run: Run, name: str, value: float) -> Measured:
    error = run.metrics.get(error_of(name))
    return (
        Measured(value, math.nan, math.nan)
        if error is None
        else Measured(value, value - Z95 * error, value + Z95 * error)
    )


def score_name(headline: Any) -> str:
    return str(headline).replace("_", " ").replace("cider d", "CIDEr-D")


def place(track: str, facts: Mapping[str, Any]) -> str:
    """T0 (seen objects, new scenes)."""
    name, _, what = track_name(track, facts.get("modality")).partition(" · ")
    return f"{name} ({what})" if what else name


def is_noise(facts: Mapping[str, Any]) -> bool:
    return "noise" in str(facts.get("encoder") or "").lower()


def media_words(facts: Mapping[str, Any]) -> tuple[str, str]:
    """One and many of its media: picture and pictures."""
    word = MEDIA.get(str(facts.get("modality")))
    return (word, f"{word}s") if word else ("medium", "media")
