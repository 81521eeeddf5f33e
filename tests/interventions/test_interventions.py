"""Skipping equals its definition, written out by hand on the stock blocks; leaving restores every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

PARTS = ("ffn", "attn", "block")
P, Q, A, S0, PAD = (int(role) for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD))
# Two examples: text, picture, text; the second is padded on the right.
ROLES = torch.tensor([[S0, Q, P, P, P, Q, A, A], [Q, P, P, Q, A, A, PAD, PAD]])


@pytest.fixture(scope="module", params=["llama", "opt", "gemma3", "gpt_neox"])
def llm(request: pytest.FixtureRequest) -> FrozenLLM:
    return FrozenLLM(tiny_model(request.param, seed=2), tiny_tokenizer())


def states(llm: FrozenLLM) -> Tensor:
    return torch.randn(*ROLES.shape, llm.width, generator=torch.Generator().manual_seed(0)) * llm.embedding_norm / 6


def parts_of(layer: Any) -> tuple[Callable[[Tensor, Callable[..., Tensor]], Tensor], Callable[[Tensor], Tensor]]:
    """What attention and FFN of a block add to the residual, as its paper says: (x, attend) -> added, x -> added."""
    match type(layer).__name__:
        case "LlamaDecoderLayer":
            return (
                lambda x, attend: attend(layer.self_attn, layer.input_layernorm(x)),
                lambda x: layer.mlp(layer.post_attention_layernorm(x)),
            )
        case "Gemma3DecoderLayer":
            return (
                lambda x, attend: layer.post_attention_layernorm(attend(layer.self_attn, layer.input_layernorm(x))),
                lambda x: layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x))),
            )
        case "OPTDecoderLayer":
            return (
                lambda x, attend: attend(layer.self_attn, layer.self_attn_layer_norm(x)),
                lambda x: layer.fc2(torch.relu(layer.fc1(layer.final_layer_norm(x)))),
            )
        case "GPTNeoXLayer":
            return (
                lambda x, attend: attend(layer.attention, layer.input_layernorm(x)),
                lambda x: layer.mlp(layer.post_attention_layernorm(x)),
            )
    raise AssertionError(type(layer).__name__)


def slow_twin(llm: FrozenLLM, x: Tensor, part: str, blocks: list[int], skipped: Tensor) -> Tensor:
    """Block by block: the stock layer is called with whatever state enters it, only to hear how its attention is
    called (mask, rotation); the residual stream is then put together by hand from the two parts."""
    calls: dict[int, dict[str, Any]] = {}
    entering: list[Tensor] = []
    handles = []
    for index, layer in enumerate(llm.table.blocks):
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attn

        def hear(_m: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            calls[index] = {key: value for key, value in kwargs.items() if key != "hidden_states"}

        handles.append(attention.register_forward_pre_hook(hear, with_kwargs=True))
    first = llm.table.blocks[0]
    handles.append(
        first.register_forward_pre_hook(
            lambda _m, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    llm(x, ROLES)
    for handle in handles:
        handle.remove()
    h = entering[0]
    for index, layer in enumerate(llm.table.blocks):
        attention_adds, ffn_adds = parts_of(layer)
        kwargs = calls[index]

        def attend(module: Any, normed: Tensor, kwargs: dict[str, Any] = kwargs) -> Tensor:
            found: Tensor = module(hidden_states=normed, **kwargs)[0]
            return found

        keep = ~(skipped if index in blocks else torch.zeros_like(skipped))[..., None]
        if part == "block":
            keep_attention = keep_ffn = keep
        else:
            ones = torch.ones_like(keep)
            keep_attention, keep_ffn = (ones, keep) if part == "ffn" else (keep, ones)
        mid = h + attention_adds(h, attend) * keep_attention
        parallel = type(layer).__name__ == "GPTNeoXLayer"
        h = mid + ffn_adds(h if parallel else mid) * keep_ffn
    base: Any = getattr(llm.model.base_model, "decoder", llm.model.base_model)
    last = base.norm if hasattr(base, "norm") else base.final_layer_norm
    out: Tensor = last(h)
    return out


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("roles", [("percept",), ("percept", "answer")])
@torch.no_grad()
def test_skipping_equals_its_definition(llm: FrozenLLM, part: str, roles: tuple[str, ...]) -> None:
    x = states(llm)
    skip = Skip(part, roles, start=1)  # type: ignore[arg-type]
    skipped = (ROLES == P) | ((ROLES == A) if "answer" in roles else torch.zeros_like(ROLES, dtype=torch.bool))
    with skip.apply(llm):
        found = llm(x, ROLES)
    expected = slow_twin(llm, x, part, [1, 2], skipped)
    real = ROLES != PAD
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)
    plain = llm(x, ROLES)
    assert not torch.allclose(found[real], plain[real], atol=1e-3), "nothing was skipped"


@torch.no_grad()
def test_the_slow_twin_without_a_skip_is_the_stock_model(llm: FrozenLLM) -> None:
    x, real = states(llm), ROLES != PAD
    twin = slow_twin(llm, x, "ffn", [], torch.zeros_like(real))
    torch.testing.assert_close(twin[real], llm(x, ROLES)[real], rtol=1e-4, atol=1e-4)


def hooks_of(llm: FrozenLLM) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [id(hook) for module in llm.modules() for kind in kinds for hook in vars(module)[kind].values()]


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_leaving_restores_every_bit_and_no_hook_stays(llm: FrozenLLM, part: str) -> None:
    x, before = states(llm), hooks_of(llm)
    plain = llm(x, ROLES)
    with Skip(part, start=0).apply(llm):  # type: ignore[arg-type]
        changed = llm(x, ROLES)
    assert not torch.equal(changed, plain)
    with pytest.raises(RuntimeError, match="halfway"), Skip(part, start=0).apply(llm):  # type: ignore[arg-type]
        raise RuntimeError("halfway")
    assert hooks_of(llm) == before
    assert torch.equal(llm(x, ROLES), plain)


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_text_before_the_first_picture_token_is_untouched(llm: FrozenLLM, part: str) -> None:
    x = states(llm)
    plain = llm(x, ROLES)
    with Skip(part, start=0).apply(llm):  # type: ignore[arg-type]
        changed = llm(x, ROLES)
    for row, first in ((0, 2), (1, 1)):
        assert torch.equal(changed[row, :first], plain[row, :first])
        assert not torch.equal(changed[row, first], plain[row, first])


@torch.no_grad()
def test_nothing_stacked_is_the_identity_bit_for_bit(llm: FrozenLLM) -> None:
    x, before = states(llm), hooks_of(llm)
    plain = llm(x, ROLES)
    with stack(llm, []):
        assert hooks_of(llm) == before
        assert torch.equal(llm(x, ROLES), plain)


@torch.no_grad()
def test_stacked_interventions_all_act_and_all_leave(llm: FrozenLLM) -> None:
    x, before = states(llm), hooks_of(llm)
    with stack(llm, [Skip("attn", start=0), Skip("ffn", start=0)]):
        both = llm(x, ROLES)
    if llm.table.family.parallel:
        with Skip("block", start=0).apply(llm):
            torch.testing.assert_close(both, llm(x, ROLES), rtol=1e-5, atol=1e-5)
    else:
        with stack(llm, [Skip("block", start=0)]):
            torch.testing.assert_close(both, llm(x, ROLES), rtol=1e-5, atol=1e-5)
    assert hooks_of(llm) == before


@pytest.mark.parametrize("kwargs", [{"start": 3}, {"start": 0, "stop": 4}, {"start": 2, "stop": 2}])
def test_blocks_out_of_range_are_refused_before_anything_is_changed(llm: FrozenLLM, kwargs: dict[str, int]) -> None:
    before = hooks_of(llm)
    with pytest.raises(UserError, match=r"start=\d.*<= 3"), Skip(**kwargs).apply(llm):  # type: ignore[arg-type]
        pass
    assert hooks_of(llm) == before


def test_an_unknown_role_group_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="percept"):
        Skip(roles=("percpt",))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("length", [1, 3])
@torch.no_grad()
def test_decoding_skips_what_whole_passes_skip(llm: FrozenLLM, part: str, length: int) -> None:
    """Generated tokens are not percepts; a picture of one token alone is."""
    x = states(llm)[:1, 2 : 2 + length]
    roles = torch.full((1, length), P)
    with Skip(part, ("percept",), start=0).apply(llm):  # type: ignore[arg-type]
        (found,) = llm.generate(x, roles, Generation(3))
        expected: list[int] = []
        for _ in range(3):
            h = llm(x, roles)
            expected.append(int(llm.logits(h[:, -1]).argmax()))
            x = torch.cat([x, llm.embed(torch.tensor([[expected[-1]]]))], dim=1)
            roles = torch.cat([roles, torch.tensor([[int(Role.GENERATED)]])], dim=1)
    assert llm.eos_id not in expected
    assert found == expected


@pytest.mark.parametrize("part", PARTS)
def test_an_llm_that_norms_its_stream_has_nothing_to_skip(part: str) -> None:
    llm = FrozenLLM(tiny_model("opt_350m"), tiny_tokenizer(), name="opt-350m")
    with pytest.raises(UserError, match="opt-350m norms its stream"), Skip(part, start=1).apply(llm):  # type: ignore[arg-type]
        pass
