"""Reversible acceleration of a frozen Llama-type decoder when only the gradient of its input embeddings is wanted.

`with accelerate(model):` lets each stock block that is understood run as one autograd node (see `nodes`).
Modules keep their identity and nothing in them is changed: the block's `forward` is shadowed on the instance while the
context is open. Whenever a call needs more than that node gives (hooks inside the block, a cache, training mode, long
sequences, weights with gradients, another device ...) the stock forward runs, block by block. Hooks that only look
(`ima.models.llm.sites.Look`) are shown what the node computes. Positions that nobody may
attend to (padding) are computed once, not each: their states mean nothing, and no loss may rest on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from ima.models.llm.acceleration.nodes import SITES, FrozenBlock, Layout, Looks
from ima.models.llm.acceleration.self_check import self_check
from ima.models.llm.acceleration.weights import Stamp, Weights, block_shape, copied_bytes, stamp_of
from ima.models.llm.sites import Look, block_list
from ima.models.llm.watchers import HOOKS, OurForward, idle

log = logging.getLogger(__name__)

MAX_SCORE_BYTES = 64 * 2**20  # fp32 attention probabilities of one block; beyond, a fused kernel pays


def looks_of(layer: nn.Module) -> Looks | None:
    """Who only looks at sites inside the block; None where somebody changes or replaces something in there, or looks
    where the node has nothing to show."""
    if nn_module._has_any_global_hook():
        return None
    looks: Looks = {}
    for name, inner in layer.named_modules():
        if inner is layer:
            continue
        if "forward" in vars(inner):
            return None
        for kind in HOOKS:
            for hook in vars(inner)[kind].values():
                if isinstance(hook, Look) and (name, hook.side) in SITES:
                    looks.setdefault(SITES[name, hook.side], []).append(hook.see)
                elif not idle(hook):
                    return None
    return looks


class AcceleratedForward(OurForward):
    """The accelerated forward of one block and its weights as that wants them."""

    def __init__(self, layer: nn.Module, layouts: Layouts) -> None:
        self.layer = layer
        self.layouts = layouts
        self.shape = block_shape(layer)
        self.kind = (tuple(type(inner) for inner in layer.modules()), self.shape)
        self.stamp: Stamp | None = None
        self.weights: Weights | None = None

    def current(self) -> Weights | None:
        """Weights, made anew when the block's own have changed; None when the block is no longer of the kind."""
        stamp = stamp_of(self.layer)
        if stamp != self.stamp:
            self.stamp, self.weights = stamp, None
            try:
                self.shape = block_shape(self.layer)
                self.weights = Weights(self.layer, self.shape)
            except ValueError as reason:
                log.debug("block back to stock: %s", reason)
        return self.weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        looks = looks_of(self.layer) if self.fits(args, kwargs) else None
        if looks is not None and not (looks and args[0].requires_grad and torch.is_grad_enabled()):
            weights = self.current()
            if weights is not None:
                x_BSD = args[0]
                layout = self.layouts.of(x_BSD, kwargs.get("attention_mask"), kwargs["position_embeddings"])
                return FrozenBlock.apply(x_BSD, weights, layout, looks)
        return type(self.layer).forward(self.layer, *args, **kwargs)

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """This call asks for nothing but the block's output and values inside it."""
        if len(args) != 1 or kwargs.get("position_embeddings") is None or self.layer.training:
            return False
        x, mask = args[0], kwargs.get("attention_mask")
        allowed = ("attention_mask", "position_embeddings", "position_ids")
        if any(value is not None and value is not False for key, value in kwargs.items() if key not in allowed):
            return False
        attn: Any = self.layer.self_attn
        kind = attn.config._attn_implementation
        if kind not in ("sdpa", "eager") or x.dim() != 3 or x.device.type != "cpu":
            return False
        if x.dtype != attn.q_proj.weight.dtype:
            return False
        num_rows, length = x.shape[:2]
        if mask is None:
            if kind != "sdpa" or not getattr(attn, "is_causal", True):
                return False
        elif mask.dim() != 4 or mask.shape[1:] != (1, length, length):
            return False
        if num_rows * self.shape.num_kv * self.shape.group * length * length * 4 > MAX_SCORE_BYTES:
            return False
        if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return False
        return not any(p.requires_grad for p in self.layer.parameters())


