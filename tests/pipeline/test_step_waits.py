"""A training step asks the device for nothing, and compiled blocks train as stock ones do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from ima.config.compose import compose
from ima.core.types import Role
from ima.models.llm import compiled
from ima.models.llm.compiled import CompiledBlocks
from ima.pipeline import callbacks, fit, lightning_module, prepare
from ima.pipeline.fit import train
from ima.pipeline.parts import Parts
from ima.runs.results import read_rows

TINY = ["llm=tiny", "data=shapes", "data.num_train=18", "data.num_test=6", "encoder=noise", "encoder.dim=8",
        "encoder.num_tokens=4", "adapter.hidden=16", "trainer.accelerator=cpu", "loader.batch_size=6", "logger=none",
        "task.max_new_tokens=4", "trainer.max_epochs=2", "alignment=none", "evaluation.num_generated=2"]  # fmt: skip
# Operations whose result, or its size, the host has to know.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique2", "_unique2", "item")


class Watch(TorchDispatchMode):
    """Notes operations that make the host wait for a GPU. Indexing by a mask is one: its size is in the values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in WAITS or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Watched(Callback):
    """Watches every step from its batch to the next one."""

    def __init__(self) -> None:
        self.watch, self.stack = Watch(), ExitStack()
        self.num = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > 0:  # once an epoch gradients are looked for, which is of the host alone
            self.stack.enter_context(self.watch)
            self.num += 1

    def on_train_batch_end(self, *_: Any) -> None:
        self.stack.close()


def config_of(*argv: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(compose([*TINY, *argv]))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """On a CPU values are read freely; here as little as on a GPU."""
    watched, made = Watched(), fit.trainer_of
    for module in (callbacks, lightning_module):
        monkeypatch.setattr(module, "may_wait", lambda device, step: False)

    def trainer_of(config: Any, parts: Any, place: Any, folder: Any, mine: list[Any]) -> Any:
        return made(config, parts, place, folder, [watched, *mine])

    monkeypatch.setattr(fit, "trainer_of", trainer_of)
    monkeypatch.setattr(torch.Tensor, "tolist", noted(watched.watch, torch.Tensor.tolist))
    return watched


def noted(watch: Watch, tolist: Any) -> Any:
    def call(self: torch.Tensor) -> Any:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is watch:
            watch.found.append("tolist")
        return tolist(self)

    return call


@pytest.mark.parametrize("layout", ["in front", "anywhere"])
def test_no_step_of_a_training_waits_for_the_device(
    layout: str, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiling(parts: Parts, training: bool) -> Any:
        blocks: Any = CompiledBlocks(parts.llm)
        blocks.reason = "not here: a watch would stop the compiler"
        return blocks

    monkeypatch.setattr(fit, "fast", compiling)
    if layout == "anywhere":
        monkeypatch.setattr("ima.models.splice.is_front", lambda *_: False)
    train(config_of("trainer.enable_checkpointing=false"), tmp_path / "run", "")
    assert watched.num >= 4 and watched.watch.found == []


def test_the_watch_sees_what_waits() -> None:
    watch, x = Watch(), torch.arange(4.0)
    with watch:
        for wait in (lambda: float(x[0]), lambda: x[x > 1], lambda: x.nonzero(), lambda: bool((x > 1).all())):
            before = len(watch.found)
            wait()
            assert len(watch.found) > before
        before = len(watch.found)
        torch.nonzero_static(x, size=3), x[torch.tensor([1, 2])], x.sum() / 3
    assert len(watch.found) == before


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CompiledBlocks]]:
    """Compiled without the code generator."""
    made: list[CompiledBlocks] = []

    def blocks(llm: Any, budget: float) -> CompiledBlocks:
        made.append(CompiledBlocks(llm, budget, backend="aot_eager"))
        return made[-1]

    monkeypatch.setattr(prepare, "CompiledBlocks", blocks)
    yield made
    compiled.compiled.cache_clear()
    torch._dynamo.reset()


def test_a_training_on_compiled_blocks_is_that_on_stock_blocks(tmp_path: Path, quick: list[CompiledBlocks]) -> None:
    curves = {}
    for name in ("true", "false"):
        train(config_of(f"llm.compile={name}", "llm.fast=false", "alignment=default"), tmp_path / name, "")
        rows = list(read_rows(tmp_path / name / "rows.jsonl"))
        curves[name] = {
            (row["score"], row.get("step"), row.get("layer_a"), row.get("role_a"), row.get("variant")): row["value"]
            for row in rows
            if row["score"] in ("train_loss", "val_loss", "ima", "sim", "norm")
        }
    assert len(quick) == 1 and quick[0].reason == ""
    assert curves["true"].keys() == curves["false"].keys() and len(curves["true"]) > 30
    for key, value in curves["false"].items():
        assert curves["true"][key] == pytest.approx(value, rel=2e-5, abs=2e-5), key


def test_padding_to_a_bucket_is_padding() -> None:
    from ima.models.llm.load import tiny
    from ima.models.splice import longer

    llm = tiny()
    found = torch.randn(2, 9, llm.width), torch.full((2, 9), int(Role.PROMPT)), torch.full((2, 9), 7)
    x_BSD, roles_BS, labels_BS = longer(llm, found, 7)
    assert (
        x_BSD.shape == (2, 16, llm.width) and (roles_BS[:, 9:] == Role.PAD).all() and (labels_BS[:, 9:] == -100).all()
    )
