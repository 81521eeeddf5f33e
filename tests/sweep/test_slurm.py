"""Multiruns on a real Slurm of one node: six jobs, two ranks of one training, and a job that is taken away and comes
back. `make test-slurm` installs what they need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from multiruns import SECONDS, TINY, Place, numbers
from slurm_node import SlurmNode, why_not


def has_plugin() -> bool:
    try:
        return find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False


LACKING = why_not() or ("" if has_plugin() else "Hydra's plugins are not installed")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(LACKING), reason=f"no Slurm here: {LACKING}: make test-slurm installs it where it can"),
]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmNode]:
    started = SlurmNode(tmp_path_factory.mktemp("slurm"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def place(node: SlurmNode, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("multiruns"), {"SLURM_CONF": node.environment["SLURM_CONF"]})


def launched(place: Place, name: str) -> list[Path]:
    """The folders of submitit's jobs."""
    return sorted((place.folder / name / ".submitit").glob("[0-9]*_[0-9]*"))


def test_six_jobs_are_six_jobs_of_slurm_and_six_rows(place: Place) -> None:
    words = ["--multirun", *TINY, "encoder=a,b,c", "seed=0,1"]
    assert place.run("train", "six", [*words, *SLURM]) == 0, place.log("six")
    assert len(launched(place, "six")) == 6
    rows = place.table("six")
    assert len(rows) == 6 == len({row["folder"] for row in rows}) and {row["status"] for row in rows} == {"ok"}


def test_two_tasks_are_two_ranks_of_one_training(place: Place) -> None:
    """The same numbers as of two ranks that the job starts itself, where there is one task."""
    words = ["--multirun", *TINY, "encoder=a", "seed=0", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    assert place.run("train", "tasks", [*words, *SLURM, "hydra.launcher.tasks_per_node=2"]) == 0, place.log("tasks")
    said = [path.read_text() for path in launched(place, "tasks")[0].glob("*_log.out")]
    assert len(said) == 2, "not two tasks"
    assert place.run("train", "ranks", [*words, *SLURM]) == 0, place.log("ranks")
    (with_tasks,), (with_ranks,) = (numbers(place.results(name)).values() for name in ("tasks", "ranks"))
    assert with_tasks == with_ranks
    assert len(place.table("tasks")) == 1


def test_a_job_that_is_taken_away_comes_back_and_ends_with_the_same_numbers(node: SlurmNode, place: Place) -> None:
    words = ["--multirun", *TINY, "encoder=b", "seed=0,1", "trainer.max_epochs=8"]
    assert place.run("train", "whole", [*words, "hydra/launcher=basic"]) == 0, place.log("whole")
    started = place.start("train", "taken", [*words, *SLURM])
    until = time.monotonic() + SECONDS
    while not (saved := list(place.folder.glob("taken/*/checkpoints/last.safetensors"))):
        assert started.poll() is None and time.monotonic() < until, place.log("taken")
        time.sleep(0.05)
    (job,) = [path.name for path in launched(place, "taken") if path.name.endswith("_0")]
    node.ask("scancel", "--signal=USR2", job)
    while "Restarts=0" in (told := node.ask("scontrol", "show", "job", job)):
        assert started.poll() is None and time.monotonic() < until, place.log("taken") + told
        time.sleep(0.2)
    while started.poll() is None and time.monotonic() < until:
        node.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # a job that comes back waits for minutes
        time.sleep(2)
    assert started.wait(timeout=60) == 0, place.log("taken")
    assert saved and "Restarts=1" in node.ask("scontrol", "show", "job", job)
    assert numbers(place.results("taken")) == numbers(place.results("whole"))
    assert len(place.table("taken")) == 2
