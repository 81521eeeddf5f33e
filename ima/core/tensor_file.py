"""Tensors on disk: one safetensors file, whole or not at all, and a fingerprint of a module's weights."""

from __future__ import annotations

import errno
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from ima.core.files import replace_atomic


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises UserError where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # its own kind even for a full disk
            if "os error 28" not in str(error):
                raise
            raise OSError(errno.ENOSPC, str(error)) from error

    replace_atomic(path, write)


def weight_sum(module: nn.Module, without: Collection[str] = ()) -> str:
    """A fingerprint of all parameters and buffers, bit for bit, that is cheap on any device: 64-bit sums of the raw
    bits, plain and weighted by position. `without`: names that are left out."""
    plain, weighted = 0, 0
    for name, tensor in module.state_dict().items():
        if name in without:
            continue
        bits = tensor.detach().contiguous().flatten().view(torch.uint8)
        bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 4)).view(torch.int32).long()
        plain += int(bits.sum())
        weighted += int((bits * (torch.arange(bits.numel(), device=bits.device) % 65521 + 1)).sum())
    return f"{plain & (2**64 - 1):016x}{weighted & (2**64 - 1):016x}"
