"""One pre-norm decoder block (RMSNorm, grouped attention with rotary positions, SwiGLU) as a single autograd node.

Forward and hand-written backward with respect to the block's input only: the weights are frozen. Hidden here: that all
padded positions share one row instead of being computed each, and that attention is a handful of small batched products
in fp32 (torch's fused CPU kernel is slow for short bf16 sequences, above all backward). `ima.llm.fast` decides when it
is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ima.llm.fast_weights import Matrix, Shape, Weights

Looks = dict[str, list[Callable[[Tensor], None]]]  # by site: who wants to be shown its value, (B, S, width)
# Inputs and outputs of modules inside the block that are values of the node, in the order in which they come.
SITES = {
    ("input_layernorm", "output"): "ln1",
    ("self_attn", "output"): "sa",
    ("post_attention_layernorm", "input"): "mid",
    ("post_attention_layernorm", "output"): "ln2",
    ("mlp.down_proj", "input"): "hidden",
    ("mlp", "output"): "fc2",
}
MASKED = -1e9  # finite, so that a row which sees nothing stays finite; exp(MASKED - max) is exactly 0 in fp32


class Layout:
    """What all blocks of one pass share: which rows are real, the additive mask, the rotation.

    row_N: flat indices of the computed rows, None when all positions are: the real ones, then one padded position that
    stands for all; place_R (R = B*S): for each position its row. mask: as the model hands it to attention, None
    (causal), bool or additive, (B or 1, 1, S, S).
    """

    def __init__(self, x_BSD: Tensor, mask: Tensor | None, cos_BSW: Tensor, sin_BSW: Tensor) -> None:
        self.batch, self.length = x_BSD.shape[:2]
        device, (B, S) = x_BSD.device, x_BSD.shape[:2]
        self.row_N: Tensor | None = None
        if mask is None:
            seen = torch.ones(S, S, dtype=torch.bool, device=device).tril()[None]
            bias_BSS = torch.zeros(seen.shape, device=device).masked_fill_(~seen, MASKED)
        elif mask.dtype == torch.bool:
            bias_BSS = torch.zeros(mask.shape, device=device).masked_fill_(~mask, MASKED)[:, 0]
        else:
            bias_BSS = mask[:, 0].float().clamp_min(MASKED)
        self.bias_BSS = bias_BSS
        self._biases: dict[tuple[int, int], Tensor] = {}
        if mask is not None:
            # A position that nobody sees, not even itself, is padding.
            dead_BS = (bias_BSS <= MASKED).all(1).expand(B, S)
            if bool(dead_BS.any()) and not bool(dead_BS.all()):
                dead_R = dead_BS.reshape(-1)
                real_N = (~dead_R).nonzero()[:, 0]
                self.row_N = torch.cat([real_N, dead_R.nonzero()[0]])
                self.place_R = torch.full(dead_R.shape, len(real_N), device=device)
                self.place_R[real_N] = torch.arange(len(real_N), device=device)
        half = cos_BSW.shape[-1] // 2
        self.turn = torch.complex(cos_BSW[..., :half].float(), sin_BSW[..., :half].float())[:, None, None]
        self.turn_back = self.turn.conj().resolve_conj()

    def bias(self, shape: Shape) -> Tensor:
        """(B*num_kv, group*S, S) fp32, built once a pass."""
        key = (shape.num_kv, shape.group)
        if key not in self._biases:
            S = self.length
            wide = self.bias_BSS[:, None, None].expand(self.batch, *key, S, S)
            self._biases[key] = wide.reshape(self.batch * shape.num_kv, shape.group * S, S)
        return self._biases[key]

    def pick(self, x_RD: Tensor) -> Tensor:
        """The computed rows of all positions."""
        return x_RD if self.row_N is None else x_RD.index_select(0, self.row_N)

    def spread(self, x_ND: Tensor) -> Tensor:
        """All positions from the computed rows."""
        return x_ND if self.row_N is None else x_ND.index_select(0, self.place_R)


def normalise(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm with one rounding: (y in x's dtype, 1/rms fp32)."""
    x32_ND = x_ND.float()
    length_N1 = torch.linalg.vector_norm(x32_ND, dim=-1, keepdim=True)
    inverse_N1 = length_N1.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_()
    return (x32_ND * inverse_N1).mul_(weight_D).to(x_ND.dtype), inverse_N1


