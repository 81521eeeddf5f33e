"""Threads beside the model's own: on a CPU the statistics of one site need one core, and the LLM does not fill all.

Calls of one lane run one after the other in the order given, so what they add up does not depend on timing. On a GPU,
or where torch may use one thread only, a call runs at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

MAX_LANES = 4
MAX_WAITING = 32  # calls, whose states stay in memory


@functools.cache
def executor(_lane: int) -> ThreadPoolExecutor:
    """One thread that computes alone. torch keeps the number of threads per thread, and for threads to come."""
    num_threads = torch.get_num_threads()
    found = ThreadPoolExecutor(1, thread_name_prefix="alignment")
    found.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(num_threads)
    return found


class Lanes:
    """`wait` before what the calls read may change. One thread at a time may use it."""

    def __init__(self) -> None:
        self._calls: list[Future[Any]] = []

    @staticmethod
    def num(device: torch.device) -> int:
        """How many lanes there are: none where calls run at once."""
        num = min(MAX_LANES, torch.get_num_threads())
        return num if device.type == "cpu" and num > 1 else 0

    def run(self, lane: int, device: torch.device, call: Callable[..., object], *arguments: object) -> None:
        if num := self.num(device):
            if len(self._calls) >= MAX_WAITING:
                self._calls[-MAX_WAITING].exception()  # waits for it
            self._calls.append(executor(lane % num).submit(call, *arguments))
        else:
            call(*arguments)

    def wait(self) -> None:
        """Raises what the first that failed raised."""
        calls, self._calls = self._calls, []
        failed = [error for error in [call.exception() for call in calls] if error is not None]
        if failed:
            raise failed[0]

    def drop(self) -> None:
        """What an interrupted pass left does not count, whatever it raised."""
        calls, self._calls = self._calls, []
        for call in calls:
            call.cancel()
        for call in calls:
            if not call.cancelled():
                call.exception()
