"""Groups of tests that `make test` leaves out, how each is run, and the lines at the end that say what was not run.

A group is a marker of its name. A group whose name says what is installed (`browser`) is set up by its target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

# name -> (what its tests do, what runs them)
GROUPS = {
    "processes": ("whole scripts, kills, ranks, services", "make test-processes"),
    "docs": ("every command of README and docs as written, the notebooks, the site", "make test-docs"),
    "fuzz": ("random configs, damaged files", "make test-fuzz"),
    "browser": ("the page in Chromium, which it installs", "make test-browser"),
    "plugins": ("launchers and sweepers of others, which it installs", "make test-plugins"),
    "slurm": ("a real Slurm on this machine, which it installs", "make test-slurm"),
}
# marker -> what brings what its tests need; without it they are skipped
NEEDS = {
    "real": "make setup",
    "stamps": "make setup, where Debian's Tux Paint stamps can be had",
    "scratch": "make setup, where Debian's scratch can be had",
}


def group_of(item: pytest.Item) -> str | None:
    return next((name for name in GROUPS if name in item.keywords), None)


def counts(items: Iterable[pytest.Item]) -> Counter[str]:
    return Counter(name for item in items if (name := group_of(item)) is not None)


def last_lines(left_out: Mapping[str, int], skipped: Mapping[str, int]) -> list[str]:
    """Groups with tests that were not chosen, and reasons of skips with how often each occurred; most first."""
    out = [
        f"not run: {number} of the group {name} ({GROUPS[name][0]}): {GROUPS[name][1]}"
        for name, number in sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    for reason, number in sorted(skipped.items(), key=lambda pair: (-pair[1], pair[0])):
        out.append(f"skipped: {number}: {reason}")
    return out


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped."""
    place = report.longrepr
    text = str(place[2] if isinstance(place, tuple) else place)
    return text.removeprefix("Skipped: ")