def normalise_backward(grad_ND: Tensor, x_ND: Tensor, inverse_N1: Tensor, weight_D: Tensor, skip_ND: Tensor) -> Tensor:
    """d loss / d x, with the gradient that arrives over the residual added, in the dtype of `skip`."""
    grad32_ND = grad_ND.float() * weight_D
    x32_ND = x_ND.float()
    along_N1 = (grad32_ND * x32_ND).mean(-1, keepdim=True).mul_(inverse_N1.pow(3)).neg_()
    out_ND = torch.addcmul(skip_ND.float(), grad32_ND, inverse_N1)
    return out_ND.addcmul_(x32_ND, along_N1).to(skip_ND.dtype)


def attend(qkv_NE: Tensor, shape: Shape, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """(output (N, H*W), rotated heads (B, num_kv, group+2, S, W) fp32, probabilities (B*num_kv, group*S, S) fp32)."""
    B, S, K, G, W = layout.batch, layout.length, shape.num_kv, shape.group, shape.width
    heads = torch.empty(B, K, G + 2, S, W, device=qkv_NE.device)
    heads.copy_(layout.spread(qkv_NE).view(B, S, K, G + 2, W).permute(0, 2, 3, 1, 4))
    if shape.rotary:
        torch.view_as_complex(heads[:, :, : G + 1].unflatten(-1, (-1, 2))).mul_(layout.turn)
    q, k, v = split_heads(heads)
    probabilities = torch.baddbmm(layout.bias(shape), q, k.transpose(1, 2), alpha=shape.scaling).softmax(-1)
    out = torch.empty(B, S, K, G, W, device=qkv_NE.device, dtype=qkv_NE.dtype)
    out.copy_((probabilities @ v).view(B, K, G, S, W).permute(0, 3, 1, 2, 4))
    return layout.pick(out.view(B * S, -1)), heads, probabilities


def split_heads(heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views q (B*K, G*S, W), k and v (B*K, S, W) of (B, K, G+2, S, W)."""
    flat = heads.flatten(0, 1)
    return flat[:, :-2].flatten(1, 2), flat[:, -2], flat[:, -1]


def attend_backward(grad_NE: Tensor, heads: Tensor, probabilities: Tensor, shape: Shape, layout: Layout) -> Tensor:
    """Gradient of the fused q, k, v product's output, (N, (group+2)*num_kv*W), in grad's dtype."""
    B, S, K, G, W = layout.batch, layout.length, shape.num_kv, shape.group, shape.width
    grad_out = torch.empty(B, K, G, S, W, device=heads.device)
    grad_out.copy_(layout.spread(grad_NE).view(B, S, K, G, W).permute(0, 2, 3, 1, 4))
    grad_out = grad_out.view(B * K, G * S, W)
    q, k, v = split_heads(heads)
    grad_p = torch.bmm(grad_out, v.transpose(1, 2))
    grad_scores = torch._softmax_backward_data(grad_p, probabilities, -1, torch.float32).mul_(shape.scaling)
    grad_heads = torch.empty_like(heads)
    grad_q, grad_k, grad_v = split_heads(grad_heads)  # written by a copy: a product into a strided view is a slow loop
    grad_q.view(B * K, G * S, W).copy_(torch.bmm(grad_scores, k))
    grad_k.copy_(torch.bmm(grad_scores.transpose(1, 2), q))
    grad_v.copy_(torch.bmm(probabilities.transpose(1, 2), grad_out))
    if shape.rotary:
        torch.view_as_complex(grad_heads[:, :, : G + 1].unflatten(-1, (-1, 2))).mul_(layout.turn_back)
    out = torch.empty(B, S, K, G + 2, W, device=heads.device, dtype=grad_NE.dtype)
    out.copy_(grad_heads.permute(0, 3, 1, 2, 4))
    return layout.pick(out.view(B * S, -1))


def block_forward(x_ND: Tensor, weights: Weights, layout: Layout, looks: Looks) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output rows and what the backward pass needs."""
    shape = weights.shape

    def show(site: str, value_NX: Tensor) -> Tensor:
        if site in looks:
            value_BSX = layout.spread(value_NX).view(layout.batch, layout.length, -1)
            for see in looks[site]:
                see(value_BSX)
        return value_NX

    def added(matrix: Matrix, value_NX: Tensor, to_ND: Tensor, site: str) -> Tensor:
        """The stream after what the matrix makes of the value: in one step, unless somebody looks at that alone."""
        return show(site, matrix(value_NX)) + to_ND if site in looks else matrix(value_NX, add_NO=to_ND)

    y_ND, inverse1_N1 = normalise(x_ND, weights.norm1_D, shape.eps1)
    attended_NE, heads, probabilities = attend(weights.to_qkv(show("ln1", y_ND)), shape, layout)
    mid_ND = show("mid", added(weights.to_out, attended_NE, x_ND, "sa"))
    y_ND, inverse2_N1 = normalise(mid_ND, weights.norm2_D, shape.eps2)
    gate_up_NF = weights.to_gate_up(show("ln2", y_ND))
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    silu_NF = nn.functional.silu(gate_NF)
    out_ND = added(weights.to_down, show("hidden", silu_NF * up_NF), mid_ND, "fc2")
    return out_ND, (x_ND, inverse1_N1, heads, probabilities, mid_ND, inverse2_N1, gate_up_NF, silu_NF)


def block_backward(grad_ND: Tensor, saved: tuple[Tensor, ...], weights: Weights, layout: Layout) -> Tensor:
    """Gradient of the block's input rows."""
    x_ND, inverse1_N1, heads, probabilities, mid_ND, inverse2_N1, gate_up_NF, silu_NF = saved
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    grad_hidden_NF = weights.from_down(grad_ND)
    grad_gate_up_NF = torch.empty_like(gate_up_NF)
    grad_gate_NF, grad_up_NF = grad_gate_up_NF.chunk(2, dim=-1)
    torch.mul(grad_hidden_NF, silu_NF, out=grad_up_NF)
    torch.ops.aten.silu_backward(grad_hidden_NF.mul_(up_NF), gate_NF, grad_input=grad_gate_NF)
    grad_y_ND = weights.from_gate_up(grad_gate_up_NF)
    grad_mid_ND = normalise_backward(grad_y_ND, mid_ND, inverse2_N1, weights.norm2_D, grad_ND)
    grad_qkv_NE = attend_backward(weights.from_out(grad_mid_ND), heads, probabilities, weights.shape, layout)
    grad_y_ND = weights.from_qkv(grad_qkv_NE)
    return normalise_backward(grad_y_ND, x_ND, inverse1_N1, weights.norm1_D, grad_mid_ND)


class FrozenBlock(torch.autograd.Function):
    """Block output (B, S, D) from block input; differentiable once, in the input."""

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, weights: Weights, layout: Layout, looks: Looks) -> Tensor:
        x_ND = layout.pick(x_BSD.reshape(-1, x_BSD.shape[-1]))
        out_ND, saved = block_forward(x_ND, weights, layout, looks)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(*saved)
            ctx.weights, ctx.layout = weights, layout
        return layout.spread(out_ND).view(x_BSD.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor, None, None, None]:
        grad_RD = grad_BSD.reshape(-1, grad_BSD.shape[-1])
        grad_ND = block_backward(ctx.layout.pick(grad_RD), ctx.saved_tensors, ctx.weights, ctx.layout)
        return ctx.layout.spread(grad_ND).view(grad_BSD.shape), None, None, None
