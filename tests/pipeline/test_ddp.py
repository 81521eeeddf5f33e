"""Two processes are one: same curve, same rows, same metrics, nothing counted twice, one of them writes."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import pytest
import torch
from launcher import Launcher
from safetensors.torch import load_file
from test_training import NOISE, rows_of

from ima.runs.record import read_result
from ima.runs.results import read_rows

# 21 samples in batches of 6: the last batch of an epoch is 2 samples of one rank and 1 of the other, which are
# passes of one sample and one without; val, T0 and T1 have 7 samples, 4 and 3 of them a rank.
RUN = [*NOISE, "trainer.max_epochs=2", "trainer.accumulate_grad_batches=3", "data.num_train=21", "data.num_test=7",
       "loader.eval_batch_size=3", "callbacks.checkpoint.every_num_steps=3"]  # fmt: skip
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def alone(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("alone")
    done = launcher.run("train", [*RUN, f"output_dir={outputs}", "name=run"])
    assert done.code == 0, done.stderr
    return outputs / "run"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def two_ranks(launcher: Launcher, argv: list[str], die: str | None = None, call: int = 1) -> list[int]:
    """As torchrun starts them; both are killed when the first is."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
              "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}  # fmt: skip
    ranks = [
        launcher.start("train", argv, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, die=die, call=call)
        for rank in (0, 1)
    ]
    first = ranks[0].wait()
    if first != 0:
        ranks[1].kill()
    codes = [first, ranks[1].wait()]
    if die is None:
        assert codes == [0, 0], "\n".join(rank.err.read_text() for rank in ranks)
        assert ranks[1].out.read_text() == "", "only the first rank speaks"
    return codes


def assert_equal_up_to_rounding(folder: Path, alone: Path) -> None:
    found, expected = rows_of(folder), rows_of(alone)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        for one, two in zip(found[key], values, strict=True):
            assert one == (pytest.approx(two, rel=1e-5, abs=1e-5) if isinstance(two, float) else two), key
    metrics, others = read_result(folder)["metrics"], read_result(alone)["metrics"]
    assert metrics.keys() == others.keys()
    for name, value in others.items():
        if name != "alignment/dump_bytes":  # counts padding, which depends on who shares a batch
            assert metrics[name] == (value if value is None else pytest.approx(value, rel=1e-5, abs=1e-5)), name
    weights, theirs = (load_file(path / "adapter.safetensors") for path in (folder, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5)
    assert (folder / "predictions.jsonl").read_bytes() == (alone / "predictions.jsonl").read_bytes()


def test_two_ranks_give_the_rows_metrics_and_weights_of_one(launcher: Launcher, alone: Path, tmp_path: Path) -> None:
    two_ranks(launcher, [*RUN, *TWO, f"output_dir={tmp_path}", "name=run"])
    assert_equal_up_to_rounding(tmp_path / "run", alone)
    counted = {row["n"] for row in read_rows(tmp_path / "run" / "rows.jsonl") if row["track"] and row["epoch"] == 2}
    assert counted == {7}
    shown = Counter((tmp_path / "run" / "predictions.jsonl").read_text().splitlines())
    assert len(shown) == 21 and max(shown.values()) == 1


def test_two_ranks_killed_in_an_epoch_resume_together(launcher: Launcher, alone: Path, tmp_path: Path) -> None:
    argv = [*RUN, *TWO, f"output_dir={tmp_path}", "name=run"]
    assert two_ranks(launcher, argv, die="ima.pipeline.callbacks.StepRecorder.on_train_batch_end", call=6) == [-9, -9]
    two_ranks(launcher, argv)
    assert_equal_up_to_rounding(tmp_path / "run", alone)


def test_a_rank_without_samples_of_its_own_waits_for_nobody(launcher: Launcher, tmp_path: Path) -> None:
    """One sample to measure, two ranks."""
    argv = [*RUN, f"output_dir={tmp_path}", "data.num_test=1", "trainer.max_epochs=1"]
    done = launcher.run("train", [*argv, "name=one"])
    assert done.code == 0, done.stderr
    two_ranks(launcher, [*argv, *TWO, "name=two"])
    assert_equal_up_to_rounding(tmp_path / "two", tmp_path / "one")


@pytest.mark.processes
def test_lightning_starts_the_second_process_by_itself(launcher: Launcher, alone: Path, tmp_path: Path) -> None:
    done = launcher.run("train", [*RUN, *TWO, f"output_dir={tmp_path}", "name=run"])
    assert done.code == 0, done.stderr
    assert done.stdout.count("page:") == 1
    assert_equal_up_to_rounding(tmp_path / "run", alone)
