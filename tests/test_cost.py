"""The analytic FLOPs of every plan are those that PyTorch counts while the plan runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_skipping import FAMILIES, S0, P, Q, make, states
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ima.interventions import Intervention, stack
from ima.interventions.cost import Flops, decode, prefill
from ima.interventions.drop import Drop
from ima.interventions.entropy import Entropy
from ima.interventions.exit import Exit
from ima.interventions.isolate import Isolate
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.skip import Skip
from ima.llm.frozen import FrozenLLM, Generation

TOKENS = {"percept": 8, "special": 1, "prompt": 4}
PLANS: dict[str, Callable[[], list[Any]]] = {
    "nothing": lambda: [],
    "ffn": lambda: [Skip("ffn", start=1)],
    "attn": lambda: [Skip("attn", start=1)],
    "block": lambda: [Skip("block", start=0, every=2)],
    "half": lambda: [Skip("block", start=1, ratio=0.5, select="first")],
    "last": lambda: [Skip("ffn", ("text",), start=1, ratio=0.5, select="last", phase="prefill")],
    "hidden": lambda: [Skip("block", start=1, visibility="hidden")],
    "hidden attention": lambda: [Skip("attn", start=1, visibility="hidden")],
    "everybody": lambda: [Skip("block", ("all",), blocks=[1])],
    "decoded": lambda: [Skip("ffn", ("all",), start=1, phase="decode")],
    "two": lambda: [Skip("ffn", start=0), Skip("attn", ("percept",), start=1, ratio=0.5, select="first")],
    "drop": lambda: [Drop(2), Skip("ffn", start=0)],
    "exit": lambda: [Exit(0)],
    "exit percept": lambda: [Exit(1, "percept")],
    "exit last": lambda: [Exit(0, "last")],
    "merge": lambda: [Merge(start=1), Skip("ffn", start=0)],
    "isolate": lambda: [Isolate(2)],
}


def counted(patch: pytest.MonkeyPatch, llm: FrozenLLM, plan: list[Intervention], num_tokens: int) -> tuple[float, int]:
    """FLOPs of greedy decoding of a batch of two alike, per example, and how many passes it was."""
    order = [P] * TOKENS["percept"] + [S0] * TOKENS["special"] + [Q] * TOKENS["prompt"]
    roles = torch.tensor([order] * 2)
    x = states(llm, roles[:1]).repeat(2, 1, 1)
    passes: list[int] = []
    patch.setattr(llm, "eos_id", -1)  # nothing ends early
    with stack(llm, plan), sdpa_kernel(SDPBackend.MATH):
        handle = llm.model.register_forward_hook(lambda *_: passes.append(1))
        with FlopCounterMode(display=False) as counter:
            llm.generate(x, roles, Generation(num_tokens), ["a", "b"])
        handle.remove()
    return counter.get_total_flops() / 2, len(passes)


def total(parts: list[Flops]) -> float:
    return sum((part.total for part in parts), 0.0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_flops_of_a_plan_are_those_that_are_counted(
    family: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, made = make(family), PLANS[plan]()
    found, passes = counted(monkeypatch, llm, made, 1)
    assert passes == 1
    length = sum(TOKENS.values())
    assert found == total(prefill(llm, made, TOKENS))
    more, passes = counted(monkeypatch, llm, made, 4)
    assert passes == 4
    steps = [total(decode(llm, made, length + step)) for step in range(passes - 1)]
    assert more - found == sum(steps)


@pytest.mark.parametrize("plan", ["parallel", "entropy that skips nothing"])
@torch.no_grad()
def test_changes_that_save_nothing_cost_what_is_counted(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make("llama")
    made: list[Intervention] = [Parallel(start=0)] if plan == "parallel" else [Entropy(0.0, start=1)]
    assert counted(monkeypatch, llm, made, 1)[0] == total(prefill(llm, made, TOKENS))


@torch.no_grad()
def test_half_of_the_decoded_tokens_by_chance_is_half_the_ffn() -> None:
    llm = make("llama")
    plain, half = (decode(llm, plan, 9) for plan in ([], [Skip("ffn", ("answer",), start=1, ratio=0.5)]))
    assert [part.ffn for part in half[:3]] == [plain[0].ffn, plain[1].ffn / 2, plain[2].ffn / 2]
