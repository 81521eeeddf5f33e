"""The measured saving of a plan: every number there, nothing left in the model."""

from __future__ import annotations

import math

import torch
from test_interventions import hooks_of

from ima.core.types import Batch, Role, Sample
from ima.interventions.skip.plan import Skip
from ima.models.adapters.linear import LinearAdapter
from ima.models.llm.load import tiny
from ima.models.llm.pass_context import Generation
from ima.models.multimodal import MultimodalModel
from ima.pipeline.plan_seconds import plan_seconds


def test_both_ways_are_timed_and_the_model_is_left_as_it_was() -> None:
    llm = tiny(num_blocks=3)
    module = MultimodalModel(LinearAdapter(4, llm.width), llm)
    ids_BT = torch.tensor([[5, 6, 7], [0, 8, 9]])
    roles_BT = torch.full_like(ids_BT, int(Role.PROMPT))
    roles_BT[1, 0] = int(Role.PAD)
    samples = [Sample(str(i), "val", "V0", "image", ("a",)) for i in range(2)]
    batch = Batch(samples, ids_BT, roles_BT, torch.full_like(ids_BT, -100), features_BNE=torch.randn(2, 2, 4))
    before, settings = hooks_of(llm), Generation(2)
    plain = module.generate(batch, settings)
    found = plan_seconds(module, [Skip("block", start=1)], batch, settings, fast=True, num_rounds=3)
    numbers = [found[key] for key in ("prefill", "prefill_unskipped", "generate", "left", "generate_left")]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert found["left_quartiles"][0] <= found["left"] <= found["left_quartiles"][1]
    assert hooks_of(llm) == before and llm.running is None
    assert module.generate(batch, settings) == plain
