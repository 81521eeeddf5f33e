"""A W&B sweep's agent starts train.py with keys in W&B's spelling: the documented one works, the other is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from launcher import ROOT

from ima.cli.scripts import run_script
from ima.runs.folders import run_name

TEXT = (ROOT / "docs" / "wandb.md").read_text()


def trial(number: int) -> list[str]:
    """What the agent types for the documented sweep."""
    sweep = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[0])
    ranges = sweep["parameters"].items()
    chosen = [f"{key}={(kind.get('values') or [kind['min'], kind['max']])[number]}" for key, kind in ranges]
    program, script, *typed = [word for word in sweep["command"] if word != "${args_no_hyphens}"]
    assert (program, script) == ("python", sweep["program"]) and sweep["command"][-1] == "${args_no_hyphens}"
    return [*typed, *chosen]


def test_the_documented_sweep_gives_each_trial_a_folder_of_its_own() -> None:
    seen: list[dict[str, Any]] = []
    for number in (0, 1):
        assert run_script("train", trial(number), entry=seen.append) == 0
    first, second = map(run_name, seen)
    assert first != second and seen[0]["logger"]["mode"] == "online"


def test_keys_with_hyphens_are_refused_by_the_name_of_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--" + text for text in trial(0) if text.startswith("optimizer.lr")]
    assert typed and run_script("train", typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "${args_no_hyphens} in place of ${args}" in line and f"{typed[0][2:]} " in line