class Layouts:
    """The layouts of the running pass: its blocks are handed the same rotation and one of at most a few masks."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor | None, int, tuple[Tensor, Tensor], torch.Size, Layout]] = []

    def forget(self) -> None:
        self._kept = []

    def of(self, x_BSD: Tensor, mask: Tensor | None, rotation: tuple[Tensor, Tensor]) -> Layout:
        version = 0 if mask is None else mask._version
        cos, sin = rotation
        for known_mask, known_version, known, size, layout in self._kept:
            unchanged = known_mask is mask and known_version == version and size == x_BSD.shape
            if unchanged and known[0] is cos and known[1] is sin:
                return layout
        layout = Layout(x_BSD, mask, cos, sin)
        same_pass = [kept for kept in self._kept if kept[2][0] is cos]
        self._kept = [*same_pass[-3:], (mask, version, rotation, x_BSD.shape, layout)]
        return layout


def unsupported_reason(forward: AcceleratedForward) -> str:
    """What the self-check found; empty when all is well."""
    try:
        self_check(forward.layer, forward.shape)
    except (ValueError, AttributeError, TypeError, RuntimeError) as reason:
        return str(reason)
    return ""


class Acceleration:
    """Context manager; may be entered again and again (copies of weights stay). `num_accelerated` blocks are
    accelerated, the others are stock; `reasons` says why. On leaving, also by an exception, the model is exactly what
    it was."""

    def __init__(self, model: Any, max_bytes: int = 2 * 2**30) -> None:
        self.reasons: dict[int, str] = {}
        self._forwards: dict[int, AcceleratedForward] = {}
        self._layouts = Layouts()
        self._entered: list[nn.Module] = []
        blocks = block_list(model)
        checked: dict[Any, str] = {}  # blocks of one kind compute the same: one of them is checked
        size = copied_bytes(blocks)
        for index, layer in enumerate(blocks):
            try:
                if size > max_bytes:
                    raise ValueError(f"copies of weights would take {size} bytes, more than {max_bytes}")
                forward = AcceleratedForward(layer, self._layouts)
                if any("forward" in vars(inner) for inner in layer.modules()):
                    raise ValueError("a forward was replaced already")
                if forward.kind not in checked:
                    checked[forward.kind] = unsupported_reason(forward)
                if checked[forward.kind]:
                    raise ValueError(checked[forward.kind])
                self._forwards[index] = forward
            except (ValueError, AttributeError) as reason:
                self.reasons[index] = str(reason)
                log.debug("block %d keeps its stock forward: %s", index, reason)
        self._layouts.forget()

    @property
    def num_accelerated(self) -> int:
        return len(self._forwards)

    def refresh(self) -> None:
        """Forget all copies of weights (after writes that autograd cannot see, such as through `.data`)."""
        for forward in self._forwards.values():
            forward.stamp = None

    def __enter__(self) -> Acceleration:
        assert not self._entered, "entered already"
        for forward in self._forwards.values():
            if "forward" not in vars(forward.layer):  # somebody else's replacement stays
                replacement: Callable[..., Any] = forward
                forward.layer.forward = replacement
                self._entered.append(forward.layer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._entered:
            vars(layer).pop("forward", None)
        self._entered = []
        self._layouts.forget()


def accelerate(model: Any, max_bytes: int = 2 * 2**30) -> Acceleration:
    """Acceleration of a frozen HF decoder in eval mode; not entered yet. `max_bytes`: the most memory that copies of
    block weights may take (fp32: twice their size; bf16: queries, keys and values), else everything stays stock."""
    return Acceleration(model, max_bytes)
