"""Accidents that a child of the launcher has (see `launcher.Launcher.start`, patch=)."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
import traceback
from typing import Any

from launcher import find


def before(dotted: str, call: int, accident: Any) -> None:
    owner, name = find(dotted)
    original, calls = getattr(owner, name), 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            accident()
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def pull_the_plug() -> None:
    raise RuntimeError("the plug was pulled")


def pull_the_plug_at_the_end(*_: object) -> None:
    pull_the_plug()


def fail_at_step_6() -> None:
    before("ima.pipeline.callbacks.StepRecorder.on_train_batch_end", 6, pull_the_plug)


def fail_in_the_last_scoring() -> None:
    before("ima.pipeline.evaluator.Evaluator.prior", 1, pull_the_plug)


def press_control_c() -> None:
    raise KeyboardInterrupt


def interrupt_at_step_6() -> None:
    before("ima.pipeline.callbacks.StepRecorder.on_train_batch_end", 6, press_control_c)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_the_disk_at_the_second_checkpoint() -> None:
    """Once: what is written afterwards (that the run failed) finds room again."""
    import ima.pipeline.checkpoint

    original, num = ima.pipeline.checkpoint.save_checkpoint, 0

    def save(checkpoint: Any, path: Any) -> None:
        nonlocal num
        num += 1
        if num == 2:
            before("ima.core.files.os.fsync", 1, fill_the_disk)
        original(checkpoint, path)

    ima.pipeline.checkpoint.save_checkpoint = save


def refuse_the_network() -> None:
    """Every connection but to this machine fails at once and is written down in $REFUSED."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            note(f"connect {address}")
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the test refuses the network")
        return original(self, address)

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in (None, "127.0.0.1", "::1", "localhost", b"localhost"):
            note(f"resolve {host}")
            raise socket.gaierror(socket.EAI_AGAIN, "the test refuses the network")
        return resolve(host, *args, **kwargs)

    socket.socket.connect = connect  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = getaddrinfo


def note(what: str) -> None:
    if path := os.environ.get("REFUSED"):
        with open(path, "a") as file:
            file.write(what + "\n")
            traceback.print_stack(file=file)


def wait_for_the_epoch_before() -> None:
    """An epoch is measured when the file $SEEN holds the number of the one before: somebody has seen it."""
    owner, name = find("ima.pipeline.moments.Measurements.on_validation_start")
    original = getattr(owner, name)

    def patched(self: Any, trainer: Any, module: Any) -> Any:
        end = time.monotonic() + 60
        while str(trainer.current_epoch) not in seen():
            assert time.monotonic() < end, f"nobody has seen epoch {trainer.current_epoch}"
            time.sleep(0.05)
        return original(self, trainer, module)

    setattr(owner, name, patched)


def seen() -> list[str]:
    try:
        with open(os.environ["SEEN"]) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def die_when_mirrored() -> None:
    """SIGKILL at the sixth step, when something was noted in the file $MIRROR."""

    def die() -> None:
        end = time.monotonic() + 60
        while not os.path.exists(os.environ["MIRROR"]) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    before("ima.pipeline.callbacks.StepRecorder.on_train_batch_end", 6, die)
