"""Who looks into a module: hooks and replaced forwards, told apart from those that mean nothing.

What computes a block in another way (compiled, accelerated, decoded with a fixed cache) asks here first.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as nn_module

from ima.models.llm.lora import Fused

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


class OurForward:
    """Base of what may stand in for a block's `forward` and computes the same."""


def idle(hook: Any) -> bool:
    """transformers leaves its recording hooks in place for ever once attentions or states were asked for."""
    if getattr(hook, "__module__", "") != "transformers.utils.output_capturing":
        return False
    from transformers.utils.output_capturing import _active_collector

    return not set(_active_collector.get() or {}) - {"hidden_states", "_hidden_states_layers"}


def watched(module: nn.Module, itself: bool = False) -> bool:
    """Whether somebody looks at or changes what happens inside the module. itself: or at what goes in and comes out."""
    if nn_module._has_any_global_hook():
        return True
    for inner in module.modules():
        if inner is module and not itself:
            continue
        replaced = vars(inner).get("forward")
        if replaced is not None and not isinstance(replaced, Fused | OurForward):
            return True
        if any(not idle(hook) for kind in HOOKS for hook in vars(inner)[kind].values()):
            return True
    return False
