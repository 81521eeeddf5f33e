"""Skips on compiled blocks give what they give on stock blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ima.core.types import Role
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm import compiled
from ima.models.llm.compiled import CompiledBlocks
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny

PLANS = {
    "block": Skip("block", ("percept",), 1),
    "ffn": Skip("ffn", ("percept",), 1),
    "attn": Skip("attn", ("percept",), 1),
    "half first": Skip("block", ("percept",), 1, ratio=0.5, select="first"),
    "all": Skip("block", ("all",), 1, every=2),
    "random half": Skip("block", ("percept",), 1, ratio=0.5),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    compiled.compiled.cache_clear()
    torch._dynamo.reset()


def run(llm: FrozenLLM, lengths: tuple[int, ...] = (12, 11)) -> list[Tensor]:
    """Output and gradient at the real positions."""
    x_BSD = torch.randn(2, 12, llm.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    roles_BS = torch.full((2, 12), int(Role.PROMPT))
    roles_BS[:, :6] = int(Role.PERCEPT)
    roles_BS[torch.arange(12) >= torch.tensor(lengths)[:, None]] = int(Role.PAD)
    real_BS = roles_BS != Role.PAD
    h_ND = llm(x_BSD, roles_BS, ["a", "b"])[real_BS]
    (grad_BSD,) = torch.autograd.grad((h_ND**2).sum(), x_BSD)
    return [h_ND.detach(), grad_BSD[real_BS]]


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_gives_the_same_on_compiled_blocks(name: str, family: str) -> None:
    llm = tiny(family, num_blocks=4)
    with stack(llm, [PLANS[name]]):
        stock = run(llm)
        with CompiledBlocks(llm, backend="aot_eager") as blocks:
            found = run(llm)
        again = run(llm)
    assert blocks.reason == ""
    torch.testing.assert_close(found, stock, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, stock, rtol=0, atol=0)


def test_blocks_that_leave_out_a_whole_role_are_compiled_and_share_one_graph() -> None:
    llm, counter = tiny(num_blocks=5), CompileCounterWithBackend("aot_eager")
    with stack(llm, [PLANS["block"]]), CompiledBlocks(llm, backend=counter):  # type: ignore[arg-type]
        run(llm)
    assert counter.frame_count == 2  # the stock block before the plan's first, and the others
