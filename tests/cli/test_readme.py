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
from launcher import Launcher
from omegaconf import OmegaConf

from ima.config.compose import CONF, choices_of, compose, default_groups
from ima.core.files import write_json
from ima.core.types import Site
from ima.runs.results import read_rows

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SMALL = ["logger=none", "trainer.max_epochs=1", "data.num_train=8", "data.num_test=4", "data.size=32"]


def blocks() -> dict[str, str]:
    """path -> content of the code blocks whose first line is the path of a file."""
    found = re.findall(r"```(?:python|yaml)\n# ([\w./]+)\n(.*?)```", EXTENDING, flags=re.DOTALL)
    return {path: content for path, content in found}


def commands() -> list[str]:
    """Of the block "Three scripts", as they stand."""
    block = TEXT.split("## Three scripts")[1].split("```")[1]
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.startswith("python ")]


# Those that need no weights, data or hours once outputs/demo, outputs/demo_control and outputs/encoders are tiny runs.
EXECUTED = [line for line in commands() if "-m ima " in line or ("evaluate.py" in line and "outputs/demo" in line)]
DEEP = ["llm=tiny", "llm.num_blocks=6", "data=shapes", "encoder=noise", "encoder.dim=8", "encoder.num_tokens=4",
        "adapter.hidden=16", "adapter.grid=1", "trainer.accelerator=cpu", "task.max_new_tokens=4"]  # fmt: skip


def test_it_stays_short() -> None:
    assert TEXT.count("\n") <= 150 and max(map(len, TEXT.splitlines())) <= 120


@pytest.mark.parametrize(
    "words",
    ["Hydra", "Lightning", "IMA        = mean of sim(l)", "**Growth**", "GB needed", "CITATION.cff", "ima.load_lmm(",
     "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL", "HF_HUB_OFFLINE", "data=folder", "--multirun", "torchrun", "MIT"],
)  # fmt: skip
def test_it_says_what_its_readers_look_for(words: str) -> None:
    assert words in TEXT


def test_each_way_to_add_something_fits_in_a_few_lines() -> None:
    python = {path: text for path, text in blocks().items() if path.endswith(".py")}
    assert sorted(path.removesuffix(".py") for path in python) == [
        f"mine/{part}" for part in ("adapters", "callbacks", "encoders", "interventions", "tasks")
    ]
    for path, text in python.items():
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
        assert len(lines) <= 10, path


@pytest.mark.processes
def test_what_it_adds_runs_as_written(tmp_path: Path) -> None:
    """A copy of the project with the blocks as files, and the command that the README gives."""
    for name in ("ima", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    for path, text in blocks().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    given = re.search(r"^`(python train\.py .*?)`\s+trains with all five", EXTENDING, flags=re.M | re.S)
    assert given is not None
    changed = ["loader.batch_size=2", "name=mine", "adapter.every=3", "intervention.scale.factor=2"]
    arguments = [*shlex.split(given[1])[1:], *SMALL, *changed]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "IMA_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from ima.runs.record import read_result

    result = read_result(tmp_path / "outputs" / "mine")
    assert result["status"] == "ok" and result["config"]["adapter"]["every"] == 3
    assert result["facts"]["encoder"] == "Colours" and result["facts"]["adapter"] == "SparseAdapter"
    assert result["config"]["task"]["_target_"] == "mine.tasks.Naming" and result["metrics"]["val/loss"] is not None
    assert result["config"]["intervention"]["scale"]["factor"] == 2
    assert any(name.endswith("/single_word") for name in result["metrics"])
    assert "watched: step 2" in done.stdout


@pytest.fixture(scope="module")
def workplace(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands who has made the demo, its control and a sweep; all of them tiny."""
    place = tmp_path_factory.mktemp("workplace")
    for name, seed in (("demo", 0), ("demo_control", 1), ("encoders/one", 2)):
        done = launcher.run("train", [*SMALL, *DEEP, f"seed={seed}", f"name={name}"], cwd=place)
        assert done.code == 0, done.stderr
    return place


@pytest.mark.parametrize("command", EXECUTED)
def test_its_commands_run_as_they_stand(command: str, launcher: Launcher, workplace: Path) -> None:
    arguments = shlex.split(command)[1:]
    if arguments[0] == "-m":
        paths = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *arguments], cwd=workplace, env=paths, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    ran = launcher.run(arguments[0].removesuffix(".py"), arguments[1:], cwd=workplace)
    assert ran.code == 0, ran.stderr
    (folder,) = (workplace / "outputs/demo").glob("evaluate-*")
    rows = list(read_rows(folder / "rows.jsonl"))
    assert {row["site"] for row in rows if row["score"] == "sim"} == {site.value for site in Site}
    gone = {row["layer_a"] for row in rows if (row["score"], row["site"], row["n"]) == ("sim", "fc2", 0)}
    assert gone == {5, 6}, "percepts skip the FFN of blocks from 4 on"


def test_those_that_are_not_run_here_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rest = [line for line in commands() if line not in EXECUTED]
    with capsys.disabled():
        print("\nREADME commands that are composed, not run:", *rest, sep="\n  ")
    assert len(EXECUTED) >= 3


@pytest.mark.parametrize("command", [line for line in commands() if "-m ima " not in line])
def test_its_commands_compose(command: str, tmp_path: Path) -> None:
    from ima.cli.sweep import plan

    script, *arguments = shlex.split(command)[1:]
    if any(text.startswith("checkpoint=") for text in arguments):  # a run that the reader has by then
        config = OmegaConf.to_container(compose(["experiment=demo"]))
        write_json(tmp_path / "result.json", {"status": "ok", "config": config})
        arguments = [f"checkpoint={tmp_path}" if text.startswith("checkpoint=") else text for text in arguments]
    root = script.removesuffix(".py")
    own = [text for text in arguments if not text.startswith("checkpoint=")]
    if root == "sweep" and len(own) == 1 and own[0].startswith("sweep="):
        assert own[0].removeprefix("sweep=") in choices_of("sweep", CONF)  # tests/runs/test_golden.py composes its jobs
        return
    jobs = plan(arguments)[1] if root == "sweep" else [compose(arguments, root)]
    assert len(jobs) >= 1


def test_the_groups_it_names_are_those_there_are() -> None:
    for group in [*default_groups("train", CONF), "sweep"]:
        assert f"`{group}`" in TEXT, group
        assert choices_of(group, CONF)


@pytest.mark.parametrize("group", ["adapter", "encoder", "llm", "experiment", "sweep", "intervention"])
def test_every_choice_stands_in_some_page(group: str) -> None:
    text = TEXT + "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    words = set(re.findall(r"[\w.]+", text)) | {"none"}
    based = {"published_caption", "published_qa"}  # bases of the others
    shown = {name for name in choices_of(group, CONF) if not name.endswith("_control")} - based
    shown = {name for name in shown if not re.fullmatch(r"mt_\w+_[234]", name)}  # `..._2` in docs/multitask.md
    assert shown - words == set()


def test_its_targets_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", TEXT))
    assert named and named <= targets
