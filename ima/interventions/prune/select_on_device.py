"""The choice of weights where the scores are: the twin of the numpy code in `select` for scores on a GPU.

A copy of a score to the host and a partition there take .3 s for one matrix of a 7B model, a sort on the card a
thousandth of it; numpy's partition is four times as fast as torch's on a CPU. So both exist, and the tests hold them
to the same masks, bit for bit: any score, any ties. Nothing here asks for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLACES = tuple(range(7, -1, -1))  # the first weight is the highest bit of its byte, as numpy packs


def order_of(score_GN: Tensor) -> Tensor:
    """int64 (G, N): positions of each row from the lowest score to the highest, equal ones by position."""
    return score_GN.argsort(dim=1, stable=True)


def ranks(score_GN: Tensor) -> Tensor:
    """int32 (G, N): the place of each weight in its row's order."""
    places = torch.arange(score_GN.shape[1], dtype=torch.int32, device=score_GN.device)
    out = torch.empty(score_GN.shape, dtype=torch.int32, device=score_GN.device)
    return out.scatter_(1, order_of(score_GN), places.expand(score_GN.shape))


def keep(score_GN: Tensor, num_G: Tensor) -> Tensor:
    """bool (G, N): all but the num_G lowest of each row (num_G: int64, 0 to N)."""
    length = score_GN.shape[1]
    sorted_GN = score_GN.sort(dim=1).values
    threshold_G1 = sorted_GN.gather(1, num_G.clamp(max=length - 1)[:, None])
    kept_GN = score_GN >= threshold_G1
    kept_GN &= (num_G < length)[:, None]
    tied_G = (kept_GN.sum(1) != length - num_G).nonzero()[:, 0]  # several at the threshold: their places decide
    if len(tied_G):
        kept_GN[tied_G] = ranks(score_GN[tied_G]) >= num_G[tied_G, None]
    return kept_GN


def keep_pattern(score_OI: Tensor, n: int, m: int) -> Tensor:
    """bool (out, in): of each m neighbours all but the n lowest."""
    score_GM = score_OI.reshape(-1, m)
    place_M = torch.arange(m, device=score_OI.device)
    lower_GM = torch.zeros(score_GM.shape, dtype=torch.int8, device=score_OI.device)
    for place in range(m):
        other_G1 = score_GM[:, place, None]
        lower_GM += (other_G1 < score_GM) | ((other_G1 == score_GM) & (place < place_M))
    return (lower_GM >= n).reshape(score_OI.shape)


def pack(kept: Tensor) -> Tensor:
    """uint8 (ceil(numel / 8),): bits in the order of numpy's packbits."""
    flat = kept.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    out = torch.zeros(len(padded), dtype=torch.uint8, device=kept.device)
    for column, place in enumerate(PLACES):
        out |= padded[:, column].to(torch.uint8) << place
    return out


def unpack(bits: Tensor, num: int) -> Tensor:
    """bool (num,) of packed bits."""
    shifts_8 = torch.tensor(PLACES, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> shifts_8) & 1).reshape(-1)[:num].bool()
