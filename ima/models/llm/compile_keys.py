"""What `llm.compile` and `llm.activation_budget` may be, and the one line where nothing can be compiled."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

from ima.core.errors import UserError

Compile = Literal["auto", True, False]


def check_compile(compile: Compile, budget: float) -> Compile:
    """Raises UserError for values that mean nothing, alone or together."""
    if compile not in get_args(Compile):
        raise UserError(f"llm.compile: {compile!r} is not one of auto, true, false")
    if not 0 <= budget <= 1:
        raise UserError(f"llm.activation_budget: {budget} is not between 0 and 1")
    if budget < 1 and compile is False:
        raise UserError(f"llm.activation_budget: {budget} needs compiled blocks, and llm.compile is false")
    return compile


def compile_failures() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile; a mistake in the model itself is none of them."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def warn_uncompiled(what: str, error: Exception) -> str:
    """Says so in one line; the reason."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    warnings.warn(
        f"llm.compile: {what} cannot be compiled here ({reason[:200]}); this run goes on without, "
        "llm.compile=false says the same without trying",
        stacklevel=3,
    )
    return reason
