"""The tap on accelerated blocks: it is shown what the stock blocks compute, and who changes something goes first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ima.models.llm.acceleration.blocks as fast_module
from ima.alignment.tap import Tap
from ima.core.types import Role, Site
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.families import TINY
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

FAMILIES = [name for name, family in TINY.items() if family.accelerated]
LENGTH = 9
States = dict[tuple[int, Site], Tensor]


class Keep:
    """A sink that keeps the states of real positions, in the order in which they are shown."""

    def __init__(self) -> None:
        self.states: States = {}

    def begin(self, roles_BS: Tensor, sample_ids: Any) -> None:
        self.real_BS = roles_BS != Role.PAD

    def see(self, layer: int, site: Site, x_BSD: Tensor) -> None:
        assert (layer, site) not in self.states and x_BSD.shape[:2] == self.real_BS.shape and not x_BSD.requires_grad
        self.states[layer, site] = x_BSD[self.real_BS].clone()

    def end(self) -> None: ...


def roles(padding: str) -> Tensor:
    lengths, steps = torch.tensor([LENGTH, LENGTH - 1, 3, 1])[:, None], torch.arange(LENGTH)[None]
    real_BS = {"none": steps < LENGTH + 0 * lengths, "right": steps < lengths, "left": steps >= LENGTH - lengths}[
        padding
    ]
    return torch.where(real_BS, int(Role.PROMPT), int(Role.PAD))


def look(llm: FrozenLLM, roles_BS: Tensor, sites: Any = None, grad: bool = False) -> tuple[States, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_BSD = torch.randn(*roles_BS.shape, llm.width, generator=generator).requires_grad_(grad)
    keep = Keep()
    tap, ids = Tap(llm, [keep], sites or llm.table.sites), ["a", "b", "c", "d"]
    with torch.set_grad_enabled(grad), tap, tap.batch(roles_BS, ids):
        h_BSD = llm(x_BSD, roles_BS)
    return keep.states, h_BSD[roles_BS != Role.PAD]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each block that ran as a node."""
    used: list[int] = []
    node = fast_module.FrozenBlock.apply
    monkeypatch.setattr(fast_module.FrozenBlock, "apply", lambda *args: used.append(1) or node(*args))
    return used


def off(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_of_a_fast_block_is_the_stock_blocks(family: str, padding: str, nodes: list[int]) -> None:
    llm = FrozenLLM(tiny_model(family), tiny_tokenizer())
    stock, stock_h = look(llm, roles(padding))
    with accelerate(llm.model):
        nodes.clear()
        ours, h = look(llm, roles(padding))
    assert len(nodes) == llm.num_blocks == 3
    assert list(ours) == list(stock) and len(stock) == 1 + 3 * len(Site)
    for key, state in stock.items():
        assert off(ours[key], state) < 1e-5, key
    assert off(h, stock_h) < 1e-5


@pytest.mark.parametrize("site", list(Site))
def test_each_site_can_be_looked_at_alone(site: Site, nodes: list[int]) -> None:
    llm = FrozenLLM(tiny_model("llama"), tiny_tokenizer())
    stock = look(llm, roles("right"), [site])[0]
    with accelerate(llm.model):
        nodes.clear()
        ours = look(llm, roles("right"), [site])[0]
    assert len(nodes) == 3 and set(ours) == set(stock)
    assert all(off(ours[key], state) < 1e-5 for key, state in stock.items())


def test_states_add_up_in_bf16_as_those_of_stock_blocks_do() -> None:
    llm = FrozenLLM(tiny_model("llama").bfloat16(), tiny_tokenizer())
    with accelerate(llm.model):
        states = look(llm, roles("right"))[0]
    for layer in range(1, 4):
        assert torch.equal(states[layer, Site.RESID_PRE] + states[layer, Site.SA], states[layer, Site.RESID_MID])
        assert torch.equal(states[layer, Site.RESID_MID] + states[layer, Site.FC2], states[layer, Site.RESID_POST])


def test_where_a_gradient_flows_a_tap_inside_blocks_sees_stock_blocks(nodes: list[int]) -> None:
    llm = FrozenLLM(tiny_model("llama"), tiny_tokenizer())
    stock = look(llm, roles("right"))[0]
    with accelerate(llm.model):
        nodes.clear()
        ours = look(llm, roles("right"), grad=True)[0]
        assert not nodes
        look(llm, roles("right"), [Site.RESID_POST], grad=True)
        assert len(nodes) == 3, "between blocks there is nothing to ask the node for"
    assert all(off(ours[key], state) < 1e-5 for key, state in stock.items())


def test_a_tap_beside_a_change_inside_a_block_sees_the_changed_values(nodes: list[int]) -> None:
    llm = FrozenLLM(tiny_model("llama"), tiny_tokenizer())
    mlp = llm.table.blocks[1].get_submodule("mlp")
    handle = mlp.register_forward_hook(lambda _module, _args, output: 0.5 * output)
    stock = look(llm, roles("right"))[0]
    with accelerate(llm.model):
        nodes.clear()
        ours = look(llm, roles("right"))[0]
        assert len(nodes) == 2
    handle.remove()
    plain = look(llm, roles("right"))[0]
    assert all(off(ours[key], state) < 1e-5 for key, state in stock.items())
    assert off(plain[2, Site.FC2], stock[2, Site.FC2]) > 0.1
