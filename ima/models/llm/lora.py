"""A linear map with LoRA beside it as one autograd node.

What peft computes (y = x W^T + b + s (x A^T) B^T) in the fewest products: the scale goes into B, sums are taken by the
products that follow them. A and B are kept in fp32, in which small steps are not lost, and multiplied in the dtype of
the LLM, as under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LoraMap(torch.autograd.Function):
    """y_NO of x_NI, with weight_OI and bias_O frozen; gradients go to x, a_RI and b_OR."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        a, b = a_RI.to(x_NI.dtype), (b_OR * scale).to(x_NI.dtype)
        u_NR = x_NI @ a.t()
        y_NO = nn.functional.linear(x_NI, weight_OI, bias_O).addmm_(u_NR, b.t())
        ctx.save_for_backward(x_NI, u_NR, weight_OI, a, b)
        ctx.scale, ctx.dtypes = scale, (a_RI.dtype, b_OR.dtype)
        return y_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_NI, u_NR, weight_OI, a, b = ctx.saved_tensors
        gu_NR = grad_NO @ b
        grad_a, grad_b = gu_NR.t() @ x_NI, (grad_NO.t() @ u_NR).to(ctx.dtypes[1]).mul_(ctx.scale)
        grad_x = (grad_NO @ weight_OI).addmm_(gu_NR, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a.to(ctx.dtypes[0]), grad_b, None


class Fused:
    """The forward of one LoRA layer of peft; whatever it does not understand goes to peft's own."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer
        if args or kwargs or not self.fits(x):
            return type(layer).forward(layer, x, *args, **kwargs)
        (name,) = layer.active_adapters
        base, a, b = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
        y_NO = LoraMap.apply(x.flatten(0, -2), base.weight, base.bias, a.weight, b.weight, layer.scaling[name])
        return y_NO.unflatten(0, x.shape[:-1])

    def fits(self, x: Tensor) -> bool:
        layer, names = self.layer, self.layer.active_adapters
        if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
            return False
        (name,) = names
        inner = (layer.base_layer, layer.lora_A[name], layer.lora_B[name])
        if any(type(part) is not nn.Linear or part._forward_hooks or part._forward_pre_hooks for part in inner):
            return False
        if inner[2].bias is not None or not isinstance(layer.lora_dropout[name], nn.Identity):
            return False
        frozen = not any(parameter.requires_grad for parameter in inner[0].parameters())
        return frozen and x.dtype == inner[0].weight.dtype and not torch.is_autocast_enabled(x.device.type)


def fuse(model: nn.Module) -> None:
    """Every LoRA layer of the model computes as one node from now on."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if type(layer) is Linear:
            forward: Any = Fused(layer)
            layer.forward = forward  # type: ignore[method-assign]
