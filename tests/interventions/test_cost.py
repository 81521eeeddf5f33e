"""The analytic FLOPs of every plan are those that PyTorch counts while the plan runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from grids import covering
from test_block_changes import windowed
from test_skipping import FAMILIES, S0, P, Q, make, states
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ima.core.types import Role
from ima.interventions.base import Intervention
from ima.interventions.drop import Drop
from ima.interventions.flops import Flops, decode, prefill
from ima.interventions.isolate import Isolate
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.plan import mean_tokens, plan_facts, plan_of, plan_table
from ima.interventions.skip.engine import Engine
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.exit import Exit
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

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
    patch.setattr(llm, "stop_ids", [-1])  # nothing ends early
    with stack(llm, plan), sdpa_kernel(SDPBackend.MATH):
        handle = llm.model.register_forward_hook(lambda *_: passes.append(1))
        with FlopCounterMode(display=False) as counter:
            llm.generate(x, roles, Generation(num_tokens), ["a", "b"])
        handle.remove()
    return counter.get_total_flops() / 2, len(passes)


def total(parts: list[Flops]) -> float:
    return sum((part.total for part in parts), 0.0)


@pytest.mark.parametrize(("family", "plan"), covering(FAMILIES, PLANS, whole=["llama", "opt", "gpt_neox"], step=4))
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


@torch.no_grad()
def test_a_window_bounds_what_a_decoded_token_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, length = windowed(), sum(TOKENS.values())
    made: list[Intervention] = [Skip("block", start=1, every=2)]
    found, _ = counted(monkeypatch, llm, made, 1)
    assert found == total(prefill(llm, made, TOKENS))
    more, _ = counted(monkeypatch, llm, made, 3)
    assert more - found == sum(total(decode(llm, made, length + step)) for step in range(2))
    last = decode(llm, [], length)
    assert last[5].scores > last[6].scores


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


def test_a_plan_is_told_in_words_and_numbers() -> None:
    llm = FrozenLLM(tiny_model("llama", num_blocks=9), tiny_tokenizer())
    plan: list[Intervention] = [Skip("block", ("percept",), start=2, every=2, ratio=0.5), Drop(8), Isolate(2)]
    text = plan_table(llm, plan_of(llm, plan, TOKENS))
    facts = plan_facts(plan_of(llm, plan, TOKENS))
    rows = {row.split("  ")[0]: row for row in text.splitlines()}
    assert "percept and others apart" in rows["0-1"] and "100.0 %" in rows["0-1"]
    assert "no block for percept: 4 of 8 prompt tokens" in rows["2-6 by 2"]
    assert "as it is" in rows["3-7 by 2"] and "dropped" in rows["8"] and "0.0 %" in rows["8"]
    assert f"{100 * facts['flops']['prefill_left']:.1f} % left" in text
    assert facts["tokens"] == TOKENS and json.loads(json.dumps(facts)) == facts
    assert [said["kind"] for said in facts["interventions"]] == ["skip", "drop", "isolate"]
    assert facts["flops"]["prefill"] == pytest.approx(total(prefill(llm, plan, TOKENS)) / 1e9)
    assert sum(facts["flops"]["prefill_parts"].values()) == pytest.approx(facts["flops"]["prefill"])


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_has_a_table_whose_lines_add_up(plan: str) -> None:
    llm = make("llama")
    text, made = plan_table(llm, plan_of(llm, PLANS[plan](), TOKENS)), PLANS[plan]()
    lines = [line.split() for line in text.splitlines()[1:-2]]
    parts = sum(float(line[-3]) for line in lines)
    assert parts == pytest.approx(total(prefill(llm, made, TOKENS)) / 1e9, rel=1e-3)


def test_an_example_is_typical_of_its_texts() -> None:
    special, prompt = int(Role.SPECIAL), int(Role.PROMPT)
    assert mean_tokens([[special, prompt, prompt], [special] + [prompt] * 5], 49) == {
        "percept": 49, "prompt": 4, "special": 1,
    }  # fmt: skip


def test_an_intervention_of_ones_own_need_only_act() -> None:
    class Scale(Intervention):
        def __init__(self) -> None:
            self.factor = 0.5

        def apply(self, llm: FrozenLLM) -> AbstractContextManager[None]:
            return nullcontext()

    llm = make("llama")
    Scale().check(llm.facts)
    plan = plan_of(llm, [Scale()], TOKENS)
    facts, text = plan_facts(plan), plan_table(llm, plan)
    assert facts["interventions"] == [{"kind": "Scale", "factor": 0.5}]
    assert facts["flops"]["prefill_left"] is None and facts["flops"]["unknown"] == ["Scale"]
    assert "Scale" in text and "unknown of" in text and "100" not in text


def test_a_plan_asks_the_engine_once_for_each_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = Engine.__init__
    monkeypatch.setattr(
        Engine, "__init__", lambda self, *args, **named: (made.append(1), plain(self, *args, **named))[1]
    )
    llm = make("llama")
    plan_table(llm, plan_of(llm, [Skip("ffn", start=1), Skip("attn", start=1)], TOKENS))
    assert len(made) == 2
