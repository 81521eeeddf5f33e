"""Ranks: how many processes a run asks for, and which of them this one is, known before any process group exists.

A rank counts only in a run that asks for several: variables that another program left behind (RANK, SLURM_PROCID,
LOCAL_RANK, ...) mean nothing to a run of one process. A run of several takes its place from torchrun, srun or
Lightning, from whichever has told all that there is to know; what contradicts itself is refused in one line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ima.core.errors import UserError

STARTERS = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}
PLACES = {  # how many there are, the number on the machine, the number among all (Lightning: the machine's)
    "torchrun": ("WORLD_SIZE", "LOCAL_RANK", "RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_PROCID"),
    "lightning": ("WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"),
}
NUMBERS = {*PLACES["torchrun"], *PLACES["srun"], *PLACES["lightning"], "GROUP_RANK", "SLURM_NODEID"}
MEETING = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where this process stands among the `num` of its run. local, node: its number on its machine, and the machine's.
    launcher: who started the others: torchrun, srun, lightning; "" in a run of one. starts: the others are not there
    yet, Lightning is about to start them from here."""

    rank: int = 0
    num: int = 1
    local: int = 0
    node: int = 0
    launcher: str = ""
    starts: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank() -> int:
    """This process's number in the process group; 0 where there is none."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def num_ranks() -> int:
    """Processes of the process group; 1 where there is none."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def ranks_from_outside(environment: Mapping[str, str]) -> dict[str, int]:
    """Starter -> how many processes it says that it started, of those that say more than one."""
    found = {}
    for starter, (number, total) in STARTERS.items():
        if number in environment and (num := whole(environment, total) or 0) > 1:
            found[starter] = num
    return found


def hint_of_ranks(place: Place, environment: Mapping[str, str] | None = None) -> str:
    """What to say where a run of one process finds its folder taken; "" where nothing started several processes."""
    found = ranks_from_outside(os.environ if environment is None else environment)
    if place.num > 1 or not found:
        return ""
    starter, num = next(iter(found.items()))
    return (
        f"; {starter} started {num} processes and the run asks for one: give each its own name=..., or make them ranks"
        f" of one run with trainer.devices={num}"
    )


def place_of(trainer: Any, environment: Mapping[str, str] | None = None) -> Place:
    """The place of this process in a run with these settings (`settings.Flags`). Raises UserError where the run
    asks for several ranks and the environment contradicts it or itself."""
    environment = os.environ if environment is None else environment
    per_node = num_devices(trainer)
    num = per_node * trainer.num_nodes
    if num == 1:
        return Place()
    place = given(environment, num, trainer.num_nodes, per_node)
    if place is None:
        return Place(num=num, launcher="lightning", starts=True)
    if not 0 <= place.rank < num or not 0 <= place.local < per_node or not 0 <= place.node < trainer.num_nodes:
        raise UserError(
            f"{place.launcher}: rank {place.rank}, number {place.local} on machine {place.node}, but the run asks for"
            f" {per_node} on each of {trainer.num_nodes}; set trainer.devices and trainer.num_nodes as it was started"
        )
    return place


def given(environment: Mapping[str, str], num: int, num_nodes: int, per_node: int) -> Place | None:
    """The place that somebody gave to this process; None where it is the first and alone. Raises UserError where what
    there is does not add up to `num` ranks."""
    numbers = {name: whole(environment, name) for name in NUMBERS}
    can_meet = all(name in environment for name in MEETING)
    for starter, needed in PLACES.items():
        total, local, first = (numbers[name] for name in needed)
        if total != num or local is None or first is None or not (can_meet or starter == "srun"):
            continue
        if starter == "lightning":  # `first` is the machine's number
            if "RANK" not in environment:
                return Place(first * per_node + local, num, local, first, starter)
            continue
        node = numbers["GROUP_RANK" if starter == "torchrun" else "SLURM_NODEID"]
        return Place(first, num, local, first // per_node if node is None else node, starter)
    several = ranks_from_outside(environment)
    odd = [name for name in ("RANK", "LOCAL_RANK") if name in environment]
    if several or odd or num_nodes > 1:
        raise UserError(contradiction(environment, several, odd, num))
    return None


def contradiction(environment: Mapping[str, str], several: Mapping[str, int], odd: list[str], num: int) -> str:
    """The line about an environment that does not make `num` ranks."""
    said = [f"{starter} started {number}" for starter, number in several.items() if number != num]
    if not said and odd:
        shown = ", ".join(f"{name}={environment[name]}" for name in odd)
        wanted = ("RANK", "LOCAL_RANK", "WORLD_SIZE", *MEETING)
        lacking = ", ".join(name for name in wanted if name not in environment)
        said = [f"the environment says {shown}" + (f" and nothing of {lacking}" if lacking else "")]
    if not said:
        said = [f"{starter} does not say which is which" for starter in several]
    if not said:
        said = ["nothing started them (on several machines torchrun or srun does)"]
    way = f"unset {', '.join(odd)}, then Lightning starts them" if odd else "set trainer.devices and trainer.num_nodes"
    return (
        f"trainer: devices and num_nodes ask for {num} ranks, but {' and '.join(said)}; start {num} processes, or {way}"
    )


def num_devices(trainer: Any) -> int:
    """Processes that `trainer.devices` asks for on each machine. Raises UserError for what is no number of devices."""
    devices = str(trainer.devices).strip()
    if devices == "1":
        return 1  # without a look at the GPUs, which takes torch
    on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and num_gpus() > 0
    if devices in ("auto", "-1"):
        return num_gpus() if on_gpu else 1
    if devices.isdecimal() and int(devices) > 0:
        if on_gpu and int(devices) > num_gpus():
            raise UserError(f"trainer.devices: {devices}, but {num_gpus()} GPU(s) can be used here")
        return int(devices)
    numbers = gpus_listed(devices)
    if on_gpu and numbers:
        wrong = [number for number in numbers if number >= num_gpus()]
        if wrong or len(set(numbers)) < len(numbers):
            what = f"there is no GPU {wrong[0]}" if wrong else "a GPU is there twice"
            raise UserError(f"trainer.devices: {devices!r}: {what}; {num_gpus()} can be used here, from 0")
        return len(numbers)
    what = "a number, auto, or numbers of GPUs (0,1)" if on_gpu else "a number of processes, or auto"
    raise UserError(f"trainer.devices: {devices!r}; give {what}")


def gpus_listed(devices: list[int] | int | str) -> list[int]:
    """The numbers of a list of GPUs ("0,2"; "2," is the third alone); empty where `devices` is no such list."""
    text = str(devices).strip()
    parts = [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    is_list = ("," in text or text.startswith("[")) and all(part.isdecimal() for part in parts)
    return [int(part) for part in parts] if is_list else []


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def whole(environment: Mapping[str, str], name: str) -> int | None:
    """A variable's number; None where it is not there or no number."""
    text = environment.get(name, "").strip()
    return int(text) if text.isdecimal() else None
