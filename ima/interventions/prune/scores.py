"""How much each weight matters: magnitude |W|, Wanda |W| * |x| per input feature, or nothing but chance.

Scores are fp32, (out, in), never negative, whatever the model's dtype. Here is also which matrices are pruned: the
linear maps inside the blocks, by module path, so that fused ones (qkv, gate and up) need no table.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.tuning import bit_sums


def linears_of(llm: FrozenLLM) -> dict[str, nn.Linear]:
    """Module path (inside `llm.model`) -> linear map, in the order of the blocks."""
    inside = {id(module) for block in llm.table.blocks for module in block.modules()}
    return {
        path: module
        for path, module in llm.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    }


def magnitude(linear: nn.Linear) -> Tensor:
    return linear.weight.detach().float().abs()


def wanda(linear: nn.Linear, norm_I: Tensor) -> Tensor:
    """norm_I: L2 norm of each input feature over the calibration tokens."""
    return magnitude(linear) * norm_I.to(linear.weight.device, torch.float32)


def chance(linear: nn.Linear, path: str, seed: int) -> Tensor:
    """Keyed by (seed, path): the same whatever else is drawn."""
    digest = hashlib.blake2b(f"{seed}|{path}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.rand(linear.weight.shape, generator=generator).to(linear.weight.device)


def weights_id(llm: FrozenLLM) -> str:
    """Fingerprint of the matrices that a mask is about: changes with any bit of them and is the same on every device.
    Costs a pass over their bytes."""
    digest = hashlib.sha256()
    for path, linear in linears_of(llm).items():
        digest.update(f"{path}{tuple(linear.weight.shape)}{bit_sums(linear.weight)}".encode())
    return f"bits:{digest.hexdigest()[:16]}"


@torch.no_grad()
def rounded_id(llm: FrozenLLM) -> str:
    """The fingerprint in masks of before: sums of floats, whose rounding depends on the device and its libraries."""
    digest = hashlib.sha256()
    for path, linear in linears_of(llm).items():
        weight = linear.weight.detach()
        turn = torch.arange(1, weight.shape[1] + 1, device=weight.device, dtype=torch.float32)
        marks = torch.stack([weight.float().sum(1), weight.float() @ turn]).double().sum(1)
        digest.update(f"{path}{tuple(weight.shape)}{marks.tolist()}".encode())
    return digest.hexdigest()[:16]


def model_facts(llm: FrozenLLM, node: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a mask must know of its model. node: the config that loads it again."""
    facts = {"llm": llm.name, "dtype": str(llm.dtype).removeprefix("torch."), "weights": weights_id(llm)}
    return facts | ({"llm_node": node} if node is not None else {})
