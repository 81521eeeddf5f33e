"""The benchmark of GPUs runs through on a CPU at its tiny size: every part, every row, the file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ima.cli.bench import main
from ima.cli.bench.gpu import GOALS


@pytest.mark.processes
def test_every_part_runs_at_the_tiny_size_and_writes_its_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gpu", "--size", "tiny", "--rounds", "1"]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "outputs/bench/gpu.json").read_text())
    assert {name for name in GOALS if not name.startswith("memory")} <= found["ratios"].keys()
    for name, values in found["ratios"].items():
        assert math.isfinite(values["ratio"]) and values["ratio"] > 0 and name in said
        assert all(seconds > 0 for seconds in values["seconds"].values())
    assert all(found["ratios"][name]["flops"] > 1 for name in found["ratios"] if name.startswith("skip "))
    assert found["facts"]["tflops_of_products"] > 0 and found["facts"]["device"]


@pytest.mark.parametrize(("argv", "wrong"), [
    (["gpu", "--size", "70b"], "error: --size: '70b' is not one of 7b, 1b, tiny"),
    (["skip", "--size", "tiny"], "error: --size: bench skip takes the models of this project; it is for bench gpu"),
])  # fmt: skip
def test_a_size_that_is_not_there_is_one_line(argv: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.strip() == wrong
