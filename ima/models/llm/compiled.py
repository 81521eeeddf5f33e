"""The blocks of an LLM compiled one by one by torch.compile: what training on a GPU runs on.

`with CompiledBlocks(llm):` shadows the `forward` of every stock block; leaving, also by an exception, takes it away
again. Blocks of one kind share one compiled function. A call that needs more than the block's output (hooks inside the
block, a KV cache, a replaced forward) runs the stock forward. Where compilation fails everything goes on uncompiled,
with one warning. Each shape is compiled anew, so that sequences are padded to few lengths meanwhile (`bucket` of
`ima.models.llm.positions`), and blocks are handed a mask that needs no look at values (`causal_mask` there): a step
waits for nothing of the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn

from ima.models.llm.compile_keys import compile_failures, warn_uncompiled
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.watchers import OurForward, watched

MAX_GRAPHS = 256  # of one kind of block: shapes, with and without gradients


@functools.cache
def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """One for all blocks of a class. Shapes are never guessed to vary: they are few."""
    found: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=False)
    return found


class PartlyCompiled(Protocol):
    """A `forward` in the place of a block's that lets its inner function be compiled: `wrap` makes another one of it,
    None takes that back."""

    def compile_with(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None) -> None: ...


class CompiledForward(OurForward):
    """Stands in for the `forward` of one block."""

    def __init__(self, layer: nn.Module, blocks: CompiledBlocks) -> None:
        self.layer, self.blocks = layer, blocks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stock = type(self.layer).forward
        run = self.blocks.compiled(stock) if self.fits(kwargs) else stock
        return run(self.layer, *args, **kwargs)

    def fits(self, kwargs: dict[str, Any]) -> bool:
        """Nobody looks inside or changes anything there, and no cache is filled."""
        if kwargs.get("past_key_values") is not None or torch.compiler.is_compiling():
            return False
        return not watched(self.layer)


class CompiledBlocks:
    """Context manager; may be entered again and again. budget: the share of a block's activations that is kept for the
    backward pass, 1 for all; below it torch computes some of them again (its own planner decides which). backend: of
    torch.compile. `reason`: why nothing is compiled any more; empty while all is well."""

    def __init__(self, llm: FrozenLLM, budget: float = 1.0, backend: str = "inductor") -> None:
        self.llm, self.budget, self.backend = llm, budget, backend
        self.reason = ""
        self._stack: ExitStack | None = None

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled; itself where that fails, from then on."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.reason:
                try:
                    return compiled(function, self.backend)(*args, **kwargs)
                except compile_failures() as error:
                    self.reason = warn_uncompiled(f"blocks of {self.llm.name}", error)
            return function(*args, **kwargs)

        return run

    def __enter__(self) -> CompiledBlocks:
        assert self._stack is None, "entered already"
        with ExitStack() as stack:
            import torch._dynamo.config as dynamo
            import torch._functorch.config as functorch

            limits: dict[str, Any] = {"recompile_limit": MAX_GRAPHS, "accumulated_recompile_limit": 8 * MAX_GRAPHS}
            stack.enter_context(dynamo.patch(limits))
            stack.enter_context(functorch.patch(activation_memory_budget=self.budget))
            for layer in self.llm.table.blocks:
                own: Any = vars(layer).get("forward")
                if hasattr(own, "compile_with"):
                    own.compile_with(self.compiled)
                    stack.callback(own.compile_with, None)
                elif own is None:  # somebody else's replacement stays
                    forward: Any = CompiledForward(layer, self)
                    layer.forward = forward
                    stack.callback(vars(layer).pop, "forward", None)
            self.llm.compiling = True
            stack.callback(setattr, self.llm, "compiling", False)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = None
