"""Is an accelerated block what it replaces? It and the stock block on the same random input, forward and backward.

Hidden here: that hooks of others do not fire meanwhile, and what counts as equal.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ima.models.llm.acceleration.nodes import FrozenBlock, Layout
from ima.models.llm.acceleration.weights import Shape, Weights
from ima.models.llm.watchers import HOOKS


@contextmanager
def without_hooks(layer: nn.Module) -> Iterator[None]:
    """A check must not show up in anybody's records."""
    kept = [(inner, name, vars(inner)[name]) for inner in layer.modules() for name in HOOKS]
    try:
        for inner, name, _ in kept:
            vars(inner)[name] = OrderedDict()
        yield
    finally:
        for inner, name, hooks in kept:
            vars(inner)[name] = hooks


def self_check(layer: Any, shape: Shape) -> None:
    """The accelerated block against its stock twin, in fp32 (tells another computation from rounding) and in its own
    dtype (tells a broken kernel). Raises ValueError when off."""
    with without_hooks(layer):
        compare(copy.deepcopy(layer).float(), shape, 1e-3)
        if layer.input_layernorm.weight.dtype != torch.float32:
            compare(layer, shape, 0.2)


def compare(layer: Any, shape: Shape, tolerance: float) -> None:
    """Output and input gradient on random input with padding; raises ValueError when relatively off by `tolerance`."""
    dtype, width = layer.input_layernorm.weight.dtype, layer.input_layernorm.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    x_BSD, grad_BSD = (torch.randn(2, 5, width, generator=generator).to(dtype) for _ in range(2))
    angle = torch.rand(2, 5, shape.width // 2, generator=generator).repeat(1, 1, 2) * 6
    rotation = (angle.cos().to(dtype), angle.sin().to(dtype))
    real_BS = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    seen = torch.ones(5, 5, dtype=torch.bool).tril()[None, None] & real_BS[:, None, None]
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    grad_BSD[~real_BS] = 0
    weights, layout = Weights(layer, shape), Layout(x_BSD, mask, *rotation)
    forward = type(layer).forward
    results = []
    for run in (
        lambda x: forward(layer, x, attention_mask=mask, position_embeddings=rotation),
        lambda x: FrozenBlock.apply(x, weights, layout, {}),
    ):
        x = x_BSD.clone().requires_grad_(True)
        with torch.enable_grad():
            y = run(x)
        results.append((y.detach()[real_BS].float(), torch.autograd.grad(y, x, grad_BSD)[0][real_BS].float()))
    for name, stock, ours in zip(("output", "gradient"), *results, strict=True):
        error = float((ours - stock).norm() / stock.norm())
        if not error <= tolerance:
            raise ValueError(f"{name} is {error:.1e} off the stock block's")
