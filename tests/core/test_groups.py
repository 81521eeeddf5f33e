"""Groups of tests: `make test` leaves out exactly these, its last lines say so, and the CI runs them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from groups import GROUPS, last_lines

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))


def words(pattern: str) -> list[str]:
    found = re.search(pattern, MAKEFILE, flags=re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_make_test_leaves_out_the_groups_and_nothing_else() -> None:
    assert set(words(r"^NO_GROUP := not \((.*)\)$")) - {"or"} == set(GROUPS)


NOT_IN_CI = {"fuzz"}  # draws new cases each time: what it finds is no fault of a submission


def test_every_group_of_the_makefile_has_a_target_and_runs_in_test_all_and_in_the_ci() -> None:
    run = re.search(r"for part in (.*); do", (ROOT / ".ci/run").read_text())
    assert run is not None
    for name in words(r"^GROUPS := (.*)$"):
        assert GROUPS[name][1] == f"make test-{name}"
        assert f"test-{name}" in TARGETS and (f"test-{name}" in run[1].split()) == (name not in NOT_IN_CI)
    assert set(run[1].split()) >= {"lint", "type", "test"} and set(run[1].split()) <= TARGETS


def test_the_last_lines_name_what_was_not_run_and_how_to_run_it_most_first() -> None:
    lines = last_lines(Counter(docs=3, browser=15), Counter({"not set up: smollm2 (make setup)": 7}))
    assert lines == [
        "not run: 15 of the group browser (the page in Chromium, which it installs): make test-browser",
        f"not run: 3 of the group docs ({GROUPS['docs'][0]}): make test-docs",
        "skipped: 7: not set up: smollm2 (make setup)",
    ]
    assert last_lines(Counter(), Counter()) == []
