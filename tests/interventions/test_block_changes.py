"""Isolate, parallel, merge, drop, exit, entropy: each equals its definition put together by hand, decoding with a cache
equals whole passes, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from grids import covering
from test_interventions import hooks_of, parts_of
from test_skipping import DEEP, FAMILIES, PAD, ROLES, S0, A, P, Q, hearing, states
from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.base import Intervention
from ima.interventions.drop import Drop
from ima.interventions.isolate import Isolate
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.exit import Exit
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.families import TINY
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

G = int(Role.GENERATED)
# Nats, of at most log 259 = 5.56: some tokens are below and some above at each block.
TIED = ("llama", "gemma3", "opt", "smollm3")  # heads that are the embeddings know less


def threshold(family: str) -> float:
    return 5.405 if family in TIED else 4.97


CHANGES: dict[str, Callable[[str], Intervention]] = {
    "isolate": lambda _: Isolate(2),
    "parallel": lambda _: Parallel(start=1),
    "parallel ln1": lambda _: Parallel("ln1", start=1),
    "parallel decode": lambda _: Parallel(start=0, phase="decode"),
    "merge": lambda _: Merge(start=1),
    "merge prefill": lambda _: Merge(blocks=[0], phase="prefill"),
    "drop": lambda _: Drop(1),
    "drop one": lambda _: Drop(1, 2),
    "exit context": lambda _: Exit(0, "context"),
    "exit percept": lambda _: Exit(0, "percept"),
    "exit last": lambda _: Exit(1, "last"),
    "entropy": lambda family: Entropy(threshold(family), start=0),
    "entropy ffn": lambda family: Entropy(threshold(family), part="ffn", start=1),
}
LEFT = torch.tensor([[PAD, S0, Q, P, P, P, P, Q], [P, P, P, P, Q, Q, Q, Q], [PAD, PAD, PAD, P, P, P, P, Q]])


_models: dict[str, FrozenLLM] = {}


def make(family: str) -> FrozenLLM:
    """Norms that differ: with all weights one, LN1 and LN2 are the same."""
    if family not in _models:
        model, generator = tiny_model(family, seed=2), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name and parameter.dim() == 1:
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.3
        _models[family] = FrozenLLM(model, tiny_tokenizer())
    return _models[family]


def fits(change: str, family: str) -> bool:
    if change == "parallel ln1":
        return TINY[family].has_pre_norms
    return not (change in ("parallel", "parallel decode") and TINY[family].parallel)


GRID = [(family, change) for family, change in covering(FAMILIES, CHANGES, whole=DEEP) if fits(change, family)]


def ffn_by_ln1(layer: Any, x: Tensor) -> Tensor:
    """FFN(LN1 x), as the published Llama form has it."""
    match type(layer).__name__:
        case "LlamaDecoderLayer":
            out = layer.mlp(layer.input_layernorm(x))
        case "Gemma3DecoderLayer":
            out = layer.post_feedforward_layernorm(layer.mlp(layer.input_layernorm(x)))
        case "OPTDecoderLayer":
            out = layer.fc2(torch.relu(layer.fc1(layer.self_attn_layer_norm(x))))
        case "GPTNeoXLayer":
            out = layer.mlp(layer.input_layernorm(x))
        case _:
            raise AssertionError(type(layer).__name__)
    return out


def last_norm(llm: FrozenLLM) -> Any:
    base: Any = getattr(llm.model.base_model, "decoder", llm.model.base_model)
    return base.norm if hasattr(base, "norm") else base.final_layer_norm


def by_hand(llm: FrozenLLM, x: Tensor, roles: Tensor, change: str, sure: float) -> Tensor:
    """The definition of a change, computed in full: every part for every token, then chosen among."""
    calls: dict[int, dict[str, Any]] = {}
    entering: list[Tensor] = []
    with hearing(llm.table.blocks, calls, entering):
        llm(x, roles)
    length = roles.shape[1]
    everybody = torch.ones(1, 1, length, length, dtype=torch.bool)
    percept, real = roles == P, roles != PAD
    answers = torch.isin(roles, torch.tensor([A, G]))
    decoded = answers.cumsum(1) > 0
    last = [max(i for i in range(length) if real[row, i] and not decoded[row, i]) for row in range(len(roles))]
    context = real & torch.stack([torch.arange(length) < place for place in last])

    def part(index: int, h: Tensor, seen: Tensor = everybody) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What attention adds to h where only `seen` is attended to, and the FFN."""
        kwargs = dict(calls[index])
        mask = kwargs.get("attention_mask")
        mask = everybody.tril() if mask is None else mask
        kwargs["attention_mask"] = mask & (seen | ~real[:, None, :, None])

        def attend(module: Any, normed: Tensor) -> Tensor:
            found: Tensor = module(hidden_states=normed, **kwargs)[0]
            return found

        attention_adds, ffn_adds = parts_of(llm.table.blocks[index])
        return attention_adds(h, attend), ffn_adds

    def block(index: int, h: Tensor, seen: Tensor = everybody) -> Tensor:
        added, ffn = part(index, h, seen)
        return h + added + ffn(h if llm.table.family.parallel else h + added)

    def certain(h: Tensor) -> Tensor:
        p = llm.model.get_output_embeddings()(last_norm(llm)(h)).softmax(-1)
        low = -(p * p.log()).sum(-1) < sure
        return torch.stack([torch.where(decoded[row], low[row], low[row, last[row]]) for row in range(len(roles))])

    h = entering[0]
    same = (percept[:, :, None] == percept[:, None])[:, None]
    for index, layer in enumerate(llm.table.blocks):
        out = block(index, h)
        match change:
            case "isolate" if index < 2:
                out = block(index, h, same)
            case "parallel" if index >= 1:
                added, ffn = part(index, h)
                out = h + added + ffn(h)
            case "parallel ln1" if index >= 1:
                out = h + part(index, h)[0] + ffn_by_ln1(layer, h)
            case "parallel decode":
                added, ffn = part(index, h)
                out = torch.where(answers[..., None], h + added + ffn(h), h + added + ffn(h + added))
            case "merge" if index == 1:
                out = (block(1, h) + block(2, h)) / 2
            case "merge" if index == 2:
                out = h
            case "merge prefill" if index == 0:
                start, out = h, out
            case "merge prefill" if index == 1:
                chosen = ~answers[..., None]
                there = block(1, torch.where(chosen, start, h))
                out = torch.where(chosen, (h + there) / 2, there)
            case "drop" if index >= 1:
                out = h
            case "drop one" if index == 1:
                out = h
            case "exit context" if index >= 1:
                out = torch.where(context[..., None], h, block(index, h, ~context[:, None, None]))
            case "exit percept" if index >= 1:
                out = torch.where(percept[..., None], h, block(index, h, ~percept[:, None, None]))
            case "exit last" if index >= 2:
                out = h
            case "entropy":
                out = torch.where(certain(h)[..., None], h, out)
            case "entropy ffn" if index >= 1:
                out = torch.where(certain(h)[..., None], h + part(index, h)[0], out)
        h = out
    found: Tensor = last_norm(llm)(h)
    return found


