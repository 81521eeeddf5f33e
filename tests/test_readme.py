"""What README.md promises: its code blocks are run as they stand, its commands compose, its length is kept."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ima.config.compose import CONF, choices_of, compose, default_groups
from ima.core.files import write_json

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SMALL = ["logger=none", "trainer.epochs=1", "data.num_train=8", "data.num_test=4", "data.size=32"]


def blocks() -> dict[str, str]:
    """path -> content of the code blocks whose first line is the path of a file."""
    found = re.findall(r"```(?:python|yaml)\n# ([\w./]+)\n(.*?)```", EXTENDING, flags=re.DOTALL)
    return {path: content for path, content in found}


def commands() -> list[str]:
    return [line.split("  #")[0].strip() for line in re.findall(r"^python \w+\.py .*$", TEXT, flags=re.MULTILINE)]


def test_it_stays_short() -> None:
    assert TEXT.count("\n") <= 150 and max(map(len, TEXT.splitlines())) <= 120


def test_each_way_to_add_something_fits_in_a_few_lines() -> None:
    python = {path: text for path, text in blocks().items() if path.endswith(".py")}
    assert sorted(path.removesuffix(".py") for path in python) == [
        f"mine/{part}" for part in ("adapters", "encoders", "interventions", "tasks")
    ]
    for path, text in python.items():
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
        assert len(lines) <= 10, path


def test_what_it_adds_runs_as_written(tmp_path: Path) -> None:
    """A copy of the project with the blocks as files, and the command that the README gives."""
    for name in ("ima", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    for path, text in blocks().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    given = re.search(r"^`(python train\.py .*?)` runs all four", EXTENDING, flags=re.MULTILINE)
    assert given is not None
    arguments = [*shlex.split(given[1])[1:], *SMALL, "name=mine", "adapter.every=3", "intervention.scale.factor=2"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "IMA_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from ima.runs.results import read_result

    result = read_result(tmp_path / "outputs" / "mine")
    assert result["status"] == "ok" and result["config"]["adapter"]["every"] == 3
    assert result["facts"]["encoder"] == "Colours" and result["facts"]["adapter"] == "SparseAdapter"
    assert result["config"]["task"]["_target_"] == "mine.tasks.Naming" and result["metrics"]["val/loss"] is not None
    assert result["config"]["intervention"]["scale"]["factor"] == 2


@pytest.mark.parametrize("command", [line for line in commands() if "evaluate.py" not in line])
def test_its_commands_compose(command: str, tmp_path: Path) -> None:
    from ima.cli.scripts import compose_sweep

    script, *arguments = shlex.split(command)[1:]
    if any(text.startswith("checkpoint=") for text in arguments):  # a run that the reader has by then
        config = OmegaConf.to_container(compose(["experiment=demo"]))
        write_json(tmp_path / "result.json", {"status": "ok", "config": config})
        arguments = [f"checkpoint={tmp_path}" if text.startswith("checkpoint=") else text for text in arguments]
    jobs = compose_sweep(arguments).jobs if script == "sweep.py" else [compose(arguments)]
    assert len(jobs) >= 1


def test_the_groups_it_names_are_those_there_are() -> None:
    for group in [*default_groups("train", CONF), "sweep"]:
        assert f"`{group}`" in TEXT, group
        assert choices_of(group, CONF)


def test_its_targets_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", TEXT))
    assert named and named <= targets
