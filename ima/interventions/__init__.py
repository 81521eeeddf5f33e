"""Interventions: context managers on a frozen LLM. Entered, they act; left, the model is bit for bit what it was.

`base.Intervention` is what one's own subclasses, `stack.stack` enters several, `flops` and `plan` say what is left.
Nothing is imported before it is used: tables of masks are read where there is no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

NAMES = ("Intervention",)


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return getattr(importlib.import_module("ima.interventions.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
