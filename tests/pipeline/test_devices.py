"""Where a run computes, in which numbers and how exactly, as a machine with GPUs would be asked; no GPU is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import NOISE, config_of

import ima
import ima.__main__
from ima.cli.scripts import run_script
from ima.config.instantiation import flags_of
from ima.config.settings import Flags
from ima.core.distributed import Place, num_devices
from ima.core.errors import UserError, memory_line
from ima.models.llm import load
from ima.pipeline.api import runs
from ima.pipeline.assemble import assemble, device_of
from ima.pipeline.fit import trainer_of

RUN = Path(__file__).resolve().parents[1] / "artefacts" / "run"


def gpus(patch: pytest.MonkeyPatch, num: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: num > 0)
    patch.setattr(torch.cuda, "device_count", lambda: num)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.parametrize("num", [0, 1, 2])
@pytest.mark.parametrize("devices", [0, "0", -2, "7,", "0,7", "[3]", "0,0", "all", "", ",", "1.5", 9])
def test_devices_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch, devices: Any, num: int) -> None:
    gpus(monkeypatch, num)
    if num == 0 and devices == 9:
        assert num_devices(Flags(devices=devices)) == 9  # processes on the CPU
        return
    with pytest.raises(UserError, match="^trainer.devices: ") as refused:
        num_devices(Flags(devices=devices))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("devices", "places"),
    [(1, [0]), (2, [0, 1]), ("auto", [0, 1, 2]), (-1, [0, 1, 2]), ("2,", [2]), ("0,2", [0, 2]), ("[1]", [1])],
)
def test_each_rank_computes_on_the_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, devices: Any, places: list[int]
) -> None:
    gpus(monkeypatch, 3)
    training = Flags(devices=devices)
    assert num_devices(training) == len(places)
    assert [device_of(training, rank) for rank in range(len(places))] == [torch.device("cuda", n) for n in places]


@pytest.mark.parametrize(
    ("accelerator", "num", "dtype"),
    [("cpu", 0, "float32"), ("cpu", 1, "float32"), ("auto", 0, "float32"), ("auto", 1, "bfloat16"),
     ("gpu", 1, "bfloat16")],
)  # fmt: skip
def test_dtype_auto_follows_the_device_that_the_run_uses(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, num: int, dtype: str
) -> None:
    gpus(monkeypatch, num)
    monkeypatch.setattr(load, "bf16_gain", lambda: 1.0)
    config = config_of(*NOISE, "llm.dtype=auto", f"trainer.accelerator={accelerator}")
    assert str(assemble(config).llm.dtype) == f"torch.{dtype}"
    assert load.GOING_TO.get() is None
    monkeypatch.setattr(load, "bf16_gain", lambda: 3.0)
    assert assemble(config).llm.dtype == torch.bfloat16


def test_a_model_for_a_notebook_has_the_dtype_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    result = json.loads((RUN / "result.json").read_text())
    result["config"]["llm"]["dtype"], result["facts"]["llm_dtype"] = "auto", "float32"
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(load, "bf16_gain", lambda: 3.0)
    made = []
    monkeypatch.setattr(runs, "assemble", lambda config: made.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ima.load_run(tmp_path / "run").load_model()
    assert made[0]["llm"]["dtype"] == "float32"


@pytest.mark.parametrize(("asked", "found"), [("null", True), ("true", True), ("false", False)])
def test_kernels_are_exact_on_the_cpu_unless_the_user_says_otherwise(tmp_path: Path, asked: str, found: bool) -> None:
    config = config_of(*NOISE, f"trainer.deterministic={asked}")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(False)
        trainer_of(config, SimpleNamespace(flags=flags_of(config), alignment=None), Place(), tmp_path, [])  # type: ignore[arg-type]
        assert torch.are_deterministic_algorithms_enabled() is found
    finally:
        torch.use_deterministic_algorithms(before)


FULL: list[tuple[BaseException, str | None]] = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "the accelerator is out of memory"),
    (torch.AcceleratorError("CUDA error: out of memory"), "the accelerator is out of memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "the accelerator is out of"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "this machine is"),
    (MemoryError(), "this machine is out of memory"),
    (RuntimeError("the plug was pulled"), None),
    (ValueError("out of memory"), None),
]


@pytest.mark.parametrize(("error", "line"), FULL, ids=lambda value: type(value).__name__)
def test_no_memory_left_is_one_line_of_every_command(
    error: BaseException, line: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    def masks() -> int:
        with monkeypatch.context() as patch:
            patch.setattr("ima.cli.masks.main", fail)
            return ima.__main__.main(["masks"])

    for command in (lambda: run_script("train", NOISE, entry=fail), masks):
        if line is None:
            with pytest.raises(type(error)):
                command()
        else:
            assert command() == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: {line}") and said.count("\n") == 1
    assert (memory_line(error) is None) is (line is None)
