"""From scores to kept weights: so many of a group are pruned, those with the lowest scores; ties lose by their place.

A group is an output row (Wanda), a matrix, the whole model, or n:m neighbours within a row. Every weight has a place in
one strict order (score, then position), so that numbers are exact and outcomes do not depend on a sorting algorithm.
`ranks` gives that order itself: a mask at any sparsity is `rank >= number pruned`. Masks stay on the device of their
scores: on a CPU numpy chooses, elsewhere `select_on_device`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.interventions.prune import select_on_device

Group = Literal["row", "matrix", "global"]
Pattern = Literal["unstructured", "2:4", "4:8"]
Scores = Callable[[str], Tensor]  # module path -> scores (out, in)
NOT_FINITE = "scores: not all finite; are the weights and the calibration activations? use llm.dtype=float32"
EPSILON = 1e-9  # 0.3 * 10 is 3


def num_pruned(num: int, ratio: float) -> int:
    """floor(ratio * num), as Wanda does, without losing one to binary fractions."""
    return min(num, math.floor(ratio * num + EPSILON))


def checked(score: Tensor) -> Tensor:
    """fp32 and contiguous, without -0. Raises UserError where scores are not finite or negative."""
    score = score.detach().float().contiguous()
    if not score.numel():
        return score
    low, high = torch.aminmax(score)
    if not (low >= 0 and high < math.inf):  # NaN is neither
        raise UserError(NOT_FINITE)
    return score if low > 0 else score + 0.0


def keys_of(score_GN: np.ndarray) -> np.ndarray:
    """int64 (G, N) in the strict order of each row: the bits of a non-negative fp32, then the position."""
    bits = score_GN.view(np.int32).astype(np.int64)
    found: np.ndarray = (bits << 32) | np.arange(score_GN.shape[1], dtype=np.int64)
    return found


def ranks(score_GN: Tensor) -> Tensor:
    """int32 (G, N): the place of each weight in its row's order, 0 for the first to be pruned."""
    score_GN = checked(score_GN)
    if score_GN.device.type != "cpu":
        return select_on_device.ranks(score_GN)
    order = np.sort(keys_of(score_GN.numpy()), axis=1) & 0xFFFFFFFF
    out = np.empty(order.shape, dtype=np.int32)
    np.put_along_axis(out, order, np.arange(order.shape[1], dtype=np.int32)[None], axis=1)
    return torch.from_numpy(out)


def keep(score_GN: Tensor, num: int | np.ndarray) -> Tensor:
    """bool (G, N): all but the `num` lowest of each row; `num` may differ by row (G,)."""
    score_GN = checked(score_GN)
    nums = np.broadcast_to(np.asarray(num, dtype=np.int64), (len(score_GN),))
    if score_GN.device.type != "cpu":
        return select_on_device.keep(score_GN, torch.from_numpy(nums.copy()).to(score_GN.device))
    score, length = score_GN.numpy(), score_GN.shape[1]
    kept = np.zeros(score.shape, dtype=bool)
    for each in map(int, np.unique(nums)):
        if each < length:
            rows = np.flatnonzero(nums == each)
            part = score if len(rows) == len(score) else score[rows]
            found = part >= np.partition(part, each, axis=1)[:, each, None]
            tied = np.flatnonzero(found.sum(1) != length - each)  # several at the threshold: their places decide
            if len(tied):
                keys = keys_of(part[tied])
                found[tied] = keys >= np.partition(keys, each, axis=1)[:, each, None]
            kept[rows] = found
    return torch.from_numpy(kept)


def keep_pattern(score_OI: Tensor, pattern: str) -> Tensor:
    """n:m: of each m neighbours in a row the n lowest are pruned. Raises UserError where rows are no multiple of m."""
    n, m = (int(part) for part in pattern.split(":"))
    rows, length = score_OI.shape
    if length % m:
        raise UserError(f"pattern: {pattern} needs rows of a multiple of {m} weights; here is one of {length}")
    score_OI = checked(score_OI)
    if score_OI.device.type != "cpu":
        return select_on_device.keep_pattern(score_OI, n, m)
    keys = keys_of(score_OI.reshape(-1, m).numpy())
    lower = np.zeros(keys.shape, dtype=np.int8)
    for column in range(m):
        lower += keys[:, column, None] < keys
    return torch.from_numpy((lower >= n).reshape(rows, length))


