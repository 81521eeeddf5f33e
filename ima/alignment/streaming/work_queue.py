"""Threads for what needs one core each.

Calls are collected and made some at a time, while the LLM waits: beside it they would take turns with its own threads.
They are made in lanes: those of one lane one after the other in the order given, so that what they add up does not
depend on timing. The lanes are shared out among the threads, those that took longest so far first. Where there is one
lane only, on a GPU, or where torch may use one thread only, a call is made at once.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

import torch

MAX_THREADS = 4
MAX_WAITING = 8  # calls, whose states stay in memory

Call = Callable[[], object]


@functools.cache
def executor(_index: int) -> ThreadPoolExecutor:
    """One thread that computes alone. torch keeps the number of threads per thread, and for threads to come."""
    num_threads = torch.get_num_threads()
    found = ThreadPoolExecutor(1, thread_name_prefix="alignment")
    found.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(num_threads)
    return found


class Lanes:
    """`wait` before what the calls read may change, or what they write is read. One thread at a time may use it."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, list[Call]] = {}
        self._seconds: dict[Hashable, float] = {}

    def run(self, lane: Hashable, device: torch.device, call: Callable[..., object], *arguments: object) -> None:
        """Raises what a call raised, which may be an earlier one."""
        if device.type != "cpu" or torch.get_num_threads() == 1:
            call(*arguments)
            return
        self._seconds.setdefault(lane, 0.0)
        if len(self._seconds) == 1:
            call(*arguments)
            return
        self._calls.setdefault(lane, []).append(functools.partial(call, *arguments))
        if sum(map(len, self._calls.values())) >= MAX_WAITING:
            self.wait()

    def wait(self) -> None:
        """Makes what calls there are; a lane ends where one fails. Raises what one that failed raised."""
        calls, self._calls = self._calls, {}
        waiting = deque(sorted(calls.items(), key=lambda item: -self._seconds[item[0]]))
        num = min(MAX_THREADS, torch.get_num_threads(), len(waiting))
        made = [executor(index).submit(self._share, waiting) for index in range(num)]
        failed = [error for error in [one.exception() for one in made] if error is not None]
        if failed:
            raise failed[0]

    def _share(self, waiting: deque[tuple[Hashable, list[Call]]]) -> None:
        """One thread's: lane by lane while there are any."""
        while waiting:
            try:
                lane, calls = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            start = time.perf_counter()
            for call in calls:
                call()
            self._seconds[lane] += time.perf_counter() - start

    def drop(self) -> None:
        """What an interrupted pass left does not count."""
        self._calls = {}
