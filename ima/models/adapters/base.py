"""Mapping adapters: encoder tokens f_BNE in, perceptual tokens p_BKD out. The only thing that is trained.

All compute in fp32. `start_at_norm` rescales the last weights once, on real features, so that the output's mean token
norm equals that of the LLM's embeddings: an adapter that starts far from it learns nothing for a long time. It changes
values only, so parameter counts and checkpoint keys stay those of the published modules.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.errors import UserError


class Adapter(nn.Module):
    """Base: `dim` E, `width` D, `num_tokens` K (None: as many as the encoder gives)."""

    def __init__(self, dim: int, width: int, num_tokens: int | None) -> None:
        super().__init__()
        self.dim, self.width, self.num_tokens = dim, width, num_tokens

    def last(self) -> nn.Linear:
        """The linear layer whose weights set the output's scale."""
        raise AssertionError("each adapter names its last linear layer")

    @torch.no_grad()
    def start_at_norm(self, features_BNE: Tensor, norm: float) -> float:
        """Rescale so that the mean L2 norm of the output tokens on `features_BNE` is `norm`; returns the norm found
        before. Biases of the last layer are zero at the start, so one multiplication is exact where nothing follows."""
        found = float(self(features_BNE).norm(dim=-1).mean())
        self.rescale(norm / max(found, 1e-12))
        return found

    def rescale(self, factor: float) -> None:
        self.last().weight.mul_(factor)


class AdapterSet(nn.ModuleDict):
    """The adapters of a run that has several, by channel."""


class LinearAdapter(Adapter):
    """One linear map per token."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width, None)
        self.proj = nn.Linear(dim, width)
        nn.init.zeros_(self.proj.bias)

    def last(self) -> nn.Linear:
        return self.proj

    def forward(self, f_BNE: Tensor) -> Tensor:
        return self.proj(f_BNE)


class MlpAdapter(Adapter):
    """Two layers with GELU on each token (LLaVA-1.5, arXiv 2310.03744)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width, None)
        self.up = nn.Linear(dim, width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.bias)

    def last(self) -> nn.Linear:
        return self.proj

    def forward(self, f_BNE: Tensor) -> Tensor:
        return self.proj(F.gelu(self.up(f_BNE)))


class QueryAdapter(Adapter):
    """The published mapping module: learned queries appended to all encoder tokens, pre-norm self-attention blocks, the
    queries are kept. 7,362,048 parameters for E=1024, D=4096. Keys: down, const, trans.layers.*, up, proj, as in the
    published checkpoints after `connector.0.`."""

    RANGES = {"num_tokens": (1, None), "hidden": (1, None), "num_blocks": (1, None), "num_heads": (1, None)}

    def __init__(
        self,
        dim: int,
        width: int,
        num_tokens: int = 10,
        hidden: int = 256,
        num_blocks: int = 5,
        num_heads: int = 8,
        inner: int = 512,
    ) -> None:
        super().__init__(dim, width, num_tokens)
        self.down = nn.Linear(dim, hidden)
        self.const = nn.Parameter(torch.randn(num_tokens, hidden))
        block = nn.TransformerEncoderLayer(
            hidden, num_heads, inner, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        )
        self.trans = nn.TransformerEncoder(block, num_blocks, enable_nested_tensor=False)
        for layer in self.trans.layers:
            # TransformerEncoder copies one block; the published module starts from independent ones.
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        self.up = nn.Linear(hidden, dim)
        self.proj = nn.Linear(dim, width)
        nn.init.zeros_(self.proj.bias)

    def last(self) -> nn.Linear:
        return self.proj

    def forward(self, f_BNE: Tensor) -> Tensor:
        queries = self.const.expand(f_BNE.shape[0], -1, -1)
        x = self.trans(torch.cat([self.down(f_BNE), queries], dim=1))
        return self.proj(self.up(x[:, -queries.shape[1] :]))


