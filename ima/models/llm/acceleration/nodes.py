"""One pre-norm decoder block (RMSNorm, grouped attention with rotary positions, SwiGLU) as a single autograd node.

Forward and hand-written backward with respect to the block's input only: the weights are frozen. Hidden here: that all
padded positions share one row instead of being computed each, and that attention is a handful of small batched products
in fp32 (torch's fused CPU kernel is slow for short bf16 sequences, above all backward). `blocks` decides when
it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ima.models.llm.acceleration.weights import Matrix, Shape, Weights

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


SPAN = 64  # queries


class Span(NamedTuple):
    """Queries start .. stop - 1 and the keys that any of them sees, first .. last - 1."""

    start: int
    stop: int
    first: int
    last: int


def spans_of(bias_BSS: Tensor) -> list[Span]:
    """Cuts a long sequence into spans of queries: nearly half of all scores are of keys that come later."""
    length = bias_BSS.shape[-1]
    if length <= 2 * SPAN:
        return [Span(0, length, 0, length)]
    out = []
    for start in range(0, length, SPAN):
        stop = min(length, start + SPAN)
        keys = (bias_BSS[:, start:stop] > MASKED).flatten(0, 1).any(0).nonzero()[:, 0].tolist() or [0]
        out.append(Span(start, stop, keys[0], keys[-1] + 1))
    return out


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
        self._biases: dict[tuple[int, int], list[Tensor]] = {}
        self.spans = spans_of(bias_BSS)
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

    def biases(self, shape: Shape) -> list[Tensor]:
        """(B*num_kv, group*queries, keys) fp32 of each span, built once a pass."""
        key = (shape.num_kv, shape.group)
        if key not in self._biases:
            self._biases[key] = []
            for span in self.spans:
                part = self.bias_BSS[:, None, None, span.start : span.stop, span.first : span.last]
                wide = part.expand(self.batch, *key, *part.shape[-2:])
                self._biases[key].append(wide.reshape(self.batch * shape.num_kv, -1, part.shape[-1]))
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


def attend(qkv_NE: Tensor, shape: Shape, layout: Layout) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(output (N, H*W), rotated heads (B, num_kv, group+2, S, W) fp32, probabilities of each span of queries
    (B*num_kv, group*queries, keys) fp32)."""
    B, S, K, G, W = layout.batch, layout.length, shape.num_kv, shape.group, shape.width
    heads = torch.empty(B, K, G + 2, S, W, device=qkv_NE.device)
    heads.copy_(layout.spread(qkv_NE).view(B, S, K, G + 2, W).permute(0, 2, 3, 1, 4))
    if shape.rotary:
        torch.view_as_complex(heads[:, :, : G + 1].unflatten(-1, (-1, 2))).mul_(layout.turn)
    out = torch.empty(B, S, K, G, W, device=qkv_NE.device, dtype=qkv_NE.dtype)
    probabilities = []
    for span, bias in zip(layout.spans, layout.biases(shape), strict=True):
        q, k, v = split_heads(heads, span)
        probabilities.append(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=shape.scaling).softmax(-1))
        seen = (probabilities[-1] @ v).view(B, K, G, -1, W)
        out[:, span.start : span.stop].copy_(seen.permute(0, 3, 1, 2, 4))
    return layout.pick(out.view(B * S, -1)), heads, probabilities


def split_heads(heads: Tensor, span: Span) -> tuple[Tensor, Tensor, Tensor]:
    """q (B*K, G*queries, W), k and v (B*K, keys, W) of (B, K, G+2, S, W); views where the span is all."""
    flat = heads.flatten(0, 1)
    q, keys = flat[:, :-2, span.start : span.stop].flatten(1, 2), slice(span.first, span.last)
    return q, flat[:, -2, keys], flat[:, -1, keys]


def attend_backward(
    grad_NE: Tensor, heads: Tensor, probabilities: list[Tensor], shape: Shape, layout: Layout
) -> Tensor:
    """Gradient of the fused q, k, v product's output, (N, (group+2)*num_kv*W), in grad's dtype."""
    B, S, K, G, W = layout.batch, layout.length, shape.num_kv, shape.group, shape.width
    grad_BKGSW = layout.spread(grad_NE).view(B, S, K, G, W).permute(0, 2, 3, 1, 4)
    grad_heads = torch.empty_like(heads)
    if len(probabilities) > 1:
        grad_heads[:, :, G:] = 0
    for span, p in zip(layout.spans, probabilities, strict=True):
        q, k, v = split_heads(heads, span)
        grad_out = torch.empty(B, K, G, span.stop - span.start, W, device=heads.device)
        grad_out = grad_out.copy_(grad_BKGSW[:, :, :, span.start : span.stop]).view(B * K, -1, W)
        grad_p = torch.bmm(grad_out, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, torch.float32).mul_(shape.scaling)
        # Written by copies: a product into a strided view is a slow loop.
        grad_heads[:, :, :G, span.start : span.stop] = torch.bmm(grad_scores, k).view(B, K, G, -1, W)
        flat, keys = grad_heads.flatten(0, 1), slice(span.first, span.last)
        for place, grad in (
            (-2, torch.bmm(grad_scores.transpose(1, 2), q)),
            (-1, torch.bmm(p.transpose(1, 2), grad_out)),
        ):
            flat[:, place, keys].add_(grad) if len(probabilities) > 1 else flat[:, place, keys].copy_(grad)
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
    gate_NF, up_NF = weights.to_gate(show("ln2", y_ND)), weights.to_up(y_ND)
    silu_NF = nn.functional.silu(gate_NF)
    out_ND = added(weights.to_down, show("hidden", silu_NF * up_NF), mid_ND, "fc2")
    return out_ND, (x_ND, inverse1_N1, mid_ND, inverse2_N1, gate_NF, up_NF, silu_NF, heads, *probabilities)


def block_backward(grad_ND: Tensor, saved: tuple[Tensor, ...], weights: Weights, layout: Layout) -> Tensor:
    """Gradient of the block's input rows."""
    x_ND, inverse1_N1, mid_ND, inverse2_N1, gate_NF, up_NF, silu_NF, heads, *probabilities = saved
    grad_hidden_NF = weights.from_down(grad_ND)
    grad_up_NF = grad_hidden_NF * silu_NF
    grad_gate_NF = torch.ops.aten.silu_backward(grad_hidden_NF.mul_(up_NF), gate_NF)
    grad_y_ND = weights.from_gate(grad_gate_NF, add_NO=weights.from_up(grad_up_NF))
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
