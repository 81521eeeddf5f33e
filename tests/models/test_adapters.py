"""Adapters: shapes, published sizes and names, the start at the embeddings' norm, pooling, independence in a batch."""

from __future__ import annotations

import pytest
import torch

from ima.core.errors import UserError
from ima.models.adapters.base import Adapter
from ima.models.adapters.linear import LinearAdapter, MlpAdapter, PoolAdapter
from ima.models.adapters.query import PerceiverAdapter, QueryAdapter

KINDS = {
    "linear": LinearAdapter,
    "mlp": MlpAdapter,
    "linear norm": lambda dim, width: LinearAdapter(dim, width, norm=True),
    "mlp norm": lambda dim, width: MlpAdapter(dim, width, norm=True),
    "query": lambda dim, width: QueryAdapter(dim, width, num_tokens=3, hidden=8, num_blocks=2, num_heads=2, inner=16),
    "perceiver": lambda dim, width: PerceiverAdapter(dim, width, num_tokens=3, hidden=8, num_heads=2, inner=16),
    "pool": lambda dim, width: PoolAdapter(dim, width, grid=2, hidden=24),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def test_a_sequence_is_pooled_in_order_whatever_its_length() -> None:
    adapter = PoolAdapter(4, 8, grid=2, layout="sequence")
    f_BNE = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapter.pool(f_BNE)[:, 1:], f_BNE.unflatten(1, (4, 4)).mean(2))
    with pytest.raises(UserError, match="15 encoder tokens form no square"):
        PoolAdapter(4, 8, layout="grid").pool(torch.zeros(1, 15, 4))


def make(kind: str, dim: int = 12, width: int = 20) -> Adapter:
    torch.manual_seed(0)
    return KINDS[kind](dim, width)


def features(num: int = 5, tokens: int = 9, dim: int = 12) -> torch.Tensor:
    return torch.randn(num, tokens, dim, generator=torch.Generator().manual_seed(1)) * 3 + 1


@kinds
@pytest.mark.parametrize("tokens", [1, 9, 10, 7])
def test_output_has_the_promised_shape(kind: str, tokens: int) -> None:
    adapter = make(kind)
    out = adapter(features(tokens=tokens))
    assert out.shape == (5, adapter.num_tokens or tokens, 20) and out.dtype == torch.float32
    assert bool(torch.isfinite(out).all())


def count(adapter: Adapter) -> int:
    return sum(p.numel() for p in adapter.parameters())


@pytest.mark.parametrize(("dim", "number"), [(1024, 7_362_048), (768, 6_182_144)])
def test_query_has_the_published_number_of_parameters(dim: int, number: int) -> None:
    assert count(QueryAdapter(dim, 4096)) == number


def test_query_has_the_published_names() -> None:
    layer = ["self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight",
             "self_attn.out_proj.bias"]  # fmt: skip
    layer += [f"{name}.{kind}" for name in ("linear1", "linear2", "norm1", "norm2") for kind in ("weight", "bias")]
    outer = [f"{name}.{kind}" for name in ("down", "up", "proj") for kind in ("weight", "bias")]
    expected = {"const", *outer, *(f"trans.layers.{index}.{name}" for index in range(5) for name in layer)}
    assert set(QueryAdapter(1024, 4096).state_dict()) == expected


def test_the_blocks_of_query_start_from_different_weights() -> None:
    first, second = make("query").trans.layers[:2]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@kinds
@pytest.mark.parametrize("target", [0.5, 3.0, 40.0])
def test_the_start_brings_the_mean_norm_to_the_target_and_changes_values_only(kind: str, target: float) -> None:
    adapter, f_BNE = make(kind), features()
    keys = {key: value.shape for key, value in adapter.state_dict().items()}
    before = float(adapter(f_BNE).detach().norm(dim=-1).mean())
    assert adapter.start_at_norm(f_BNE, target) == pytest.approx(before)
    assert float(adapter(f_BNE).detach().norm(dim=-1).mean()) == pytest.approx(target, rel=1e-5)
    assert {key: value.shape for key, value in adapter.state_dict().items()} == keys
    assert all(p.requires_grad for p in adapter.parameters())


@pytest.mark.parametrize("kind", ["linear norm", "mlp norm"])
def test_with_a_norm_the_output_keeps_its_scale_whatever_the_map_becomes(kind: str) -> None:
    adapter, f_BNE = make(kind), features()
    adapter.start_at_norm(f_BNE, 3.0)
    with torch.no_grad():
        adapter.last().weight.mul_(1000.0)
    assert float(adapter(f_BNE).detach().norm(dim=-1).mean()) == pytest.approx(3.0, rel=1e-2)


def cells(f_NE: torch.Tensor, side: int, grid: int) -> torch.Tensor:
    """Averages of the grid's cells, by hand, for sides that the grid divides."""
    step = side // grid
    map_hwE = f_NE.view(side, side, -1)
    return torch.stack(
        [
            map_hwE[y * step : (y + 1) * step, x * step : (x + 1) * step].mean((0, 1))
            for y in range(grid)
            for x in range(grid)
        ]
    )


@pytest.mark.parametrize("cls", [False, True])
def test_pool_averages_a_square_in_its_two_dimensions_without_the_cls_token(cls: bool) -> None:
    f_BNE = features(tokens=36 + cls)
    pooled = make("pool").pool(f_BNE)
    assert pooled.shape == (5, 5, 12)
    torch.testing.assert_close(pooled[:, 0], f_BNE.mean(1))
    torch.testing.assert_close(pooled[2, 1:], cells(f_BNE[2, int(cls) :], 6, 2))


def test_pool_takes_other_numbers_of_tokens_in_their_order() -> None:
    f_BNE = features(tokens=12)
    pooled = make("pool").pool(f_BNE)
    torch.testing.assert_close(pooled[:, 1:], f_BNE.view(5, 4, 3, 12).mean(2))


@kinds
def test_an_output_does_not_depend_on_who_else_is_in_the_batch(kind: str) -> None:
    adapter, f_BNE = make(kind), features(7)
    whole = adapter(f_BNE)
    for size in (1, 2, 3):
        parts = torch.cat([adapter(part) for part in f_BNE.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@kinds
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    adapter = make(kind)
    adapter(features()).square().sum().backward()
    without = [name for name, p in adapter.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


def test_perceiver_tells_the_order_of_tokens_by_their_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, f_BNE = make("perceiver"), features()
    assert (adapter(f_BNE.flip(1)) - adapter(f_BNE)).abs().max() > 1e-2
    monkeypatch.setattr("ima.models.adapters.query.sinusoids", lambda num, width: torch.zeros(num, width))
    torch.testing.assert_close(adapter(f_BNE.flip(1)), adapter(f_BNE), rtol=1e-4, atol=1e-4)


def test_perceiver_refuses_a_width_that_its_heads_do_not_share() -> None:
    with pytest.raises(UserError, match="adapter.hidden: 10"):
        PerceiverAdapter(12, 20, hidden=10, num_heads=4)
