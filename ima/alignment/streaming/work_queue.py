"""A queue of calls that worker threads make, one core each.

Calls are collected and made some at a time while the LLM waits, because threads that ran at the same time as the LLM's
own would only take turns with them. Every call has a key. The calls of one key are made one after the other, in the
order in which they were queued, so that what they add up does not depend on timing. Keys are shared out among the
threads, the slowest so far first. Where there is only one key, on a GPU, or where torch may use one thread only, a call
is made at once.
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
    """A worker thread in which torch uses one core. torch keeps that number per thread, and for new threads."""
    num_threads = torch.get_num_threads()
    found = ThreadPoolExecutor(1, thread_name_prefix="alignment")
    found.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(num_threads)
    return found


class WorkQueue:
    """Call `wait` before anything that the calls read may change, and before what they write is read. The queue itself
    may be used by one thread at a time."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, list[Call]] = {}
        self._seconds: dict[Hashable, float] = {}

    def run(self, key: Hashable, device: torch.device, call: Callable[..., object], *arguments: object) -> None:
        """Queue a call, or make it at once. Raises what a call raised, perhaps an earlier call."""
        if device.type != "cpu" or torch.get_num_threads() == 1:
            call(*arguments)
            return
        self._seconds.setdefault(key, 0.0)
        if len(self._seconds) == 1:
            call(*arguments)
            return
        self._calls.setdefault(key, []).append(functools.partial(call, *arguments))
        if sum(map(len, self._calls.values())) >= MAX_WAITING:
            self.wait()

    def wait(self) -> None:
        """Make all queued calls. After a call that fails, the rest of its key is left out, and its error is raised."""
        calls, self._calls = self._calls, {}
        waiting = deque(sorted(calls.items(), key=lambda item: -self._seconds[item[0]]))
        num = min(MAX_THREADS, torch.get_num_threads(), len(waiting))
        made = [executor(index).submit(self._work, waiting) for index in range(num)]
        failed = [error for error in [one.exception() for one in made] if error is not None]
        if failed:
            raise failed[0]

    def _work(self, waiting: deque[tuple[Hashable, list[Call]]]) -> None:
        """What one thread does: key by key, while there are any."""
        while waiting:
            try:
                key, calls = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            start = time.perf_counter()
            for call in calls:
                call()
            self._seconds[key] += time.perf_counter() - start

    def clear(self) -> None:
        """Drop the calls of an interrupted pass."""
        self._calls = {}
