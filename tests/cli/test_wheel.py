"""The installed package: its wheel brings conf/ along, and `ima train` works from a folder that holds nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ima.core import commands

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it, without its requirements; offline."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in ("ima", "conf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel, site = place / "ima-0.1.0-py3-none-any.whl", place / "site"
    for step in (
        ["wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(place)],
        ["install", str(wheel), "--no-deps", "--no-index", "--target", str(site)],
    ):
        done = subprocess.run([*pip, *step], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return site


def call(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "IMA_CACHE": str(cwd / "cache")}
    command = [sys.executable, str(installed / "bin" / "ima"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.processes
def test_every_config_file_travels_and_nothing_of_the_checkout_is_used(installed: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.yaml")}

    assert files(installed / "ima" / "conf") == files(ROOT / "conf") != {}
    assert not commands.is_checkout(installed) and commands.conf_folder(installed) == installed / "ima" / "conf"


@pytest.mark.processes
def test_commands_of_the_installed_package_name_what_was_typed(installed: Path, tmp_path: Path) -> None:
    shown = call(installed, tmp_path, "train", "--help")
    assert shown.returncode == 0 and "ima train [group=choice]" in shown.stdout and "efficientnet_lite0" in shown.stdout
    refused = call(installed, tmp_path, "train", "seed=1,2")
    assert refused.returncode == 2 and refused.stderr.strip().endswith("ima train --multirun seed=1,2")
    (tmp_path / "mine.py").write_text("from ima.config.settings import Loader\nclass Own(Loader):\n    pass\n")
    printed = call(installed, tmp_path, "train", "loader._target_=mine.Own", "--cfg")
    assert printed.returncode == 0, "a class of one's own in the working folder"


@pytest.mark.processes
def test_a_sweep_of_the_installed_package_trains_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    given = ["sweep", "experiment=smoke", "logger=none", "seed=0,", "name=s", "llm=tiny", "data.num_train=8",
             "data.num_test=4", "trainer.max_epochs=1"]  # fmt: skip
    done = call(installed, tmp_path, *[text.replace("seed=0,", "seed=choice(0)") for text in given])
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/s/*/result.json")]
    assert [result["status"] for result in results] == ["ok"]
    assert results[0]["command"].startswith("python -m ima train experiment=smoke")


@pytest.mark.parametrize(
    ("program", "typed", "name"),
    [
        ("/home/a/ima/train.py", "python train.py", "train.py"),
        ("/usr/bin/ima", "ima train", "ima train"),
        ("/site-packages/ima/__main__.py", "python -m ima train", "python -m ima train"),
        ("/site-packages/pytest/__main__.py", "python train.py", "train.py"),
    ],
)
def test_what_a_person_typed_is_what_is_named(
    program: str, typed: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, *(["train"] if "ima" in typed else []), "a=1"])
    assert commands.command_of("train") == typed and commands.name_of("train") == name
    assert commands.arguments() == ["a=1"]


def test_a_process_is_started_by_the_script_of_a_checkout_or_else_by_the_package(tmp_path: Path) -> None:
    assert commands.process_of("train") == [sys.executable, str(ROOT / "train.py")]
    assert commands.process_of("train", tmp_path) == [sys.executable, "-m", "ima", "train"]
    assert commands.conf_folder() == ROOT / "conf" and commands.conf_folder(tmp_path) == tmp_path / "ima" / "conf"
