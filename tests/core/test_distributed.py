"""A rank counts only in a run that has ranks: leftover variables lose nothing, what contradicts itself is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from launcher import Launcher
from test_training import NOISE, assert_same_run

from ima.config.settings import Flags
from ima.core.distributed import Place, hint_of_ranks, num_devices, place_of, rank, ranks_from_outside
from ima.core.errors import UserError
from ima.pipeline.ranks import KnownRanks

RUN = [*NOISE, "trainer.max_epochs=1"]
STRAY = {"RANK": "1", "SLURM_PROCID": "1", "LOCAL_RANK": "3", "WORLD_SIZE": "2", "NODE_RANK": "1"}
SLURM = {"SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
         "SLURM_NODEID": "0", "SLURM_JOB_ID": "12345", "SLURM_NODELIST": "no-such-host-[1-2]"}  # fmt: skip
MEET = {"MASTER_ADDR": "no-such-host", "MASTER_PORT": "1"}
TORCHRUN = {**MEET, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}


def asking(devices: int | str = 1, num_nodes: int = 1) -> Flags:
    return Flags(devices=devices, num_nodes=num_nodes, accelerator="cpu")


@pytest.fixture(scope="module")
def alone(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("alone")
    done = launcher.run("train", [*RUN, f"output_dir={outputs}", "name=run"])
    assert done.code == 0, done.stderr
    return outputs / "run"


@pytest.mark.parametrize(
    ("environment", "more"),
    [
        ({"RANK": "1"}, []),
        ({"SLURM_PROCID": "1"}, []),
        (STRAY | MEET, ["trainer.strategy=ddp"]),
        (SLURM, []),  # srun of independent trainings
        (SLURM | TORCHRUN | STRAY, []),
    ],
)
def test_a_run_of_one_process_is_the_same_whatever_variables_lie_about(
    launcher: Launcher, alone: Path, tmp_path: Path, environment: dict[str, str], more: list[str]
) -> None:
    done = launcher.run("train", [*RUN, *more, f"output_dir={tmp_path}", "name=run"], env=environment)
    assert (done.code, done.stderr) == (0, "") and "page:" in done.stdout
    assert_same_run(tmp_path / "run", alone)


def test_a_stray_checkpoint_of_slurm_is_not_resumed_from(
    launcher: Launcher, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would look for it in the working folder."""
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes((alone / "checkpoints" / "last.safetensors").read_bytes())
    argv = [*RUN, f"output_dir={tmp_path}", "name=run"]
    done = launcher.run("train", argv, env={**SLURM, "SLURM_NTASKS": "1"}, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.parametrize("environment", [{}, *({name: value} for name, value in STRAY.items()), STRAY, SLURM])
def test_a_run_that_asks_for_one_has_one(environment: dict[str, str]) -> None:
    for devices in (1, "1", "auto", "-1"):
        assert place_of(asking(devices), environment) == Place()


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 2, launcher="lightning", starts=True)),
        ({"WORLD_SIZE": "7", "NODE_RANK": "1"}, Place(0, 2, launcher="lightning", starts=True)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Place(0, 2, launcher="lightning", starts=True)),  # a batch script
        (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}, Place(1, 2, 1, 0, "torchrun")),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, Place(0, 2, 0, 0, "torchrun")),
        (MEET | {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"}, Place(1, 2, 1, 0, "lightning")),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"},
            Place(1, 2, 1, 0, "srun"),
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
            Place(0, 2, launcher="lightning", starts=True),
        ),
    ],
)
def test_a_run_of_two_takes_its_place_from_who_started_it(environment: dict[str, str], place: Place) -> None:
    assert place_of(asking(2), environment) == place
    assert place.is_main == (place.rank == 0)


def test_places_on_several_machines() -> None:
    of_torchrun = {**MEET, "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
    assert place_of(asking(2, 2), of_torchrun) == Place(3, 4, 1, 1, "torchrun")
    of_slurm = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    assert place_of(asking(2, 2), of_slurm) == Place(2, 4, 0, 1, "srun")
    by_hand = {**MEET, "WORLD_SIZE": "4", "LOCAL_RANK": "1", "NODE_RANK": "1"}
    assert place_of(asking(2, 2), by_hand) == Place(3, 4, 1, 1, "lightning")


@pytest.mark.parametrize(
    ("trainer", "environment", "named"),
    [
        (asking(2), {"RANK": "1"}, "RANK=1"),
        (asking(2), {"LOCAL_RANK": "0"}, "LOCAL_RANK=0"),
        (asking(2), {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        (asking(2), MEET | {"RANK": "x", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "RANK"),
        (asking(2), TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, "torchrun started 4"),
        (asking(2), TORCHRUN | {"RANK": "1", "LOCAL_RANK": "7"}, "number 7"),
        (asking(2), SLURM, "srun started 3"),
        (asking(1, 2), {}, "torchrun or srun"),
        (asking(0), {}, "trainer.devices: '0'"),
        (asking("all"), {}, "trainer.devices: 'all'"),
        (asking("7,"), {}, "trainer.devices: '7,'"),
    ],
)
def test_what_contradicts_itself_is_one_line(trainer: Flags, environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        place_of(trainer, environment)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_contradiction_stops_the_run_before_anything_is_written(launcher: Launcher, tmp_path: Path) -> None:
    argv = [*RUN, "trainer.devices=2", "trainer.strategy=ddp", f"output_dir={tmp_path / 'out'}"]
    done = launcher.run("train", argv, env={"RANK": "1"})
    assert done.code == 2 and len(done.stderr.splitlines()) == 1 and "RANK=1" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_rank_holds_says_what_ranks_need() -> None:
    assert hint_of_ranks(Place(), STRAY) != "" and hint_of_ranks(Place(), {}) == ""
    assert "trainer.devices=3" in hint_of_ranks(Place(), SLURM) and hint_of_ranks(Place(0, 3), SLURM) == ""
    assert ranks_from_outside(SLURM | TORCHRUN | {"RANK": "0"}) == {"torchrun": 2, "srun": 3}


def test_lightning_is_told_the_place_and_reads_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STRAY | MEET).items():
        monkeypatch.setenv(name, value)
    own = KnownRanks(Place(0, 2, launcher="lightning", starts=True))
    assert (own.main_address, own.node_rank(), own.local_rank()) == ("127.0.0.1", 0, 0) and own.main_port > 1
    assert not own.creates_processes_externally and (own.global_rank(), own.world_size()) == (0, 2)
    assert KnownRanks(Place(1, 2, 1, 0, "torchrun")).main_address == MEET["MASTER_ADDR"]
    for name in MEET:
        monkeypatch.delenv(name)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    slurm = KnownRanks(Place(1, 3, 1, 0, "srun"))
    assert (slurm.main_address, slurm.main_port) == ("no-such-host-1", 15000 + 2345)
    assert rank() == 0 and num_devices(asking("2")) == 2
