"""The frozen weights of one Llama-type decoder block, in the layouts that its accelerated twin multiplies with.

Hidden here: which blocks are of that kind, how queries, keys and values are joined into one matrix, which weights are
copied into the machine's own layout (and once more, transposed, for the backward pass) and which are used in place, and
how a later change of the block's own weights is noticed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
PARTS = {
    "": {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
Stamp = tuple[tuple[int, ...], ...]


def packs(dtype: torch.dtype) -> bool:
    """Whether copies in the machine's own layout pay. On Zen 4, at 200 to 1100 rows, products take 13 to 19 % longer
    without them in fp32, 5 to 8 % in bf16, where the copies would be most of what a run holds beside the model."""
    return dtype == torch.float32


class Matrix:
    """y = x W^T + b with W (out, in) as it is, or copied into the layout that the machine multiplies fastest; `add` is
    fused in."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.bias_O = bias_O
        self.packed = False
        self.weight = weight_OI
        if packs(weight_OI.dtype) and weight_OI.device.type == "cpu" and torch.backends.mkldnn.is_available():
            try:
                self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())
                self.packed = True
            except RuntimeError:  # a CPU on which oneDNN has no kernels for this dtype
                pass

    def __call__(self, x_NI: Tensor, add_NO: Tensor | None = None) -> Tensor:
        if not self.packed:
            if add_NO is not None and self.bias_O is None:
                return torch.addmm(add_NO, x_NI, self.weight.t())
            y_NO = nn.functional.linear(x_NI, self.weight, self.bias_O)
            return y_NO if add_NO is None else y_NO + add_NO
        product = torch.ops.mkldnn._linear_pointwise
        if add_NO is None:
            return product(x_NI, self.weight, self.bias_O, "none", [], "")
        return product.binary(x_NI, add_NO, self.weight, self.bias_O, "add")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one block: `num_kv` key heads, each read by `group` query heads of `width` numbers."""

    num_kv: int
    group: int
    width: int
    scaling: float
    rotary: bool
    eps1: float
    eps2: float


class Weights:
    """One block's weights: what is joined or packed is a snapshot, the rest is the block's own. The joined queries,
    keys and values have the heads that work together next to each other: for each key head its queries, the key, the
    value; within queries and keys the two halves that rotate together are interleaved, so that the rotation is one
    complex product (scores do not notice: both sides are permuted alike)."""

    def __init__(self, layer: Any, shape: Shape) -> None:
        attn, mlp = layer.self_attn, layer.mlp
        self.shape = shape
        self.norm1_D = layer.input_layernorm.weight.detach().float()
        self.norm2_D = layer.post_attention_layernorm.weight.detach().float()
        qkv, qkv_bias = fused_qkv(attn, shape)
        out, gate, up, down = (m.weight.detach() for m in (attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.to_qkv = Matrix(qkv, qkv_bias)
        self.to_out = Matrix(out, detached(attn.o_proj.bias))
        self.to_gate = Matrix(gate, detached(mlp.gate_proj.bias))
        self.to_up = Matrix(up, detached(mlp.up_proj.bias))
        self.to_down = Matrix(down, detached(mlp.down_proj.bias))
        # What the backward pass multiplies with.
        self.from_qkv, self.from_out = Matrix(qkv.t()), Matrix(out.t())
        self.from_gate, self.from_up, self.from_down = Matrix(gate.t()), Matrix(up.t()), Matrix(down.t())


def copied_bytes(blocks: nn.Module) -> int:
    """What Weights of all blocks take beside the blocks themselves."""
    total = 0
    for name, parameter in blocks.named_parameters():
        joined = any(part in name for part in ("q_proj", "k_proj", "v_proj"))
        total += (2 if packs(parameter.dtype) else int(joined)) * parameter.numel() * parameter.element_size()
    return total


def detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def fused_qkv(attn: Any, shape: Shape) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) in the order (kv head, [queries, key, value], width)."""

    def order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        head = (shape.num_kv, -1, shape.width, *q.shape[1:])
        parts = [q.detach().view(head), k.detach().view(head), v.detach().view(head)]
        if shape.rotary:
            halves = [part.unflatten(2, (2, -1)).transpose(2, 3).flatten(2, 3) for part in parts[:2]]
            parts = [*halves, parts[2]]
        return torch.cat(parts, dim=1).flatten(0, 2).contiguous()

    weight = order(attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight)
    if attn.q_proj.bias is None:
        return weight, None
    return weight, order(attn.q_proj.bias, attn.k_proj.bias, attn.v_proj.bias)


def block_shape(layer: nn.Module) -> Shape:
    """Sizes of a block of the Llama kind. Raises ValueError with the reason when it is of another kind."""
    for name, wanted in PARTS.items():
        found = set(dict(layer.get_submodule(name).named_children()))
        if found != wanted:
            raise ValueError(f"{type(layer).__name__}.{name or 'block'} holds {sorted(found)}, not {sorted(wanted)}")
    attn: Any = layer.self_attn
    mlp: Any = layer.mlp
    linears = [attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(linear) is not nn.Linear for linear in linears):
        raise ValueError("a projection is not a plain nn.Linear")
    if any(len({linear.bias is None for linear in joined}) > 1 for joined in (linears[:3], linears[4:6])):
        raise ValueError("biases on some of the projections only")
    if type(mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        raise ValueError(f"activation {type(mlp.act_fn).__name__}")
    norms: list[Any] = [layer.input_layernorm, layer.post_attention_layernorm]
    if any([name for name, _ in norm.named_parameters()] != ["weight"] for norm in norms):
        raise ValueError("a norm is not a plain RMSNorm")
    parameters = list(layer.parameters())
    if {p.dtype for p in parameters} - set(DTYPES) or len({p.dtype for p in parameters}) > 1:
        raise ValueError("weights are not all float32 or all bfloat16")
    if any(p.device.type != "cpu" for p in parameters):
        raise ValueError("not on the CPU, where it was measured to pay")
    if any(p.is_inference() for p in parameters):
        raise ValueError("inference tensors cannot be watched for changes")
    num_kv = attn.k_proj.out_features // attn.head_dim
    return Shape(
        num_kv=num_kv,
        group=attn.q_proj.out_features // attn.head_dim // num_kv,
        width=attn.head_dim,
        scaling=float(attn.scaling),
        rotary=bool(getattr(attn, "use_rope", True)),
        eps1=float(norms[0].variance_epsilon),
        eps2=float(norms[1].variance_epsilon),
    )


def stamp_of(layer: nn.Module) -> Stamp:
    """Changes with every in-place operation on, or replacement of, a weight or module. Writes through `.data` stay
    unseen, as autograd does not see them either: call `Acceleration.refresh` after such."""
    marks = []
    for inner in layer.modules():
        mark = [id(inner)]
        for parameter in inner._parameters.values():
            if parameter is not None:
                mark += [id(parameter), parameter._version, parameter.data_ptr()]
        marks.append(tuple(mark))
    return tuple(marks)
