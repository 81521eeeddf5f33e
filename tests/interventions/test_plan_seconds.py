"""The measured saving of a plan: every number there, nothing left in the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from test_interventions import hooks_of

from ima.core.types import Batch, Role, Sample
from ima.interventions.base import Intervention
from ima.interventions.skip.plan import Skip
from ima.models.adapters.linear import LinearAdapter
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.pass_context import Generation
from ima.models.multimodal import MultimodalModel
from ima.pipeline.plan_seconds import plan_seconds


class SlowToEnter(Intervention):
    """Takes a second of the clock to enter and to leave."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        self.clock[0] += 1000
        yield
        self.clock[0] += 1000


def test_entering_and_leaving_a_plan_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, clock = tiny(num_blocks=2), [0.0]
    module, batch = MultimodalModel(LinearAdapter(4, llm.width), llm), batch_of()
    passed = llm.model.base_model.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1))
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    found = plan_seconds(module, [SlowToEnter(clock)], batch, Generation(2), fast=False, num_rounds=2)
    passed.remove()
    assert found["prefill"] == found["prefill_unskipped"] == 1 / 2  # a pass of two examples
    assert found["left"] == found["generate_left"] == 1


def batch_of() -> Batch:
    ids_BT = torch.tensor([[5, 6, 7], [0, 8, 9]])
    roles_BT = torch.full_like(ids_BT, int(Role.PROMPT))
    roles_BT[1, 0] = int(Role.PAD)
    samples = [Sample(str(i), "val", "V0", "image", ("a",)) for i in range(2)]
    return Batch(samples, ids_BT, roles_BT, torch.full_like(ids_BT, -100), features_BNE=torch.randn(2, 2, 4))


def test_both_ways_are_timed_and_the_model_is_left_as_it_was() -> None:
    llm = tiny(num_blocks=3)
    module = MultimodalModel(LinearAdapter(4, llm.width), llm)
    batch = batch_of()
    before, settings = hooks_of(llm), Generation(2)
    plain = module.generate(batch, settings)
    found = plan_seconds(module, [Skip("block", start=1)], batch, settings, fast=True, num_rounds=3)
    numbers = [found[key] for key in ("prefill", "prefill_unskipped", "generate", "left", "generate_left")]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert found["left_quartiles"][0] <= found["left"] <= found["left_quartiles"][1]
    assert hooks_of(llm) == before and llm.running is None
    assert module.generate(batch, settings) == plain
