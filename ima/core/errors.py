"""The one exception that a person is meant to read.

A `UserError` is a mistake in a config, a file or the environment: one line that says which key or file, what was
found, what is allowed and what to do. The scripts print it without a traceback and exit with 2. Mistakes of the
program itself stay assertions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can mend; `str(error)` is one line."""


def memory_line(error: BaseException) -> str | None:
    """The line for a person whose machine or GPU has no memory left; None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "this machine is out of memory; lower loader.batch_size or loader.eval_batch_size"
    signs = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    if isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in signs)
    ):
        return (
            "the accelerator is out of memory; lower loader.batch_size or loader.eval_batch_size, or see whether "
            "another program is using it"
        )
    return None


def nearest(name: str, allowed: Iterable[str], num: int = 3) -> str:
    """'did you mean a, b?' plus all allowed names; for the tail of an error message."""
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(name, allowed, n=num, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"


@contextmanager
def prefix_errors(key: str) -> Iterator[None]:
    """What is refused inside becomes a line that begins with the key; `name: ...` is about the key's `name`."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if message.startswith(key):
            raise
        names = message.partition(":")[0].replace(".", "_").isidentifier()
        raise UserError(f"{key}.{message}" if names else f"{key}: {message}") from error
