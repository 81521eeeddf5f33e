"""Paths of things through a clip: where each stands, how large, how turned, in every frame.

The frame in the middle (number num_frames // 2) is drawn before the motion is looked at, from one distribution for all
ten motions; a motion only says how the other frames differ from it. So one frame in the middle tells nothing about
the motion. Lengths are shares of the picture's edge, angles are degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ima.core.keyed_random import Draws
from ima.tasks.metrics.motions import STILL

TILT = 30.0  # nothing is turned further than this, unless it rotates: some things must not stand on their head
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# By the number of things: edge of a thing (low, high), and how far from the middle frame it travels to the first.
EDGES = {1: (0.34, 0.46), 2: (0.26, 0.34), 3: (0.22, 0.28), 4: (0.22, 0.28)}
TRAVEL = {1: (0.20, 0.28), 2: (0.13, 0.18), 3: (0.10, 0.14), 4: (0.10, 0.14)}
JITTER = {1: 0.10, 2: 0.05, 3: 0.03, 4: 0.03}
GROWTH = (1.5, 1.9)  # at the first frame, relative to the middle
TURN = (70.0, 130.0)


@dataclass(frozen=True)
class Pose:
    """Centre, edge (the longer one, before turning), angle."""

    x: float
    y: float
    edge: float
    angle: float
    visible: bool = True


def zones(draws: Draws, num: int) -> list[tuple[float, float]]:
    """Centres of the parts of the picture that `num` things get: the whole, two halves, or quarters."""
    if num == 1:
        return [(0.5, 0.5)]
    if num == 2:
        across = draws.chance(0.5)
        return draws.shuffled([(0.25, 0.5), (0.75, 0.5)] if across else [(0.5, 0.25), (0.5, 0.75)])
    return draws.shuffled([(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)])[:num]


def middle(draws: Draws, centre: tuple[float, float], num: int) -> Pose:
    """The pose in the middle frame. `num`: how many things share the picture."""
    x, y = (c + draws.between(-JITTER[num], JITTER[num]) for c in centre)
    return Pose(x, y, draws.between(*EDGES[num]), draws.between(-TILT, TILT))


def path(draws: Draws, pose: Pose, motion: str, num: int, num_frames: int) -> list[Pose]:
    """The poses of all frames; that of frame num_frames // 2 is `pose` itself, whatever the motion."""
    centre = num_frames // 2
    travel, growth, turn = draws.between(*TRAVEL[num]), draws.between(*GROWTH), draws.between(*TURN)
    turn = turn if draws.chance(0.5) else -turn
    first = 1 + draws.below(centre)  # the first frame that shows what appears
    gone = centre + 1 + draws.below(num_frames - centre - 1)  # the first that lacks what disappears
    out = []
    for frame in range(num_frames):
        time = (frame - centre) / centre  # -1 in the first frame, 0 in the middle
        x, y, edge, angle, visible = pose.x, pose.y, pose.edge, pose.angle, True
        if motion in STEPS:
            x, y = x + STEPS[motion][0] * travel * time, y + STEPS[motion][1] * travel * time
        elif motion == "grows":
            edge *= growth**time
        elif motion == "shrinks":
            edge *= growth**-time
        elif motion == "rotates":
            angle += turn * time
        elif motion == "appears":
            visible = frame >= first
        elif motion == "disappears":
            visible = frame < gone
        else:
            assert motion == STILL, motion
        out.append(Pose(x, y, edge, angle, visible))
    return out


def control_order(name: str, num_frames: int, key: Sequence[object]) -> tuple[int, ...]:
    """Which frame stands where in a spoilt clip: the middle one everywhere, or all in an order that is neither the
    true one nor its reverse."""
    if name == "single_frame":
        return (num_frames // 2,) * num_frames
    draws, straight = Draws("frame order", *key), list(range(num_frames))
    while True:
        order = draws.shuffled(straight)
        if order not in (straight, straight[::-1]):
            return tuple(order)
