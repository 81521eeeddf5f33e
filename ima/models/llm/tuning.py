"""What of the LLM is trained: nothing, LoRA (arXiv 2106.09685, by peft) or all of it.

Hides peft and how trained weights are saved, loaded and merged. Beside this the rest of the project does not care:
the modules keep their names, hooks see what they always see.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.models.encoders.base import seeded
from ima.models.llm.lora import fuse
from ima.models.llm.sites import block_list

Train = Literal["none", "lora", "all"]


def make_trainable(model: Any, train: Train, rank: int, alpha: float, seed: int) -> None:
    """Switch on the gradients of what is trained; LoRA stands at every linear map of the blocks and starts at zero."""
    model.requires_grad_(train == "all")
    if train != "lora":
        return
    if rank < 1:
        raise UserError(f"llm.lora_rank: {rank} is too small; at least 1")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("llm.train: lora needs the package peft; pip install 'ima[train]'") from error

    blocks = block_list(model)
    names = {name for name, module in blocks[0].named_modules() if isinstance(module, nn.Linear)}
    targets = sorted({name.split(".")[-1] for name in names})
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)  # type: ignore[arg-type]
    with seeded(seed):
        inject_adapter_in_model(config, blocks)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:  # bf16 would lose small steps
            parameter.data = parameter.data.float()
    fuse(model)


def merge_lora(model: nn.Module) -> None:
    """LoRA added into the weights and taken out as modules: a stock model again."""
    from peft.tuners.lora import LoraLayer

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in found:
        module.merge()
        base = module.get_base_layer()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    model.requires_grad_(False)


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name; tied ones once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def trained_names(module: nn.Module) -> set[str]:
    """The same as names of the state: tied parameters by all their names."""
    places = {parameter.data_ptr() for parameter in trained_tensors(module).values()}
    return {name for name, value in module.state_dict().items() if value.data_ptr() in places}


@torch.no_grad()
def load_tensors(module: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Raises UserError where they are not exactly what this module trains."""
    own = trained_tensors(module)
    for name in sorted(own.keys() ^ tensors.keys()):
        side = "lacks" if name in own else "has an unexpected"
        raise UserError(f"{where}: {side} weight {name!r} of the LLM; is llm.train that of the run?")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise UserError(f"{where}: {name} is {tuple(value.shape)}, this LLM needs {tuple(own[name].shape)}")
        own[name].copy_(value)


def weight_sum(module: nn.Module, without: Collection[str] = ()) -> str:
    """A fingerprint of all parameters and buffers, bit for bit, that is cheap on any device: 64-bit sums of the raw
    bits, plain and weighted by position. `without`: names that are left out."""
    plain, weighted = 0, 0
    for name, tensor in module.state_dict().items():
        if name not in without:
            sums = bit_sums(tensor)
            plain, weighted = plain + sums[0], weighted + sums[1]
    return f"{plain & (2**64 - 1):016x}{weighted & (2**64 - 1):016x}"


@torch.no_grad()
def bit_sums(tensor: Tensor) -> tuple[int, int]:
    """64-bit sums of a tensor's raw bits, plain and weighted by position: whole numbers, which no device rounds."""
    bits = tensor.detach().contiguous().flatten().view(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 4)).view(torch.int32).long()
    places = torch.arange(bits.numel(), device=bits.device) % 65521 + 1
    return int(bits.sum()), int((bits * places).sum())
