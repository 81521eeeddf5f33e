"""Compiled blocks are the stock blocks: outputs and gradients, whoever looks; and a step that never asks the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ima.core.errors import UserError
from ima.core.types import Role, Site
from ima.models.llm import compiled
from ima.models.llm.compile_keys import check_compile
from ima.models.llm.compiled import CompiledBlocks
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.positions import bucket, causal_mask
from ima.models.llm.sites import observe
from ima.models.llm.tiny import FAMILY_NAMES

BACKEND = "aot_eager"  # torch's whole road but the code generator, which takes a minute


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    compiled.compiled.cache_clear()
    torch._dynamo.reset()


def batch(llm: FrozenLLM, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BSD = torch.randn(len(lengths), max(lengths), llm.width, generator=generator)
    real_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return x_BSD, torch.where(real_BS, int(Role.PERCEPT), int(Role.PAD))


def run(llm: FrozenLLM, x_BSD: Tensor, roles_BS: Tensor) -> list[Tensor]:
    """Output and gradient of the real positions."""
    x_BSD = x_BSD.clone().requires_grad_()
    real_BS = roles_BS != Role.PAD
    h_ND = llm(x_BSD, roles_BS)[real_BS]
    (grad_BSD,) = torch.autograd.grad((h_ND**2).sum(), x_BSD)
    return [h_ND.detach(), grad_BSD[real_BS]]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_compiled_blocks_give_the_stock_blocks_outputs_and_gradients(family: str) -> None:
    llm = tiny(family)
    x_BSD, roles_BS = batch(llm, [12, 9])
    stock = run(llm, x_BSD, roles_BS)
    with CompiledBlocks(llm, backend=BACKEND) as blocks:
        found = run(llm, x_BSD, roles_BS)
    assert blocks.reason == ""
    torch.testing.assert_close(found, stock, rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(block) for block in llm.table.blocks) and not llm.compiling


def test_equal_blocks_share_one_graph_and_a_length_makes_one_more() -> None:
    llm, counter = tiny(num_blocks=4), CompileCounterWithBackend(BACKEND)
    blocks: Any = CompiledBlocks(llm, backend=counter)
    with blocks:
        for lengths, graphs in (([12, 9], 1), ([12, 12], 1), ([16, 9], 2), ([12, 9], 2)):
            run(llm, *batch(llm, lengths))
            assert counter.frame_count == graphs


@pytest.mark.parametrize("site", [Site.SA, Site.FC1, Site.RESID_POST])
def test_who_looks_sees_what_stock_blocks_show(site: Site) -> None:
    llm = tiny()
    x_BSD, roles_BS = batch(llm, [12, 9])
    seen: list[Tensor] = []
    with torch.no_grad(), observe(llm.table.place(1, site), lambda x: seen.append(x.clone())):
        llm(x_BSD, roles_BS)
        with CompiledBlocks(llm, backend=BACKEND) as blocks:
            llm(x_BSD, roles_BS)
    real_BS = roles_BS != Role.PAD
    torch.testing.assert_close(seen[1][real_BS], seen[0][real_BS], rtol=1e-5, atol=1e-5)
    assert blocks.reason == "" and len(seen) == 2


def test_a_hook_that_changes_values_inside_acts() -> None:
    llm = tiny()
    x_BSD, roles_BS = batch(llm, [12, 9])
    handle = llm.table.blocks[1].mlp.register_forward_hook(lambda _m, _a, out: out * 0)  # type: ignore[union-attr, operator]
    stock = run(llm, x_BSD, roles_BS)
    with CompiledBlocks(llm, backend=BACKEND):
        torch.testing.assert_close(run(llm, x_BSD, roles_BS), stock, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert not torch.allclose(run(llm, x_BSD, roles_BS)[0], stock[0], atol=1e-2)


@pytest.mark.parametrize("train", ["lora", "all"])
def test_gradients_of_an_llm_that_learns_are_the_stock_ones(train: Any) -> None:
    llm = tiny(train=train, seed=1)
    x_BSD, roles_BS = batch(llm, [12, 9])
    real_BS = roles_BS != Role.PAD
    learning = [p for p in llm.parameters() if p.requires_grad and p is not llm.model.get_input_embeddings().weight]
    if train == "lora":  # B starts at zero
        for index, parameter in enumerate(learning):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad((llm(x_BSD, roles_BS)[real_BS] ** 2).sum(), learning, allow_unused=True)

    stock = gradients()
    with CompiledBlocks(llm, backend=BACKEND) as blocks:
        found = gradients()
    assert blocks.reason == "" and sum(grad is not None for grad in stock) > 10
    torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-4)


def test_where_nothing_can_be_compiled_one_line_says_so_and_the_numbers_are_the_stock_ones() -> None:
    llm = tiny()
    x_BSD, roles_BS = batch(llm, [12, 9])
    stock = run(llm, x_BSD, roles_BS)

    def broken(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nsecond line")

    blocks: Any = CompiledBlocks(llm, backend=broken)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as said, blocks:
        warnings.simplefilter("always")
        found = [run(llm, x_BSD, roles_BS) for _ in range(2)][-1]
    torch.testing.assert_close(found, stock, rtol=1e-5, atol=1e-5)
    lines = [str(one.message) for one in said if "llm.compile" in str(one.message)]
    assert len(lines) == 1 and "no compiler here" in lines[0] and "\n" not in lines[0]


def test_buckets_cover_every_length_and_waste_little() -> None:
    for length in range(1, 3000):
        found = bucket(length)
        assert length <= found < length + 8 or found <= length * 1.14
        assert bucket(found) == found and bucket(length, 3000) == min(found, 3000)
    assert len({bucket(length) for length in range(1, 2049)}) <= 56


def test_the_mask_is_causal_hides_padding_and_leaves_no_row_empty() -> None:
    pad, real = int(Role.PAD), int(Role.PROMPT)
    roles_BS = torch.tensor([[real, real, pad], [pad, real, real]])
    see = causal_mask(roles_BS)[:, 0].int().tolist()
    assert see == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [0, 1, 0], [0, 1, 1]]]


@pytest.mark.parametrize(("value", "budget", "wrong"), [
    ("often", 1.0, "llm.compile: 'often' is not one of auto, true, false"),
    ("auto", 1.5, "llm.activation_budget: 1.5 is not between 0 and 1"),
    (False, 0.5, "llm.activation_budget: 0.5 needs compiled blocks, and llm.compile is false"),
])  # fmt: skip
def test_values_that_mean_nothing_are_one_line(value: Any, budget: float, wrong: str) -> None:
    with pytest.raises(UserError) as found:
        check_compile(value, budget)
    assert str(found.value) == wrong
    assert (check_compile(True, 0.5), check_compile("auto", 1.0)) == (True, "auto")
