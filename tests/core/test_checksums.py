"""What was written is what is read: a flipped bit anywhere in a mask, an adapter or a checkpoint is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ima.core.errors import UserError
from ima.interventions.prune.mask import Mask
from ima.models.encoders.base import Encoder, exact_convolutions
from ima.pipeline.checkpoint import load_adapter, load_checkpoint, save_adapter, save_checkpoint


def mask_file(folder: Path) -> Path:
    kept = np.random.default_rng(0).random((16, 24)) < 0.5
    Mask.of({"model.layers.0.mlp.up_proj": kept}, {"sparsity": 0.5, "llm": "tiny"}).save(folder / "m.safetensors")
    return folder / "m.safetensors"


def adapter_file(folder: Path) -> Path:
    save_adapter(folder, nn.Linear(4, 3), {})
    return folder / "adapter.safetensors"


def checkpoint_file(folder: Path) -> Path:
    save_checkpoint({"state": torch.arange(12.0), "step": 3, "flag": torch.tensor(True)}, folder / "last.safetensors")
    return folder / "last.safetensors"


CASES: dict[str, tuple[Any, Any]] = {
    "mask": (mask_file, Mask.load),
    "adapter": (adapter_file, lambda path: load_adapter(path, nn.Linear(4, 3))),
    "checkpoint": (checkpoint_file, load_checkpoint),
}


@pytest.mark.parametrize("case", CASES)
def test_every_flipped_bit_is_one_line(tmp_path: Path, case: str) -> None:
    write, read = CASES[case]
    path = write(tmp_path)
    read(path)
    raw = path.read_bytes()
    generator = np.random.default_rng(1)
    places = {len(raw) - 1, *generator.integers(0, len(raw), 150).tolist()}
    padding = raw[8 : 8 + int.from_bytes(raw[:8], "little")].rstrip(b" ")
    for place in sorted(places - set(range(8 + len(padding), 8 + int.from_bytes(raw[:8], "little")))):
        for bit in generator.permutation(8)[:2].tolist():
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :])
            try:
                read(path)
            except UserError as error:
                assert "\n" not in str(error)
            else:
                raise AssertionError(f"bit {bit} of byte {place}: {raw[place - 20 : place + 20]!r}")


def test_an_adapter_with_numbers_that_are_none_is_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        adapter = nn.Linear(4, 3)
        with torch.no_grad():
            adapter.weight[0, 1] = value
        save_adapter(tmp_path, adapter, {})
        with pytest.raises(UserError, match="1 of 12 numbers of weight are NaN or infinite"):
            load_adapter(tmp_path / "adapter.safetensors", nn.Linear(4, 3))


def test_convolutions_of_an_encoder_run_without_tf32_and_the_setting_comes_back() -> None:
    seen = []

    class Watching(Encoder):
        def encode(self, x_B: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return x_B[:, None]

    before = torch.backends.cudnn.allow_tf32
    try:
        for setting in (True, False):
            torch.backends.cudnn.allow_tf32 = setting
            Watching()(torch.zeros(1, 2))
            assert torch.backends.cudnn.allow_tf32 is setting
            with pytest.raises(RuntimeError), exact_convolutions():
                raise RuntimeError
            assert torch.backends.cudnn.allow_tf32 is setting
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert seen == [False, False]
