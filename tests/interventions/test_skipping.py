"""Skipped computation is not executed, and is still exactly its definition: every part, choice, phase and visibility,
for every family, in whole passes, cached decoding, beams and training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_interventions import hooks_of, parts_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.skip.engine import Decision, Engine, replay
from ima.interventions.skip.fast_path import run_block
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.families import TINY
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation, PassContext
from ima.models.llm.projections import projections_of
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

P, Q, A, S0, PAD = (int(role) for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD))
ROLES = torch.tensor(
    [
        [S0, Q, P, P, P, P, Q, A, A],
        [P, P, P, P, Q, A, A, PAD, PAD],
        [PAD, PAD, PAD, Q, P, P, P, P, A],
        [P, P, P, P, Q, Q, Q, A, A],
    ]
)
IDS = ["a", "b", "c", "d"]
FAMILIES = [name for name, family in TINY.items() if not family.stream_norms]
DEEP = ["llama", "opt", "gemma3", "gpt_neox"]  # families whose slow twin is written out
PLANS = [
    {"part": "ffn"},
    {"part": "attn"},
    {"part": "block"},
    {"part": "attn", "visibility": "hidden"},
    {"part": "block", "visibility": "hidden", "roles": ["percept", "prompt"]},
    {"part": "block", "ratio": 0.5, "select": "first"},
    {"part": "ffn", "ratio": 0.5, "select": "last", "roles": ["percept", "text"], "phase": "prefill"},
    {"part": "block", "ratio": 0.4, "select": "random", "redraw_per_block": True},
    {"part": "attn", "ratio": 0.5, "select": "norm"},
    {"part": "block", "ratio": 0.5, "select": "similar"},
    {"part": "block", "roles": ["all"]},
    {"part": "heads", "heads": [1, 3], "roles": ["percept"]},
    {"part": "block", "roles": ["all"], "keep_sinks": True},
]


def name_of(plan: dict[str, Any]) -> str:
    return " ".join(str(value) for value in plan.values())


_models: dict[str, FrozenLLM] = {}


def make(family: str) -> FrozenLLM:
    if family not in _models:
        _models[family] = FrozenLLM(tiny_model(family, seed=2), tiny_tokenizer())
    return _models[family]


def states(llm: FrozenLLM, roles: Tensor = ROLES) -> Tensor:
    return torch.randn(*roles.shape, llm.width, generator=torch.Generator().manual_seed(0)) * llm.embedding_norm / 6


@contextmanager
def hearing(layers: Any, calls: dict[int, dict[str, Any]], entering: list[Tensor]) -> Iterator[None]:
    """How the stock model calls each attention (mask, rotation), and what enters the first block."""
    handles = []
    for index, layer in enumerate(layers):
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attn

        def hear(_m: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            calls[index] = {key: value for key, value in kwargs.items() if key != "hidden_states"}

        handles.append(attention.register_forward_pre_hook(hear, with_kwargs=True))
    first = lambda _m, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"])  # noqa: E731
    handles.append(layers[0].register_forward_pre_hook(first, with_kwargs=True))
    yield
    for handle in handles:
        handle.remove()


def slow_twin(llm: FrozenLLM, x: Tensor, roles: Tensor, decisions: dict[int, Decision]) -> Tensor:
    """The residual stream put together by hand, block by block, all parts computed for all tokens and what the
    decisions leave out multiplied by zero; hidden keys are masked for everybody."""
    calls: dict[int, dict[str, Any]] = {}
    entering: list[Tensor] = []
    with hearing(llm.table.blocks, calls, entering):
        llm(x, roles)
    h = entering[0]
    none = torch.zeros_like(roles, dtype=torch.bool)
    for index, layer in enumerate(llm.table.blocks):
        attention_adds, ffn_adds = parts_of(layer)
        decision = decisions.get(index, {})
        kwargs = dict(calls[index])
        hidden = decision.get("hidden", none)
        length = roles.shape[1]
        mask = kwargs.get("attention_mask")
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril() if mask is None else mask
        assert mask.dtype == torch.bool
        kwargs["attention_mask"] = mask & ~hidden[:, None, None, :]
        maps = projections_of(llm.table, index)

        def cut(_m: Any, args: Any, decision: Decision = decision) -> Any:
            x = args[0].clone()
            width = x.shape[-1] // llm.model.config.num_attention_heads
            for part, skip in decision.items():
                if part.startswith("head"):
                    head = slice(int(part[4:]) * width, (int(part[4:]) + 1) * width)
                    x[..., head] = torch.where(skip[..., None], 0, x[..., head])
            return (x, *args[1:])

        def attend(module: Any, normed: Tensor, kwargs: dict[str, Any] = kwargs) -> Tensor:
            found: Tensor = module(hidden_states=normed, **kwargs)[0]
            return found

        skip_attention = decision.get("attn", none) | decision.get("block", none)
        skip_ffn = decision.get("ffn", none) | decision.get("block", none)
        handle = maps.out.register_forward_pre_hook(cut)
        mid = h + torch.where(skip_attention[..., None], 0, attention_adds(h, attend))
        handle.remove()
        parallel = type(layer).__name__ == "GPTNeoXLayer"
        h = mid + torch.where(skip_ffn[..., None], 0, ffn_adds(h if parallel else mid))
    base: Any = getattr(llm.model.base_model, "decoder", llm.model.base_model)
    last = base.norm if hasattr(base, "norm") else base.final_layer_norm
    out: Tensor = last(h)
    return out


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
@pytest.mark.parametrize("family", DEEP)
@torch.no_grad()
def test_skipping_equals_its_definition_computed_in_full(family: str, plan: dict[str, Any]) -> None:
    llm = make(family)
    x = states(llm)
    with Engine(llm, [Skip(**{"start": 1} | plan)], record=True) as engine:
        found = llm(x, ROLES, IDS)
    assert engine.decisions is not None
    decisions = {block: decision for _, block, decision in engine.decisions}
    assert sorted(decisions) == [1, 2]
    real = ROLES != PAD
    expected = slow_twin(llm, x, ROLES, decisions)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[real], llm(x, ROLES)[real], atol=1e-3), "nothing was skipped"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["ffn", "attn", "block"])
@torch.no_grad()
def test_of_every_family_a_batch_of_mixed_lengths_is_its_rows_one_by_one(family: str, part: str) -> None:
    llm = make(family)
    x = states(llm)
    with stack(llm, [Skip(part, ("percept",), start=1, ratio=0.5)]):  # type: ignore[arg-type]
        together = llm(x, ROLES, IDS)
        for row in range(len(ROLES)):
            real = ROLES[row] != PAD
            alone = llm(x[row : row + 1, real], ROLES[row : row + 1, real], IDS[row : row + 1])
            torch.testing.assert_close(together[row, real], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
@pytest.mark.parametrize("family", DEEP)
@torch.no_grad()
def test_cached_decoding_is_the_whole_pass_that_replays_its_decisions(family: str, plan: dict[str, Any]) -> None:
    llm = make(family)
    roles = torch.tensor([[PAD, S0, Q, P, P, P, P, Q], [P, P, P, P, Q, Q, Q, Q], [PAD, PAD, PAD, P, P, P, P, Q]])
    x, ids = states(llm, roles), ["a", "b", "c"]
    skip = Skip(**{"start": 0 if plan.get("select") != "similar" else 1} | plan)
    with Engine(llm, [skip], record=True) as engine:
        said = llm.generate(x, roles, Generation(5), ids)
    assert engine.decisions is not None
    length = min(len(text) for text in said)
    assert length >= 2, "a cached step is needed"
    tail = torch.tensor([text[: length - 1] for text in said])
    whole = torch.cat([x, llm.embed(tail)], dim=1)
    whole_roles = torch.cat([roles, torch.full_like(tail, int(Role.GENERATED))], dim=1)
    steps = [step for step in engine.decisions if step[0] < whole.shape[1]]
    with replay(llm, [skip], steps):
        h = llm(whole, whole_roles, ids)
    for row, text in enumerate(said):
        scores = llm.logits(h[row, roles.shape[1] - 1 :])
        assert scores.argmax(-1).tolist() == text[:length]


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
@pytest.mark.parametrize("family", ["llama", "opt"])
@torch.no_grad()
def test_beams_are_the_expanded_batch(family: str, plan: dict[str, Any]) -> None:
    """Two identical beams a row: beam search over copies finds what it finds for each example alone."""
    llm = make(family)
    roles = torch.tensor([[PAD, S0, Q, P, P, P, P, Q], [P, P, P, P, Q, Q, Q, Q]])
    x, ids = states(llm, roles), ["a", "b"]
    with stack(llm, [Skip(**{"start": 1} | plan)]):
        together = llm.generate(x, roles, Generation(4, num_beams=3), ids)
        for row in range(2):
            real = roles[row] != PAD
            part = slice(row, row + 1)
            assert llm.generate(x[part, real], roles[part, real], Generation(4, 3), ids[part]) == [together[row]]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ratio_zero_is_the_identity_bit_for_bit_and_leaves_no_hook(family: str) -> None:
    llm = make(family)
    x, before, plain = states(llm), hooks_of(llm), llm(states(llm), ROLES)
    with stack(llm, [Skip("block", start=0, ratio=0.0)]):
        assert hooks_of(llm) == before
        assert torch.equal(llm(x, ROLES, IDS), plain)


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
@torch.no_grad()
def test_leaving_by_an_exception_restores_every_bit(plan: dict[str, Any]) -> None:
    llm = make("llama")
    x, before, config = states(llm), hooks_of(llm), llm.model.config.to_dict()
    plain, attributes = llm(x, ROLES), [sorted(vars(module)) for module in llm.modules()]
    with pytest.raises(RuntimeError, match="halfway"), stack(llm, [Skip(**{"start": 1} | plan)]):
        llm(x, ROLES, IDS)
        raise RuntimeError("halfway")
    assert hooks_of(llm) == before and llm.model.config.to_dict() == config
    assert llm.model.config._attn_implementation == "sdpa"
    assert [sorted(vars(module)) for module in llm.modules()] == attributes
    assert torch.equal(llm(x, ROLES), plain)


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
def test_the_gradient_of_the_input_is_that_of_the_definition(plan: dict[str, Any]) -> None:
    llm = make("llama")
    weight = (
        torch.randn(*ROLES.shape, llm.width, generator=torch.Generator().manual_seed(3)) * (ROLES != PAD)[..., None]
    )
    with Engine(llm, [Skip(**{"start": 1} | plan)], record=True) as engine:
        x = states(llm).requires_grad_()
        (found,) = torch.autograd.grad((llm(x, ROLES, IDS) * weight).sum(), x)
    assert engine.decisions is not None
    decisions = {block: decision for _, block, decision in engine.decisions}
    x = states(llm).requires_grad_()
    (expected,) = torch.autograd.grad((slow_twin(llm, x, ROLES, decisions) * weight).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.abs().sum() > 0


@torch.no_grad()
def test_what_is_skipped_is_not_computed() -> None:
    """Rows that the linear layers of a skipped block get to see."""
    llm = make("llama")
    seen: dict[str, int] = {}
    layer = llm.table.blocks[1]
    handles = [
        module.register_forward_hook(lambda _m, args, _o, name=name: seen.__setitem__(name, args[0].shape[:-1].numel()))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    roles = torch.tensor([[P] * 6 + [Q, Q, A]] * 2)
    with stack(llm, [Skip("block", start=1)]):
        llm(states(llm, roles), roles, ["a", "b"])
    for handle in handles:
        handle.remove()
    kept, all_of_them = 2 * 3, 2 * 9
    assert {name.split(".")[-1]: rows for name, rows in seen.items()} == {
        "q_proj": kept, "k_proj": all_of_them, "v_proj": all_of_them, "o_proj": kept,
        "gate_proj": kept, "up_proj": kept, "down_proj": kept,
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("plan", PLANS, ids=name_of)
@torch.no_grad()
def test_lean_blocks_give_the_numbers_of_the_hooked_ones_and_compute_no_more(family: str, plan: dict[str, Any]) -> None:
    llm = make(family)
    for roles in (ROLES, torch.tensor([[P] * 8 + [Q, A]] * 4)):
        x, real = states(llm, roles), roles != PAD
        found, flops = [], []
        for lean in (True, False):
            with Engine(llm, [Skip(**{"start": 1} | plan)], fast_path=lean), FlopCounterMode(display=False) as counter:
                found.append(llm(x, roles, IDS)[real])
            flops.append(counter.get_total_flops())
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert flops[0] <= flops[1]


@torch.no_grad()
def test_lean_blocks_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, num = make("llama"), 0

    def counted(*args: Any) -> Tensor:
        nonlocal num
        num += 1
        return run_block(*args)

    monkeypatch.setattr("ima.interventions.skip.fast_path.run_block", counted)
    with stack(llm, [Skip("block", start=1)]):
        num = 0
        llm(states(llm), ROLES)
    assert num == 2


def chosen(ratio: float, select: str, ids: list[str] = IDS, roles: Tensor = ROLES, seed: int = 0) -> Tensor:
    llm = make("llama")
    skip = Skip("block", ("percept",), start=1, ratio=ratio, select=select, seed=seed)  # type: ignore[arg-type]
    with Engine(llm, [skip], record=True) as engine, torch.no_grad():
        llm(states(llm, roles), roles, ids)
    assert engine.decisions is not None
    found: Tensor = engine.decisions[0][2]["block"]
    return found


@pytest.mark.parametrize("select", ["first", "last", "random", "norm", "similar"])
@pytest.mark.parametrize(("ratio", "num"), [(0.1, 0), (0.125, 1), (0.4, 2), (0.5, 2), (0.625, 3), (0.9, 4), (1.0, 4)])
def test_the_number_of_skipped_tokens_is_the_ratio_rounded_half_up(select: str, ratio: float, num: int) -> None:
    assert chosen(ratio, select).sum(1).tolist() == [num] * 4


def test_chance_belongs_to_seed_and_sample_and_larger_ratios_contain_smaller_ones() -> None:
    half, more = chosen(0.5, "random"), chosen(0.75, "random")
    assert bool((more | ~half).all())
    turned = chosen(0.5, "random", IDS[::-1], ROLES.flip(0)).flip(0)
    assert torch.equal(turned, half)
    many = torch.tensor([[P] * 12])
    draws = {tuple(chosen(0.5, "random", [name], many, seed)[0].tolist()) for name in "ab" for seed in (0, 1)}
    assert len(draws) == 4


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"ratio": 1.2}, "ratio: 1.2"),
        ({"roles": ["percpt"]}, "percept"),
        ({"roles": []}, "roles: empty"),
        ({"part": "heads"}, "heads"),
        ({"part": "ffn", "heads": [1]}, "heads"),
        ({"part": "ffn", "visibility": "hidden"}, "visibility"),
        ({"roles": ["percept"], "phase": "decode"}, "phase"),
    ],
)
def test_a_wrong_skip_is_refused_when_it_is_made(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Skip(**plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"blocks": [1, 7]}, "blocks 0 to 2"),
        ({"part": "heads", "heads": [9], "start": 0}, "heads 0 to 3"),
        ({"select": "similar", "ratio": 0.5, "start": 0}, "start=1"),
    ],
)
def test_a_skip_that_does_not_fit_the_llm_is_refused_before_anything_changes(
    plan: dict[str, Any], message: str
) -> None:
    llm = make("llama")
    before = hooks_of(llm)
    with pytest.raises(UserError, match=message), stack(llm, [Skip(**plan)]):
        pass
    assert hooks_of(llm) == before


NAMES = ["a", "b", "c"]
LEFT = torch.tensor([[PAD, S0, Q, P, P, P, P, Q], [P, P, P, P, Q, Q, Q, Q], [PAD, PAD, PAD, P, P, P, P, Q]])
SHARES = (
    [
        {"part": part, "roles": roles, "phase": phase, "ratio": 0.5, "redraw_per_block": redraw}
        for part, redraw in (("block", True), ("ffn", False), ("attn", False))
        for roles, phase in (
            (["answer"], "decode"),
            (["text"], "both"),
            (["all"], "both"),
            (["percept", "answer"], "both"),
            (["all"], "prefill"),
        )
    ]
    + [
        {"part": "block", "roles": ["all"], "phase": "prefill", "ratio": 0.5, "select": select}
        for select in ("first", "last", "norm", "similar")
    ]
    + [{"part": "attn", "roles": ["all"], "ratio": 0.4, "visibility": "hidden"}]
)


@pytest.mark.parametrize("plan", SHARES, ids=name_of)
@torch.no_grad()
def test_a_share_of_tokens_does_not_depend_on_the_batch_and_decoding_is_the_whole_pass(plan: dict[str, Any]) -> None:
    """Alone, in a batch of any order and padding, and in one pass over prompt and answer: the same scores and texts."""
    llm = make("llama")
    x = states(llm, LEFT)
    for seed in range(2 if plan.get("select", "random") == "random" else 1):  # the others draw nothing
        with stack(llm, [Skip(**{"start": 1, "seed": seed} | plan)]):
            together = llm.generate(x, LEFT, Generation(6), NAMES)
            turned = llm.generate(x.flip(0), LEFT.flip(0), Generation(6), NAMES[::-1])
            assert turned == together[::-1]
            for row, text in enumerate(together):
                real, name = LEFT[row] != PAD, [NAMES[row]]
                alone_x, alone_roles = x[row, real][None], LEFT[row, real][None]
                assert llm.generate(alone_x, alone_roles, Generation(6), name) == [text]
                said = torch.tensor(text[:-1], dtype=torch.long)
                whole_x = torch.cat([alone_x, llm.embed(said)[None]], dim=1)
                for role in (A, int(Role.GENERATED)):
                    roles = torch.cat([alone_roles, torch.full_like(said, role)[None]], dim=1)
                    h = llm(whole_x, roles, name)
                    scores = llm.logits(h[0, alone_roles.shape[1] - 1 :])
                    assert scores.argmax(-1).tolist() == text
                    wide = torch.nn.functional.pad(whole_x, (0, 0, 2, 3)), torch.nn.functional.pad(roles, (2, 3))
                    padded = llm(*wide, name)[:, 2:-3]
                    torch.testing.assert_close(padded, h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("select", ["random", "first", "norm"])
@torch.no_grad()
def test_later_turns_of_a_conversation_change_nothing_about_earlier_ones(select: str) -> None:
    """Two questions with their answers, EOS after each: what precedes is as it is without them."""
    llm = make("llama")
    roles = torch.tensor([[S0, P, P, P, Q, Q, A, A, S0, Q, Q, Q, A, A, S0]])
    x = states(llm, roles)
    answers = {"roles": ["all"]} if select == "random" else {"roles": ["all"], "phase": "prefill"}
    with stack(llm, [Skip("block", start=1, ratio=0.5, select=select, **answers)]):  # type: ignore[arg-type]
        whole = llm(x, roles, ["a"])
        for length in (6, 8, 12, 14):
            part = llm(x[:, :length], roles[:, :length], ["a"])
            torch.testing.assert_close(part, whole[:, :length], rtol=1e-4, atol=1e-5)


def test_a_larger_share_of_answer_tokens_contains_a_smaller_one_and_is_that_share() -> None:
    llm, roles = make("llama"), torch.tensor([[P, Q] + [A] * 400])
    found = []
    for ratio in (0.3, 0.6):
        with Engine(llm, [Skip("ffn", ("answer",), start=1, ratio=ratio)], record=True) as engine, torch.no_grad():
            llm(states(llm, roles), roles, ["a"])
        assert engine.decisions is not None
        found.append(engine.decisions[0][2]["ffn"][0])
    assert not bool((found[0] & ~found[1]).any())
    assert abs(int(found[0].sum()) - 120) < 30 and abs(int(found[1].sum()) - 240) < 30


@pytest.mark.parametrize("select", ["first", "last", "norm", "similar"])
def test_ranking_tokens_that_come_one_by_one_is_refused(select: Any) -> None:
    for roles, phase in (("answer", "both"), ("text", "both"), ("all", "decode")):
        with pytest.raises(UserError, match="select=random or phase=prefill"):
            Skip("block", (roles,), start=1, ratio=0.5, select=select, phase=phase)  # type: ignore[arg-type]
        Skip("block", (roles,), start=1, ratio=1.0, select=select, phase=phase)  # type: ignore[arg-type]


def test_similar_of_ratio_zero_beside_another_skip_leaves_nothing_out() -> None:
    llm = make("llama")
    x = states(llm)
    with torch.no_grad():
        with stack(llm, [Skip("attn", start=1)]):
            expected = llm(x, ROLES, IDS)
        with stack(llm, [Skip("ffn", start=1, ratio=0.0, select="similar"), Skip("attn", start=1)]):
            assert torch.equal(llm(x, ROLES, IDS), expected)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_sinks_that_are_kept_are_each_rows_first_real_position_and_nothing_else_changes(ratio: float) -> None:
    llm = make("llama")
    plan: dict[str, Any] = {"part": "block", "roles": ["all"], "start": 1, "ratio": ratio, "phase": "prefill"}
    chosen = [
        Engine(llm, [Skip(**plan, keep_sinks=keep)]).choose(1, states(llm), PassContext(ROLES, tuple(IDS)))["block"]
        for keep in (False, True)
    ]
    first = torch.zeros_like(chosen[0])
    for row, column in enumerate([0, 0, 3, 0]):
        first[row, column] = True
    assert torch.equal(chosen[1], chosen[0] & ~first)
    later = PassContext(torch.tensor([[int(Role.GENERATED)]]), ("a",), num_past=3)  # a decoded token is never the first
    skip = Skip("block", ["all"], start=1, keep_sinks=True)
    assert bool(Engine(llm, [skip]).choose(1, states(llm)[:1, :1], later)["block"].all())
