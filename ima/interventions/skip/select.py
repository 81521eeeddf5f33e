"""Which tokens a skip leaves out: a share of a role's tokens, by place, by chance or by their states.

The number is ratio x tokens of that role in that example, rounded half up. Chance is keyed by (seed, sample id), so
that neither batch nor order nor the number of processes changes it, and a larger ratio contains a smaller one. A
decoded token comes alone: by chance it is skipped with probability `ratio`, by any other rule as its rounding says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ima.core.types import Role

Select = Literal["first", "last", "random", "norm", "similar"]
NEEDS_STATES = ("norm", "similar")


def generator_of(*parts: object) -> np.random.Generator:
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def num_skipped(num_tokens: Tensor, ratio: float) -> Tensor:
    """ratio x tokens, rounded half up."""
    return (ratio * num_tokens.double() + 0.5).floor().long()


def lowest(key_BS: Tensor, role_BS: Tensor, num_B: Tensor) -> Tensor:
    """The num_B positions of each row with the lowest keys among those of the role; ties go to the earlier one."""
    key_BS = key_BS.masked_fill(~role_BS, torch.inf)
    rank_BS = key_BS.argsort(dim=1, stable=True).argsort(dim=1)
    return role_BS & (rank_BS < num_B[:, None])


def by_place(role_BS: Tensor, num_B: Tensor, last: bool) -> Tensor:
    place_BS = role_BS.long().cumsum(1) - 1
    if last:
        place_BS = role_BS.sum(1, keepdim=True) - 1 - place_BS
    return role_BS & (place_BS < num_B[:, None])


def by_chance(role_BS: Tensor, num_B: Tensor, sample_ids: Sequence[str], key: Sequence[object]) -> Tensor:
    """num_B tokens of each row by a permutation that belongs to (key, sample id, number of tokens)."""
    skip_BS = torch.zeros_like(role_BS)
    for row, (sample_id, num) in enumerate(zip(sample_ids, num_B.tolist(), strict=True)):
        places = role_BS[row].nonzero()[:, 0]
        order = generator_of(*key, sample_id, len(places)).permutation(len(places))[:num]
        skip_BS[row, places[torch.from_numpy(np.ascontiguousarray(order)).to(places.device)]] = True
    return skip_BS


def decoded_by_chance(ratio: float, sample_ids: Sequence[str], key: Sequence[object], place: int) -> Tensor:
    """(B, 1): whether the token decoded at this place of the sequence is skipped."""
    units = [generator_of(*key, sample_id, "decoded", place).random() for sample_id in sample_ids]
    return torch.tensor([[unit < ratio] for unit in units])


def role_mask(roles_BS: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.isin(roles_BS, torch.tensor(sorted(ids), device=roles_BS.device))


def real(roles_BS: Tensor) -> Tensor:
    return roles_BS != Role.PAD
