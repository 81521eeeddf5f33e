"""What interventions on whole blocks share: which blocks, which tokens, and hooks that leave no trace.

Hides whether a family hands its states by position or by name, and that a shadowed `forward` is put back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Role

Phase = Literal["prefill", "decode", "both"]
DECODED = (Role.ANSWER, Role.GENERATED)  # tokens that decoding makes, also where a teacher-forced pass is given them

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def which_blocks(
    num_blocks: int, start: int, stop: int | None = None, every: int = 1, listed: Sequence[int] | None = None
) -> list[int]:
    """start <= b < stop (None: to the end) with (b - start) % every == 0, or those listed. Raises UserError where they
    do not fit a model of `num_blocks`."""
    if listed is not None:
        wrong = [block for block in listed if not 0 <= block < num_blocks]
        if wrong or not listed:
            raise UserError(f"blocks: {list(listed)} must name blocks 0 to {num_blocks - 1}")
        return sorted(set(listed))
    end = num_blocks if stop is None else stop
    if not 0 <= start < end <= num_blocks:
        raise UserError(f"start: blocks start={start} stop={end} must satisfy 0 <= start < stop <= {num_blocks}")
    return list(range(start, end, every))


def of_phase(roles_BS: Tensor, phase: Phase) -> Tensor:
    """(B, S): the tokens of the prompt, those that decoding makes, or all."""
    if phase == "both":
        return torch.ones_like(roles_BS, dtype=torch.bool)
    decoded_BS = torch.isin(roles_BS, torch.tensor([int(role) for role in DECODED], device=roles_BS.device))
    return decoded_BS if phase == "decode" else ~decoded_BS


def states_of(args: Args, kwargs: Kwargs) -> Tensor:
    """hidden_states of a block's or module's call."""
    x: Tensor = args[0] if args else kwargs["hidden_states"]
    return x


def with_states(args: Args, kwargs: Kwargs, x: Tensor) -> tuple[Args, Kwargs]:
    return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})


def before(stack: ExitStack, module: nn.Module, change: Callable[[Args, Kwargs], tuple[Args, Kwargs] | None]) -> None:
    """Until `stack` is closed, `change` sees, and may replace, the arguments of every call of the module."""
    handle = module.register_forward_pre_hook(lambda _module, args, kwargs: change(args, kwargs), with_kwargs=True)
    stack.callback(handle.remove)


def after(stack: ExitStack, module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Until `stack` is closed, `change` sees, and may replace, what the module gives (None: as it is)."""
    stack.callback(module.register_forward_hook(lambda _module, _args, output: change(output)).remove)


def shadow(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """`forward` stands in for the module's own until `stack` is closed; hooks on the module still run."""
    earlier = vars(module).get("forward")

    def restore() -> None:
        vars(module).pop("forward", None)
        if earlier is not None:
            vars(module)["forward"] = earlier

    stack.callback(restore)
    vars(module)["forward"] = forward


def described(kind: str, values: Mapping[str, Any], note: str = "") -> dict[str, Any]:
    """An intervention's settings as plain data for result.json."""
    plain = {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
    }
    return {"kind": kind} | plain | ({"note": note} if note else {})
