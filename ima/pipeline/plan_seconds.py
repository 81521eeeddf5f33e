"""What a plan saves in seconds, for the examples that are measured: with and without it in turns, on this machine.

Timed are the prompt's pass of one batch and its whole generation, as an evaluation runs them; not the entering and
leaving of the plan, which an evaluation does once, nor the packing of weights that a mask has changed.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ima.core.timing import ratio, rounds
from ima.core.types import Batch
from ima.interventions.base import Intervention
from ima.interventions.stack import stack
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.multimodal import MultimodalModel

NUM_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Passes:
    """What is timed: the pass over the prompts of one batch, and its whole generation. first: what is run before each,
    untimed, as it packs weights that the plan has changed."""

    first: Callable[[], object]
    prefill: Callable[[], object]
    generate: Callable[[], object]


def plan_seconds(
    model: MultimodalModel, interventions: Sequence[Intervention], batch: Batch, settings: Generation, fast: bool,
    num_rounds: int = NUM_ROUNDS,
) -> dict[str, Any]:  # fmt: skip
    """Seconds per example (medians after a warm-up round) of a prompt-only `batch` under the plan and without it.
    `left`: median over rounds of plan / unskipped for the prompt's pass, with quartiles; `generate_left`: of all."""
    model.eval()
    x_BSD, roles_BS, _ = model.splice(batch.to(model.device), left=True)
    ids = [sample.id for sample in batch.samples]
    quick: AbstractContextManager[object] = nullcontext()
    if fast:
        quick = accelerate(model.llm.model)  # keeps its packed weights from turn to turn
    passes = Passes(
        lambda: model.llm(x_BSD[:1], roles_BS[:1], ids[:1]),
        lambda: model.llm(x_BSD, roles_BS, ids),
        lambda: model.llm.generate(x_BSD, roles_BS, settings, ids),
    )
    return time_passes(model.llm, interventions, passes, len(batch), quick, num_rounds)


def time_passes(
    llm: FrozenLLM, interventions: Sequence[Intervention], passes: Passes, num_examples: int,
    quick: AbstractContextManager[object] | None = None, num_rounds: int = NUM_ROUNDS,
) -> dict[str, Any]:  # fmt: skip
    def done() -> float:
        """The time, once the device has done what it was told."""
        if llm.device.type == "cuda":
            torch.cuda.synchronize(llm.device)
        return time.perf_counter()

    def under(changes: Sequence[Intervention], work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            with torch.no_grad(), stack(llm, changes), quick or nullcontext():
                passes.first()
                start = done()
                work()
                return done() - start

        return run

    seconds: dict[str, list[float]] = {}
    turns_of = (("prefill", passes.prefill, num_rounds), ("generate", passes.generate, (num_rounds + 1) // 2))
    for name, work, num in turns_of:
        turns = {name: under(interventions, work), f"{name}_unskipped": under([], work)}
        seconds |= rounds(turns, num, f"time the plan, {name}")
    found: dict[str, Any] = {name: statistics.median(values) / num_examples for name, values in seconds.items()}
    middle, low, high = ratio(seconds, "prefill", "prefill_unskipped")
    found |= {"left": middle, "left_quartiles": [low, high]}
    found["generate_left"] = ratio(seconds, "generate", "generate_unskipped")[0]
    return found | {"unit": "seconds per example", "batch_size": num_examples, "num_rounds": num_rounds}


def say_seconds(found: dict[str, Any]) -> None:
    low, high = found["left_quartiles"]
    print(
        f"measured: the prompt's pass takes {1000 * found['prefill']:.3g} ms an example, {100 * found['left']:.0f} % "
        f"[{100 * low:.0f}, {100 * high:.0f}] of unskipped; with its answer {1000 * found['generate']:.3g} ms, "
        f"{100 * found['generate_left']:.0f} %"
    )
