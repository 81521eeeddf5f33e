"""Weights put to zero in place and given back bit for bit; the one place that writes into a frozen LLM.

Only the pruned values are kept aside. The writes are ordinary in-place operations, so that packed copies of the weights
(`ima.models.llm.acceleration.blocks`) notice and are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.interventions.prune.mask import Bits, Mask
from ima.interventions.prune.scores import linears_of, rounded_id, weights_id
from ima.interventions.prune.select import pack, unpack
from ima.models.llm.frozen import FrozenLLM


@contextmanager
def pruned(linears: Mapping[str, nn.Linear], kept: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, weights that are not kept are zero. What stood there is kept aside, and nothing else."""
    with ExitStack() as stack:
        for path, linear in linears.items():
            stack.callback(restore, linear, pack(kept[path]), zero(linear.weight, ~kept[path]))
        yield


@contextmanager
def replaced(linears: Mapping[str, nn.Linear], weight_of: Callable[[str], Tensor]) -> Iterator[None]:
    """While open, the maps have these weights (out, in). Their own are kept aside, whole."""
    with ExitStack() as stack:
        for path, linear in linears.items():
            own = linear.weight.detach().clone()
            stack.callback(put, linear, own)
            put(linear, weight_of(path))
        yield


@torch.no_grad()
def put(linear: nn.Linear, weight_OI: Tensor) -> None:
    """Into the weight that the map has now: in the meantime it may have gone to another device."""
    linear.weight.copy_(weight_OI)


def out_of(weight_OI: Tensor, bits: Bits) -> Tensor:
    """bool (out, in): what the packed bits do not keep."""
    return ~unpack(bits, tuple(weight_OI.shape), weight_OI.device)


@torch.no_grad()
def zero(weight_OI: Tensor, out_OI: Tensor) -> Tensor:
    """Returns the values that stood there."""
    values = torch.masked_select(weight_OI.detach(), out_OI)
    weight_OI.masked_fill_(out_OI, 0)
    return values


@torch.no_grad()
def restore(linear: nn.Linear, bits: Bits, values: Tensor) -> None:
    """Into the weight that the map has now: in the meantime it may have gone to another device or been replaced."""
    weight_OI = linear.weight
    weight_OI.masked_scatter_(out_of(weight_OI, bits), values.to(weight_OI.device, weight_OI.dtype))


def check_fit(llm: FrozenLLM, mask: Mask, name: str, any_weights: bool = False) -> dict[str, nn.Linear]:
    """The linear maps that the mask is about. Raises UserError where it is not made for this LLM."""
    linears = linears_of(llm)
    made_for = mask.facts.get("llm", "another LLM")
    for path in (*linears, *mask.shapes):
        own = tuple(linears[path].weight.shape) if path in linears else "no such matrix"
        theirs = mask.shapes.get(path, "no such matrix")
        if own != theirs:
            raise UserError(
                f"{name}: made for {made_for}, does not fit {llm.name}: {path} is {theirs} there, {own} here"
            )
    if not any_weights and mask.facts.get("dtype") == str(llm.dtype).removeprefix("torch."):
        check_weights(llm, str(mask.facts.get("weights") or ""), f"{name}: made for {made_for}")
    return linears


def check_weights(llm: FrozenLLM, wanted: str, what: str) -> None:
    """Raises UserError where a mask was made for weights of another fingerprint ("": it does not say)."""
    new = wanted.startswith("bits:")
    if not wanted or wanted == (weights_id(llm) if new else rounded_id(llm)):
        return
    if new:
        raise UserError(f"{what} with other weights than {llm.name} has; make it for this one, or set any_weights=true")
    raise UserError(
        f"{what} before fingerprints were the same on every device: whether {llm.name} has its weights cannot be told "
        "here; make it again, or set any_weights=true if you know that they are the same"
    )


@contextmanager
def masked(llm: FrozenLLM, mask: Mask, name: str = "mask", any_weights: bool = False) -> Iterator[None]:
    """The LLM under a mask; left, also by an exception, it is bit for bit what it was."""
    linears = check_fit(llm, mask, name, any_weights)
    if mask.values:
        if any_weights:
            raise UserError(f"{name}: holds new values of the weights it was made for; any_weights=true is not for it")
        with replaced(linears, lambda path: new_weight(linears[path], mask, path)):
            yield
        return
    with ExitStack() as stack:
        for path, linear in linears.items():
            bits = mask.bits[path]
            stack.callback(restore, linear, bits, zero(linear.weight, out_of(linear.weight, bits)))
        yield


def new_weight(linear: nn.Linear, mask: Mask, path: str) -> Tensor:
    """(out, in): the values that the mask's file gives to the weights it keeps, zero elsewhere."""
    kept_OI = unpack(mask.bits[path], mask.shapes[path], linear.weight.device)
    values = torch.from_numpy(np.array(mask.values[path])).view(getattr(torch, mask.facts["dtype"]))
    return torch.zeros_like(linear.weight.detach()).masked_scatter_(
        kept_OI, values.to(kept_OI.device, linear.weight.dtype)
    )
