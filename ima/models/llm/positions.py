"""How many positions an LLM has, the one line for a sequence that needs more of them, and what compiled blocks want:
few lengths, and a mask that nobody has to look into.

Families with a table of positions fail with an index error beyond it; those with rotary positions go on without a word
and with numbers that mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role

STRETCHED = ("linear", "dynamic", "yarn")  # kinds of rotary positions whose range is `factor` times the trained one


def num_positions(config: Any) -> int | None:
    """Of a Hugging Face config; None where it does not say."""
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    known = getattr(config, "max_position_embeddings", None)
    if not isinstance(known, int) or known < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in STRETCHED:
        trained = rope.get("original_max_position_embeddings") or known
        known = max(known, int(trained * float(rope.get("factor") or 1)))
    return known


def too_long(name: str, sample: str, text: int, percepts: int, new: int, limit: int) -> UserError:
    """text, percepts: tokens of the sample; new: those that may be generated; limit: positions of the LLM `name`."""
    parts = f"{text} of text, {percepts} of percepts" + (f", {new} to generate" if new else "")
    room = limit - percepts - new
    cure = (
        f"set loader.max_tokens={room} or less (longer texts are cut) or remove the sample"
        if room > 1
        else "fewer perceptual tokens (adapter, encoder), media or new tokens are needed, or another LLM"
    )
    return UserError(
        f"sample {sample}: it needs {text + percepts + new} positions ({parts}), {name} has {limit}; {cure}"
    )


def check_positions(
    name: str, limit: int | None, roles_BS: Tensor, sample_ids: Sequence[str] | None, new: int = 0
) -> None:
    """Raises UserError naming the longest sample of the batch where it does not fit."""
    if limit is None or roles_BS.shape[1] + new <= limit:
        return
    lengths = (roles_BS != Role.PAD).sum(1)
    row = int(lengths.argmax())
    length, percepts = int(lengths[row]), int((roles_BS[row] == Role.PERCEPT).sum())
    if length + new > limit:
        sample = sample_ids[row] if sample_ids is not None else f"number {row} of the batch"
        raise too_long(name, sample, length - percepts, percepts, new, limit)


def bucket(length: int, limit: int | None = None) -> int:
    """The least allowed length that is not below `length`: eight to every doubling, at least 8 apart; never above
    `limit`, the positions that an LLM has."""
    step = max(8, 2 ** (length - 1).bit_length() // 16) if length > 1 else 8
    found = -(-length // step) * step
    return found if limit is None or length > limit else min(found, limit)


def causal_mask(roles_BS: Tensor) -> Tensor:
    """see_B1SS (bool): a position sees itself and what is before it, and no padding. A padded position sees itself, so
    that no row is empty."""
    length = roles_BS.shape[1]
    real_B11S = (roles_BS != Role.PAD)[:, None, None]
    before_SS = torch.ones(length, length, dtype=torch.bool, device=roles_BS.device).tril()
    itself_SS = torch.eye(length, dtype=torch.bool, device=roles_BS.device)
    return before_SS & (real_B11S | itself_SS)
