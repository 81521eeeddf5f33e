"""Adapters with learned queries that look at the encoder tokens: the published mapping module and the perceiver."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.models.adapters.base import Adapter


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