@pytest.mark.parametrize(("family", "change"), [pair for pair in GRID if pair[0] in DEEP])
@torch.no_grad()
def test_a_change_equals_its_definition_computed_in_full(family: str, change: str) -> None:
    llm = make(family)
    x, real = states(llm), ROLES != PAD
    with stack(llm, [CHANGES[change](family)]):
        found = llm(x, ROLES)
    torch.testing.assert_close(
        found[real], by_hand(llm, x, ROLES, change, threshold(family))[real], rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(found[real], llm(x, ROLES)[real], atol=1e-3), "nothing was changed"


@pytest.mark.parametrize(("family", "change"), GRID)
@torch.no_grad()
def test_cached_decoding_of_a_batch_of_mixed_lengths_is_whole_passes(family: str, change: str) -> None:
    """No decision is replayed: a whole pass over prompt and answer decides what each step decided."""
    assert_decoding_is_whole_passes(make(family), CHANGES[change](family))


def windowed() -> FrozenLLM:
    """Five blocks that see six positions back, then one that sees all, then another of the first kind."""
    model = tiny_model("gemma3", num_blocks=7)
    assert model.config.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    model.config.sliding_window = 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        narrow = type(model)(model.config).eval()
    narrow.load_state_dict(model.state_dict())
    return FrozenLLM(narrow, tiny_tokenizer())


@pytest.mark.parametrize(
    "change",
    [
        Isolate(7),
        Merge(blocks=[4]),
        Merge(blocks=[5], phase="decode"),
        Drop(5),
        Drop(1, 4),
        Exit(2),
        Exit(3, "percept"),
    ],
    ids=lambda change: str(change.describe()),
)
@torch.no_grad()
def test_blocks_of_two_kinds_of_attention_keep_their_own_masks_and_caches(change: Intervention) -> None:
    assert_decoding_is_whole_passes(windowed(), change)


def assert_decoding_is_whole_passes(llm: FrozenLLM, change: Intervention) -> None:
    x = states(llm, LEFT)
    steps: list[Tensor] = []
    head = llm.model.get_output_embeddings()
    with stack(llm, [change]):
        handle = head.register_forward_hook(lambda _m, _a, out: steps.append(out[:, -1]) if out.dim() == 3 else None)
        said = llm.generate(x, LEFT, Generation(4))
        handle.remove()
        assert len(steps) >= 2, "a cached step is needed"
        for row, text in enumerate(said):
            real = LEFT[row] != PAD
            roles = torch.cat([LEFT[row, real], torch.full((len(text),), G)])[None]
            h = llm(torch.cat([x[row, real], llm.embed(torch.tensor(text, dtype=torch.long))])[None], roles)
            whole = llm.logits(h[0, int(real.sum()) - 1 :])
            found = torch.stack([step[row] for step in steps])[: len(whole)]
            torch.testing.assert_close(found, whole[: len(found)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_beams_are_each_example_alone(change: str) -> None:
    family = "llama"
    llm = make(family)
    roles = torch.tensor([[PAD, S0, Q, P, P, P, P, Q], [P, P, P, P, Q, Q, Q, Q]])
    x = states(llm, roles)
    with stack(llm, [CHANGES[change](family)]):
        together = llm.generate(x, roles, Generation(4, num_beams=3))
        for row in range(2):
            real = roles[row] != PAD
            part = slice(row, row + 1)
            assert llm.generate(x[part, real], roles[part, real], Generation(4, 3)) == [together[row]]


@pytest.mark.parametrize(("family", "change"), GRID)
@torch.no_grad()
def test_leaving_by_an_exception_restores_every_bit(family: str, change: str) -> None:
    llm = make(family)
    x, before = states(llm), hooks_of(llm)
    plain, attributes = llm(x, ROLES), [sorted(vars(module)) for module in llm.modules()]
    with pytest.raises(RuntimeError, match="halfway"), stack(llm, [CHANGES[change](family)]):
        assert not torch.equal(llm(x, ROLES), plain)
        raise RuntimeError("halfway")
    assert hooks_of(llm) == before
    assert [sorted(vars(module)) for module in llm.modules()] == attributes
    assert torch.equal(llm(x, ROLES), plain)


@pytest.mark.parametrize("change", CHANGES)
def test_the_gradient_of_the_input_is_that_of_the_definition_also_accelerated(change: str) -> None:
    family = "llama"
    llm = make(family)
    weight = torch.randn(*ROLES.shape, llm.width, generator=torch.Generator().manual_seed(3))
    weight = weight * (ROLES != PAD)[..., None]
    x = states(llm).requires_grad_()
    (expected,) = torch.autograd.grad((by_hand(llm, x, ROLES, change, threshold(family)) * weight).sum(), x)
    with stack(llm, [CHANGES[change](family)]):
        for context in (torch.enable_grad(), accelerate(llm.model)):
            x = states(llm).requires_grad_()
            with context:
                (found,) = torch.autograd.grad((llm(x, ROLES) * weight).sum(), x)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", ["isolate", "parallel", "parallel ln1", "parallel decode", "merge", "drop one"])
@pytest.mark.parametrize("part", ["ffn", "attn", "block"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
@torch.no_grad()
def test_skips_leave_out_parts_of_the_changed_blocks(family: str, part: str, change: str) -> None:
    """In whichever order they are listed, and for a batch of mixed lengths as for its rows one by one."""
    llm = make(family)
    x = states(llm)
    skip = Skip(part, ("percept",), start=1)  # type: ignore[arg-type]
    with stack(llm, [skip, CHANGES[change](family)]):
        together = llm(x, ROLES)
        for row in range(len(ROLES)):
            real = ROLES[row] != PAD
            alone = llm(x[row : row + 1, real], ROLES[row : row + 1, real])
            torch.testing.assert_close(together[row, real], alone[0], rtol=1e-4, atol=1e-4)
    with stack(llm, [CHANGES[change](family), skip]):
        assert torch.equal(llm(x, ROLES), together)


@torch.no_grad()
def test_a_block_that_is_skipped_by_all_is_a_block_that_is_dropped() -> None:
    llm = make("llama")
    x, real = states(llm), ROLES != PAD
    with stack(llm, [Drop(1, 2)]):
        dropped = llm(x, ROLES)
    with stack(llm, [Skip("block", ("all",), blocks=[1])]):
        torch.testing.assert_close(llm(x, ROLES)[real], dropped[real])


@torch.no_grad()
def test_isolated_in_all_blocks_no_text_before_the_answer_knows_the_picture() -> None:
    llm = make("llama")
    x, other = states(llm), states(llm)
    other[ROLES == P] = torch.randn(int((ROLES == P).sum()), llm.width, generator=torch.Generator().manual_seed(9))
    text = (ROLES != P) & (ROLES != PAD)
    with stack(llm, [Isolate(llm.num_blocks)]):
        torch.testing.assert_close(llm(x, ROLES)[text], llm(other, ROLES)[text])
    with stack(llm, [Isolate(llm.num_blocks - 1)]):
        assert not torch.allclose(llm(x, ROLES)[text], llm(other, ROLES)[text], atol=1e-3)


@torch.no_grad()
def test_a_mask_of_the_first_blocks_is_not_taken_for_that_of_later_ones() -> None:
    """Lean blocks keep the rows of a mask for the pass; isolated blocks have another one."""
    llm = make("llama")
    x = states(llm, torch.tensor([[P, P, P, Q, Q, A]]))
    roles = torch.tensor([[P, P, P, Q, Q, A]])
    skips = [Skip("block", ("percept",), start=0, ratio=0.34, select="first")]
    with stack(llm, [Isolate(1), *skips]):
        lean = llm(x, roles, ["a"])
    from ima.interventions.skip.engine import Engine

    with Isolate(1).apply(llm), Engine(llm, skips, fast_path=False):
        torch.testing.assert_close(llm(x, roles, ["a"]), lean, rtol=1e-5, atol=1e-5)


def test_dropping_the_block_that_tells_others_their_length_is_refused() -> None:
    llm = FrozenLLM(tiny_model("gemma3", num_blocks=12, seed=2), tiny_tokenizer())
    with pytest.raises(UserError, match="stop: block 5 is the first with full_attention"), stack(llm, [Drop(4, 7)]):
        pass


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Isolate(0), "num_blocks: 0"),
    (lambda: Drop(0), "start: 0; block 0"),
    (lambda: Merge(every=1), "every: 1"),
    (lambda: Merge(blocks=[1, 2]), "blocks: 2 is in two pairs"),
    (lambda: Exit(-1), "block: -1"),
    (lambda: Exit(1, "all"), "leaving: 'all'"),  # type: ignore[arg-type]
    (lambda: Entropy(-1.0), "threshold: -1"),
    (lambda: Entropy(float("nan")), "threshold: nan"),
    (lambda: Entropy(1.0, part="heads"), "part: heads"),
    (lambda: Entropy(1.0, roles=["percpt"]), "percept"),
]


@pytest.mark.parametrize(("made", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_change_is_refused_when_it_is_made(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", Isolate(4), "num_blocks: 4, but llm has 3"),
        ("llama", Drop(3), "start=3"),
        ("llama", Drop(1, 4), "stop=4"),
        ("llama", Merge(start=2), "blocks"),
        ("llama", Merge(blocks=[2]), "blocks"),
        ("llama", Parallel(blocks=[3]), "blocks 0 to 2"),
        ("olmo2", Parallel("ln1", start=0), "olmo2 blocks have no norm"),
        ("gpt_neox", Parallel(start=0), "side by side by themselves"),
        ("llama", Exit(2), "after 0 to 1"),
        ("llama", Entropy(1.0, start=3), "start=3"),
    ],
)
def test_a_change_that_does_not_fit_the_llm_is_refused_before_anything_changes(
    family: str, change: Intervention, message: str
) -> None:
    llm = make(family)
    before = hooks_of(llm)
    with pytest.raises(UserError, match=message), stack(llm, [change]):
        pass
    assert hooks_of(llm) == before


def test_norms_on_the_stream_are_refused_where_a_sum_is_needed() -> None:
    llm = FrozenLLM(tiny_model("opt_350m"), tiny_tokenizer(), name="opt-350m")
    for change in (Parallel(start=0), Exit(0), Entropy(1.0, start=0)):
        with pytest.raises(UserError, match="norms its stream"), stack(llm, [change]):
            pass


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_describes_itself_as_plain_data(change: str) -> None:
    import json

    said = CHANGES[change]("llama").describe()
    assert said["kind"] == change.split()[0] and json.loads(json.dumps(said)) == said
    if said["kind"] in ("parallel", "merge", "isolate"):
        assert "saves no FLOPs" in said["note"]
