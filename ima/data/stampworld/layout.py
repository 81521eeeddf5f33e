"""Where things stand in a scene: groups at five anchors, boxes known exactly before anything is drawn.

A group is one to four copies of a stamp: a column at the left and right, a row at the top and bottom, a block in the
middle. Boxes hardly overlap, lie inside the picture, and the centre of a group is nearest to its own anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ima.core.keyed_random import Draws
from ima.data.stampworld.catalog import Stamp

ANCHORS = {"left": (0.2, 0.5), "right": (0.8, 0.5), "top": (0.5, 0.18), "bottom": (0.5, 0.82), "middle": (0.5, 0.5)}
MAX_SHARED = 0.1  # of the smaller of two boxes
NUM_TRIES = 60
UNIT = 224  # sizes below are pixels of a picture of this size
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Group:
    """`num` copies of one stamp at one anchor."""

    stamp: Stamp
    num: int
    place: str


def lay_out(draws: Draws, groups: Sequence[Group], size: int) -> list[list[Box]] | None:
    """Boxes (left, top, right, bottom) of every copy of every group, or None where they do not fit."""
    for attempt in range(NUM_TRIES):
        shrink = 1 - 0.4 * attempt / NUM_TRIES
        boxes = [place_group(draws, group, len(groups), shrink, size) for group in groups]
        flat = [box for group in boxes for box in group]
        apart = all(shared(a, b) <= MAX_SHARED for i, a in enumerate(flat) for b in flat[:i])
        if apart and all(nearest(group, size) == g.place for group, g in zip(boxes, groups, strict=True)):
            return boxes
    return None


def place_group(draws: Draws, group: Group, num_groups: int, shrink: float, size: int) -> list[Box]:
    high = {1: 110, 2: 66, 3: 56, 4: 50}[group.num]
    low = min(55, high - 10)
    high = high if num_groups <= 2 else min(high, 84)
    scale = size / UNIT
    columns = {"left": 1, "right": 1, "top": group.num, "bottom": group.num}.get(group.place, min(group.num, 2))
    cells = []
    for _ in range(group.num):
        edge = draws.between(low, high) * shrink * scale
        factor = min(edge / max(group.stamp.width, group.stamp.height), 4.0)
        cells.append((max(2, round(group.stamp.width * factor)), max(2, round(group.stamp.height * factor))))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    gap = round(4 * scale)
    heights = [max(height for _, height in row) for row in rows]
    total_height = sum(heights) + gap * (len(rows) - 1)
    total_width = max(sum(width for width, _ in row) + gap * (len(row) - 1) for row in rows)
    anchor = ANCHORS[group.place]
    left = clamp(anchor[0] * size - total_width / 2 + draws.between(-10, 10) * scale, size - total_width)
    top = clamp(anchor[1] * size - total_height / 2 + draws.between(-10, 10) * scale, size - total_height)
    out = []
    for row, height in zip(rows, heights, strict=True):
        x = left
        for cell_width, cell_height in row:
            y = top + (height - cell_height) // 2
            out.append((x, y, x + cell_width, y + cell_height))
            x += cell_width + gap
        top += height + gap
    return out


def clamp(value: float, high: int) -> int:
    return max(0, min(round(value), high))


def shared(a: Box, b: Box) -> float:
    """Intersection over the smaller area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def nearest(boxes: Sequence[Box], size: int) -> str:
    """The anchor nearest to the centre of the hull of the boxes."""
    x = (min(box[0] for box in boxes) + max(box[2] for box in boxes)) / 2 / size
    y = (min(box[1] for box in boxes) + max(box[3] for box in boxes)) / 2 / size
    return min(ANCHORS, key=lambda name: (ANCHORS[name][0] - x) ** 2 + (ANCHORS[name][1] - y) ** 2)