class PoolAdapter(Adapter):
    """The mean token and a grid of average-pooled patches, each through a norm and an MLP, plus learned positions.

    K = 1 + grid * grid tokens. layout "grid": the encoder's tokens (without a leading CLS) are a square picture, row by
    row; "sequence": they are pooled to the same number in order (sounds); "auto": a grid where they form a square.
    """

    RANGES = {"grid": (1, None), "hidden": (1, None)}

    def __init__(
        self,
        dim: int,
        width: int,
        grid: int = 3,
        hidden: int = 1024,
        layout: Literal["auto", "grid", "sequence"] = "auto",
    ) -> None:
        super().__init__(dim, width, 1 + grid * grid)
        self.grid, self.layout = grid, layout
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.proj = nn.Linear(hidden, width)
        nn.init.zeros_(self.proj.bias)
        self.out_norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(1 + grid * grid, width))

    def last(self) -> nn.Linear:
        return self.proj

    def rescale(self, factor: float) -> None:
        self.out_norm.weight.mul_(factor)

    def pool(self, f_BNE: Tensor) -> Tensor:
        num = f_BNE.shape[1]
        side, side_cls = math.isqrt(num), math.isqrt(max(num - 1, 0))
        is_square = side * side == num or (num > 1 and side_cls * side_cls == num - 1)
        if self.layout == "grid" and not is_square:
            raise UserError(f"adapter.layout: {num} encoder tokens form no square; use sequence or another encoder")
        if is_square and self.layout != "sequence":
            patches, side = (f_BNE, side) if side * side == num else (f_BNE[:, 1:], side_cls)
            map_BEhw = patches.transpose(1, 2).unflatten(2, (side, side))
            cells = F.adaptive_avg_pool2d(map_BEhw, self.grid).flatten(2).transpose(1, 2)
        else:
            cells = F.adaptive_avg_pool1d(f_BNE.transpose(1, 2), self.grid * self.grid).transpose(1, 2)
        return torch.cat([f_BNE.mean(1, keepdim=True), cells], dim=1)

    def forward(self, f_BNE: Tensor) -> Tensor:
        x = self.proj(F.gelu(self.up(self.norm(self.pool(f_BNE)))))
        return self.out_norm(x) + self.position


class PerceiverAdapter(Adapter):
    """Learned queries that attend to the encoder tokens (arXiv 2103.03206, 2204.14198): `num_blocks` times cross-
    attention and an FFN, pre-norm. Cost grows with N times K, not with N times N as in `query`.

    Tokens carry sinusoidal codes of their number in the sequence, so that place (image), time (sound) or both (clips)
    can be told whatever N is; without them a set of tokens in any order would look the same.
    """

    RANGES = {"num_tokens": (1, None), "hidden": (1, None), "num_blocks": (1, None), "num_heads": (1, None)}

    def __init__(
        self,
        dim: int,
        width: int,
        num_tokens: int = 16,
        hidden: int = 256,
        num_blocks: int = 2,
        num_heads: int = 8,
        inner: int = 512,
    ) -> None:
        super().__init__(dim, width, num_tokens)
        if hidden % num_heads or hidden % 2:
            raise UserError(f"adapter.hidden: {hidden} must be even and a multiple of num_heads={num_heads}")
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, hidden)
        self.const = nn.Parameter(torch.randn(num_tokens, hidden))
        self.blocks = nn.ModuleList(CrossBlock(hidden, num_heads, inner) for _ in range(num_blocks))
        self.proj = nn.Linear(hidden, width)
        nn.init.zeros_(self.proj.bias)
        self.out_norm = nn.LayerNorm(width)

    def last(self) -> nn.Linear:
        return self.proj

    def rescale(self, factor: float) -> None:
        self.out_norm.weight.mul_(factor)

    def forward(self, f_BNE: Tensor) -> Tensor:
        x_BNH = self.down(self.norm(f_BNE))
        keys_BNH = x_BNH + sinusoids(x_BNH.shape[1], x_BNH.shape[2]).to(x_BNH)
        h_BKH = self.const.expand(f_BNE.shape[0], -1, -1)
        for block in self.blocks:
            h_BKH = block(h_BKH, keys_BNH)
        return self.out_norm(self.proj(h_BKH))


class CrossBlock(nn.Module):
    """h + attention(h to the keys), then h + FFN(h)."""

    def __init__(self, hidden: int, num_heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm_keys = (nn.LayerNorm(hidden) for _ in range(3))
        self.attention = nn.MultiheadAttention(hidden, num_heads, batch_first=True)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, h_BKH: Tensor, keys_BNH: Tensor) -> Tensor:
        keys_BNH = self.norm_keys(keys_BNH)
        seen, _ = self.attention(self.norm1(h_BKH), keys_BNH, keys_BNH, need_weights=False)
        h_BKH = h_BKH + seen
        return h_BKH + self.down(F.gelu(self.up(self.norm2(h_BKH))))


def sinusoids(num: int, width: int) -> Tensor:
    """(num, width): sines and cosines of a position, periods from 2 pi to 10,000 times that (arXiv 1706.03762)."""
    angle = torch.arange(num)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1)
