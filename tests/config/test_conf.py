"""The real conf/: every choice composes, describes itself, and its schema is what Python sees in its target."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from ima.cli.help import describe
from ima.config.compose import CONF, choices_of, compose, default_groups
from ima.config.settings import GroupName
from ima.core.signatures import signature
from ima.runs.identity import STACKED

NEEDED = {("encoder", "timm"): ["encoder.name=resnet18"], ("llm", "hf"): ["llm.path=somewhere"]}
NEEDED |= {("intervention", "mask"): ["intervention.mask.path=somewhere"]}


def unset(group: str, choice: str) -> list[str]:
    """A word for each key that a file leaves to the user (`folder: ???`)."""
    node = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) or {}
    own = [f"{group}.{key}=somewhere" for key, value in node.items() if value == "???"]
    chosen = [entry.items() for entry in node.get("defaults", []) if isinstance(entry, dict)]
    pairs = [(name.rpartition("/")[2], picked) for items in chosen for name, picked in items]
    return own + [line for other, picked in pairs if other == "data" for line in unset(other, picked)]


GROUPS = [group for group in default_groups("train", CONF) if group not in ("sweep", "multirun")]
CHOICES = [(group, choice) for group in GROUPS for choice in choices_of(group, CONF)]
FILES = sorted(CONF.glob("*/*.yaml"))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_every_choice_composes(group: str, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if choice == "folder":  # is looked into
        (tmp_path / "somewhere").mkdir()
        (tmp_path / "somewhere/table.csv").write_text("file,caption\na.jpg,b\n")
        monkeypatch.chdir(tmp_path)
    config = compose([f"{group}={choice}", *NEEDED.get((group, choice), unset(group, choice))])
    picked = config.choices[group]
    named = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) or {}  # what stacks is told by its nodes
    assert picked == ([name for name in named if name != "defaults"] if group in STACKED else choice)


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_every_file_says_in_a_line_what_it_is(path: Path) -> None:
    assert 10 < len(describe(path)) <= 100


def targets() -> list[str]:
    def of(node: Any) -> set[str]:
        if isinstance(node, dict):
            return {str(v) for k, v in node.items() if k == "_target_"}.union(*map(of, node.values()))
        return set()

    return sorted(set().union(*(of(yaml.safe_load(path.read_text())) for path in FILES)))


@pytest.mark.parametrize("target", targets())
def test_the_schema_read_from_source_is_what_python_sees(target: str) -> None:
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    read = signature(target)
    named = [p for p in real.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert list(read.parameters) == [p.name for p in named]
    assert not read.open or not target.startswith("ima."), "a constructor with **kwargs takes any misspelt key"
    for parameter in named:
        default = read.parameters[parameter.name].default
        if isinstance(parameter.default, int | float | str | bool | None):
            assert default == parameter.default or isinstance(default, str), parameter.name


@pytest.mark.parametrize("group", get_args(GroupName))
def test_every_group_of_measures_is_added_by_its_name_also_the_one_called_null(group: str) -> None:
    config = compose([f"alignment=[default,{group}]"])
    assert list(config["alignment"]["groups"]) == [group]
