"""Which tokens a skip leaves out: a share of a role's tokens, by place, by chance or by their states.

The number is ratio x tokens of that role in that stretch of prompt, rounded half up; a stretch ends where an answer
begins. Chance is keyed by (seed, sample id), so that neither batch nor order nor the number of processes changes it,
and a larger ratio contains a smaller one. Answer tokens come one by one: each is skipped with probability `ratio`,
drawn by its own place among the sample's real tokens, so that a whole pass decides what cached decoding decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ima.core.types import Role
from ima.interventions.hooks import DECODED
from ima.interventions.skip.decision import SkipRule
from ima.models.llm.pass_context import PassContext

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


def by_chance(
    role_BS: Tensor, num_B: Tensor, sample_ids: Sequence[str], key: Sequence[object], stretch: int = 0
) -> Tensor:
    """num_B tokens of each row by a permutation that belongs to (key, sample id, stretch, number of tokens)."""
    skip_BS = torch.zeros_like(role_BS)
    at = (stretch,) if stretch else ()
    for row, (sample_id, num) in enumerate(zip(sample_ids, num_B.tolist(), strict=True)):
        places = role_BS[row].nonzero()[:, 0]
        order = generator_of(*key, sample_id, *at, len(places)).permutation(len(places))[:num]
        skip_BS[row, places[torch.from_numpy(np.ascontiguousarray(order)).to(places.device)]] = True
    return skip_BS


def one_by_one(
    role_BS: Tensor, ratio: float, sample_ids: Sequence[str], key: Sequence[object], places_BS: Tensor
) -> Tensor:
    """Each token of the role by itself, with probability `ratio`; places_BS: its place among the real tokens."""
    skip_BS = torch.zeros_like(role_BS)
    rows_N, columns_N = role_BS.nonzero(as_tuple=True)
    places = places_BS[rows_N, columns_N].tolist()
    units = [
        generator_of(*key, sample_ids[row], "decoded", place).random()
        for row, place in zip(rows_N.tolist(), places, strict=True)
    ]
    skip_BS[rows_N, columns_N] = torch.tensor([unit < ratio for unit in units], dtype=torch.bool, device=role_BS.device)
    return skip_BS


def stretches(roles_BS: Tensor, decoded_BS: Tensor) -> list[Tensor]:
    """The parts of the prompt, (B, S) each: what stands before the first answer, between it and the next, and so on.
    What comes later in a conversation so changes nothing about what came before."""
    ends_BS = decoded_BS & ~decoded_BS.roll(-1, dims=1)
    before_BS = ends_BS.long().cumsum(1)  # answers that have ended; at an answer's own tokens it does not matter
    prompt_BS = ~decoded_BS & real(roles_BS)
    most = int(torch.where(prompt_BS, before_BS, 0).max()) if prompt_BS.numel() else 0
    return [prompt_BS & (before_BS == number) for number in range(most + 1)]


def role_mask(roles_BS: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.isin(roles_BS, torch.tensor(sorted(ids), device=roles_BS.device))


def real(roles_BS: Tensor) -> Tensor:
    return roles_BS != Role.PAD


def first_real(roles_BS: Tensor) -> Tensor:
    """True at each row's first position that is no padding."""
    real_BS = real(roles_BS)
    return real_BS & (real_BS.cumsum(1) == 1)


def parts_of_pass(running: PassContext) -> tuple[Tensor, list[Tensor]]:
    """(answer tokens, the stretches of prompt) of the running pass."""
    if "parts" not in running.memo:
        decoded_BS = role_mask(running.roles_BS, [int(role) for role in DECODED])
        running.memo["parts"] = decoded_BS, stretches(running.roles_BS, decoded_BS)
    found: tuple[Tensor, list[Tensor]] = running.memo["parts"]
    return found


def share_of(
    skip: SkipRule, group: Sequence[int], block: int, x_BSD: Tensor, before_BSD: Tensor | None, running: PassContext
) -> Tensor:
    """skip_BS: the tokens of a group of roles that `skip` leaves out at a block. before_BSD: what entered the block
    before it, for `similar`."""
    role_BS = role_mask(running.roles_BS, group)
    if skip.ratio in (0, 1):
        return role_BS if skip.ratio else torch.zeros_like(role_BS)
    decoded_BS, parts = parts_of_pass(running)
    draw = [skip.seed, *group, *((block,) if skip.redraw_per_block else ())]
    names = running.sample_ids
    assert names is not None or skip.select != "random", "a random skip draws by sample: pass sample_ids"
    skip_BS = torch.zeros_like(role_BS)
    if skip.select == "random" and names is not None:
        skip_BS = one_by_one(role_BS & decoded_BS, skip.ratio, names, draw, running.places_BS)
    for stretch, part_BS in enumerate(parts):
        here_BS = role_BS & part_BS
        num_B = num_skipped(here_BS.sum(1), skip.ratio)
        if skip.select == "random" and names is not None:
            skip_BS |= by_chance(here_BS, num_B, names, draw, stretch)
        elif skip.select in ("first", "last"):
            skip_BS |= by_place(here_BS, num_B, last=skip.select == "last")
        elif skip.select == "norm":
            skip_BS |= lowest(x_BSD.float().norm(dim=-1), here_BS, num_B)
        else:
            assert before_BSD is not None, "similar to nothing"
            skip_BS |= lowest(-torch.cosine_similarity(x_BSD.float(), before_BSD.float(), dim=-1), here_BS, num_B)
    return skip_BS