def pack(kept: Tensor) -> np.ndarray:
    """uint8 bits of a mask, as `Mask` holds them."""
    if kept.device.type != "cpu":
        return select_on_device.pack(kept).cpu().numpy()
    return np.packbits(kept.numpy().reshape(-1))


def unpack(bits: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """bool mask of packed bits; they travel packed."""
    if device.type != "cpu":
        on_device = torch.from_numpy(np.ascontiguousarray(bits)).to(device)
        return select_on_device.unpack(on_device, math.prod(shape)).reshape(shape)
    return torch.from_numpy(np.unpackbits(bits, count=math.prod(shape)).view(bool)).reshape(shape)


def shared(total: int, num_rows: int) -> np.ndarray:
    """`total` over rows as evenly as whole numbers allow, the first rows one more."""
    return total // num_rows + (np.arange(num_rows) < total % num_rows)


def shares(shapes: Mapping[str, tuple[int, int]], total: int) -> dict[str, int]:
    """`total` pruned weights over matrices in proportion to their sizes, by largest remainder."""
    whole = sum(math.prod(shape) for shape in shapes.values())
    out = {path: math.prod(shape) * total // whole for path, shape in shapes.items()}
    rest = sorted(shapes, key=lambda path: -(math.prod(shapes[path]) * total % whole))
    for path in rest[: total - sum(out.values())]:
        out[path] += 1
    return out


def keep_by(group: Group, score_OI: Tensor, ratio: float) -> Tensor:
    """One matrix at a ratio."""
    rows, length = score_OI.shape
    if group == "row":
        return keep(score_OI, num_pruned(length, ratio))
    return keep(score_OI.reshape(1, -1), num_pruned(rows * length, ratio)).reshape(rows, length)


def keep_number(group: Group, score_OI: Tensor, num: int) -> Tensor:
    """One matrix with exactly `num` pruned; by row, as evenly as whole numbers allow."""
    rows, length = score_OI.shape
    if group == "row":
        return keep(score_OI, shared(num, rows))
    return keep(score_OI.reshape(1, -1), num).reshape(rows, length)


def keep_global(scores: Scores, shapes: Mapping[str, tuple[int, int]], num: int) -> Iterator[tuple[str, Tensor]]:
    """The `num` lowest of all matrices, ties by the order of paths. The threshold is found digit by digit, so that the
    scores are never in memory at once."""

    def bits_of(path: str) -> Tensor:
        return checked(scores(path)).view(torch.int32).reshape(-1)

    def count(values: Tensor, length: int) -> np.ndarray:
        found: np.ndarray = torch.bincount(values, minlength=length).cpu().numpy()
        return found

    if num >= sum(math.prod(shape) for shape in shapes.values()):
        for path, shape in shapes.items():
            yield path, torch.zeros(shape, dtype=torch.bool)
        return
    high = sum(count(bits_of(path) >> 16, 2**15) for path in shapes)
    before = np.cumsum(high) - high
    digit = int(np.searchsorted(np.cumsum(high), num, side="right"))
    left = num - int(before[digit])
    low = np.zeros(2**16, dtype=np.int64)
    for path in shapes:
        bits = bits_of(path)
        low += count(bits[(bits >> 16) == digit] & 0xFFFF, 2**16)
    last = int(np.searchsorted(np.cumsum(low), left, side="right"))
    ties = left - int((np.cumsum(low) - low)[last])
    threshold = (digit << 16) | last
    for path, shape in shapes.items():
        bits = bits_of(path)
        kept = bits >= threshold
        first = (bits == threshold).nonzero()[:ties, 0] if ties else bits[:0].long()
        kept[first], ties = False, ties - len(first)
        yield path, kept.reshape(shape)
