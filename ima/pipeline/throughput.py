"""How fast a training was: tokens and samples per second, where a step's time went, peak memory, arithmetic.

A callback that marks the beginning and end of each part of a pass. On a GPU the marks are events, which the host does
not wait for before training has ended; on a CPU they are times of the clock. Only passes are timed: what is measured
in between, and the wait after it, are left out.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ima.core.types import Batch, Role
from ima.models.llm.frozen import FrozenLLM

WARM_UP = 2  # passes that are not timed: compilation, first allocations
EVERY_ON_GPU = 8  # passes from one that is timed to the next
PARTS = ("between steps", "encoder", "adapter", "llm forward", "head and loss", "backward", "optimizer")
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}

Mark = Any  # a time in seconds, or a CUDA event


class Throughput(Callback):
    """`facts` after training. Hooks sit on the encoders and on the LLM as a whole, never inside a block."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Mark, Mark]] = []
        self.last: Mark | None = None
        self.timing, self.training = False, False
        self.passes, self.samples = 0, 0
        self.tokens: Tensor | None = None  # on the device
        self.cuda: torch.device | None = None
        self.handles: list[Any] = []

    def mark(self, part: str | None) -> None:
        """The time since the last mark was spent on `part`; None begins anew."""
        if not self.timing:
            return
        now: Mark = time.perf_counter()
        if self.cuda is not None:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        if part is not None and self.last is not None:
            self.spans.append((part, self.last, now))
        self.last = now

    # -- the loop ----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        model = pl_module.model
        self.cuda = model.device if model.device.type == "cuda" else None
        if self.cuda is not None:
            torch.cuda.reset_peak_memory_stats(self.cuda)
        self.handles = [model.llm.register_forward_pre_hook(self._enters_llm)]
        self.handles += [model.llm.register_forward_hook(lambda *_: self._in_training("llm forward"))]
        encoders = model.encoder.values() if isinstance(model.encoder, nn.ModuleDict) else [model.encoder]
        for encoder in encoders:
            if encoder is not None:
                self.handles.append(encoder.register_forward_pre_hook(lambda *_: self._in_training("adapter")))
                self.handles.append(encoder.register_forward_hook(lambda *_: self._in_training("encoder")))

    def _in_training(self, part: str) -> None:
        if self.training:
            self.mark(part)

    def _enters_llm(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.training:
            self.mark("adapter")
            num = (args[1] != int(Role.PAD)).sum()
            self.tokens = num if self.tokens is None else self.tokens + num

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        every = 1 if self.cuda is None else EVERY_ON_GPU
        self.mark("between steps")
        self.timing = self.passes >= WARM_UP and self.passes % every == 0
        if self.timing and self.last is None:
            self.mark(None)
        self.training = True
        self.passes += 1
        self.samples += len(batch.samples)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.mark("head and loss")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.mark("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self.mark("optimizer")
        self.training = False

    def on_validation_start(self, *_: Any) -> None:
        self.last = None

    def on_validation_end(self, *_: Any) -> None:
        self.last = None

    def on_train_epoch_start(self, *_: Any) -> None:
        self.last = None

    def on_fit_end(self, *_: Any) -> None:
        self.remove()

    def remove(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    # -- afterwards --------------------------------------------------------------------------------------------------

    def seconds(self) -> dict[str, float]:
        """By part, summed over the passes that were timed."""
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)
        found = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self.spans:
            found[part] += begin.elapsed_time(end) / 1000 if self.cuda is not None else end - begin
        return found

    def facts(self, llm: FrozenLLM, train_seconds: float, fit_seconds: float, flops_per_token: float | None,
              num_ranks: int = 1) -> dict[str, Any]:  # fmt: skip
        """Of this process's part of the training. flops_per_token: GFLOPs of a forward pass. Other ranks are taken to
        be as fast; the arithmetic is that of the LLM, forward and back (without gradients of frozen weights)."""
        self.remove()
        if not self.passes or train_seconds <= 0:
            return {}
        seconds = self.seconds()
        total, tokens = sum(seconds.values()), int(self.tokens) if self.tokens is not None else 0
        out: dict[str, Any] = {
            "samples_per_second": self.samples * num_ranks / train_seconds,
            "tokens_per_second": tokens * num_ranks / train_seconds,
            "seconds_per_pass": train_seconds / self.passes,
            "shares_of_a_pass": {part: spent / total for part, spent in seconds.items()} if total else {},
            "share_of_measuring": 1 - train_seconds / fit_seconds if fit_seconds else 0.0,
            "peak_memory_bytes": peak_memory(self.cuda),
        }
        if flops_per_token is not None:
            passes = 3 if llm.trains == "all" else 2
            rate = tokens * flops_per_token * 1e9 * passes / train_seconds
            products = product_rate(llm)
            out |= {"tflops": rate / 1e12, "tflops_of_products": products / 1e12, "share_of_products": rate / products}
        return {name: rounded(value) for name, value in out.items()}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def peak_memory(cuda: torch.device | None) -> int:
    """Bytes: of tensors on the GPU, or of the whole process where there is none."""
    if cuda is not None:
        return int(torch.cuda.max_memory_allocated(cuda))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.no_grad()
def product_rate(llm: FrozenLLM, rounds: int = 3) -> float:
    """FLOPs per second of a large matrix product in the LLM's dtype on its device, the best of some."""
    device, best = llm.device, float("inf")
    size = PRODUCT_SIZE.get(device.type, 1024)
    a = torch.ones(size, size, device=device, dtype=llm.dtype)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
