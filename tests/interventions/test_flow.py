"""Knock-out by edge, back-patching and steering: each equals its definition, decoding with a cache equals whole passes,
and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from test_interventions import hooks_of

from ima.alignment.states import KeepStates
from ima.alignment.tap import Tap
from ima.core.errors import UserError
from ima.core.types import Role, Site
from ima.interventions.back_patch import BackPatch
from ima.interventions.base import Setting
from ima.interventions.isolate import Isolate
from ima.interventions.knock_out import EDGES, KnockOut, answering
from ima.interventions.stack import stack
from ima.interventions.steer import Steer
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tiny import tiny_model, tiny_tokenizer

P, Q, A, S0, PAD, G = (int(r) for r in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD, Role.GENERATED))
ROLES = torch.tensor([[P, P, P, Q, Q, A, A, S0], [S0, P, P, Q, Q, Q, A, PAD]])
FAMILIES = ("llama", "gpt_neox", "opt")
_made: dict[str, FrozenLLM] = {}


def make(family: str = "llama") -> FrozenLLM:
    if family not in _made:
        _made[family] = FrozenLLM(tiny_model(family, seed=1), tiny_tokenizer(), name=family)
    return _made[family]


def inputs(llm: FrozenLLM, roles: torch.Tensor = ROLES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*roles.shape, llm.width, generator=generator) * llm.embedding_norm / llm.width**0.5


def cut_by_hand(roles: torch.Tensor, source: str, destination: str, with_sinks: bool) -> torch.Tensor:
    """allowed (B, S, S) as the definition reads, position by position."""
    batch, length = roles.shape
    allowed = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        row = roles[b].tolist()
        real = [s for s in range(length) if row[s] != PAD]
        made = [s for s in real if row[s] in (A, G)]
        answer = set(made) | {s - 1 for s in made if s - 1 in real} if made else {real[-1]}
        kinds = {
            "percept": {s for s in real if row[s] == P},
            "prompt": {s for s in real if row[s] == Q and s not in answer},
            "answer": answer,
            "text": {s for s in real if row[s] != P},
        }
        sources = {s for s in real if row[s] == (P if source == "percept" else Q)}
        for query in range(length):
            for key in range(query + 1):
                free = with_sinks or key != real[0]
                is_cut = query in kinds[destination] and key in sources and key != query and free
                allowed[b, query, key] = row[key] != PAD and not is_cut
            allowed[b, query, query] = True
    return allowed


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("edge", EDGES)
def test_a_cut_equals_the_same_mask_given_to_the_stock_model(edge: str, with_sinks: bool) -> None:
    llm, (source, destination) = make(), edge.split("->")
    x = inputs(llm)
    allowed = cut_by_hand(ROLES, source, destination, with_sinks)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    positions = ((ROLES != PAD).long().cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = llm.model.base_model(
            inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        with KnockOut(source, destination, 0, llm.num_blocks, with_sinks).apply(llm):  # type: ignore[arg-type]
            found = llm(x, ROLES)
    real = ROLES != PAD
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    assert hooks_of(llm) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_all_text_cut_from_percepts_in_all_blocks_is_a_pass_without_them(family: str) -> None:
    llm = make(family)
    roles = torch.tensor([[P, P, P, Q, Q, A, A, S0]])
    x = inputs(llm, roles)
    with torch.no_grad():
        with KnockOut("percept", "text", 0, llm.num_blocks, with_sinks=True).apply(llm):
            found = llm(x, roles)
        alone = llm.model.base_model(
            inputs_embeds=x[:, 3:], attention_mask=torch.ones(1, 1, 5, 5).tril().log(),
            position_ids=torch.arange(3, 8)[None], use_cache=False,
        ) if family != "opt" else None  # fmt: skip
    if alone is None:  # OPT makes positions of the mask itself: percepts changed at will must not matter
        other = x.clone()
        other[:, :3] += 5
        with torch.no_grad(), KnockOut("percept", "text", 0, llm.num_blocks, with_sinks=True).apply(llm):
            torch.testing.assert_close(llm(other, roles)[:, 3:], found[:, 3:], atol=1e-5, rtol=1e-5)
        return
    torch.testing.assert_close(found[:, 3:], alone.last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [KnockOut("percept", "answer", 0, 2), BackPatch(0, 1), KnockOut("prompt", "answer")])
def test_decoding_with_a_cache_equals_whole_passes(change: KnockOut | BackPatch) -> None:
    llm = make()
    roles = torch.tensor([[PAD, S0, P, P, P, Q, Q], [P, P, P, P, Q, Q, Q]])
    x = inputs(llm, roles)
    with torch.no_grad(), stack(llm, [change]):
        made = llm.generate(x, roles, Generation(4))
        for row in range(2):
            real = roles[row] != PAD
            ids: list[int] = []
            for token in made[row]:
                grown = torch.cat([x[row, real][None], llm.embed(torch.tensor([ids]).long().view(1, -1))], dim=1)
                all_roles = torch.cat([roles[row, real], torch.full((len(ids),), G)])[None]
                hidden = llm(grown, all_roles)
                assert int(llm.logits(hidden[:, -1]).argmax()) == token
                ids.append(token)
    assert any(made)


def test_cuts_compose_and_leave_nothing() -> None:
    llm = make()
    x = inputs(llm)
    plain = llm(x, ROLES)
    with stack(llm, [KnockOut("percept", "prompt", 0, 1), KnockOut("percept", "answer", 0, 1), Isolate(1)]):
        both = llm(x, ROLES)
    with stack(llm, [Isolate(1)]):
        isolated = llm(x, ROLES)
    real = ROLES != PAD
    torch.testing.assert_close(both[real], isolated[real], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[real], plain[real]) and torch.equal(llm(x, ROLES), plain)


def test_what_predicts_the_answer_begins_with_the_last_token_before_it() -> None:
    roles = torch.tensor([[P, Q, Q, A, A, S0], [PAD, P, Q, Q, Q, Q], [Q, G, PAD, PAD, PAD, PAD]])
    assert answering(roles).int().tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0]]


def test_windows_and_edges_that_do_not_fit_are_refused_in_one_line() -> None:
    llm = make()
    assert list(KnockOut(width=None).blocks(30)) == list(range(6))
    for wrong in (lambda: KnockOut("prompt", "percept"), lambda: KnockOut(start=-1), lambda: BackPatch(2, 1),
                  lambda: Steer(2.0), lambda: Steer(layer=-1)):  # fmt: skip
        with pytest.raises(UserError):
            wrong()
    for change in (KnockOut(start=llm.num_blocks), BackPatch(0, llm.num_blocks), Steer(layer=llm.num_blocks)):
        with pytest.raises(UserError, match=str(llm.num_blocks)):
            change.check(llm.facts)


@pytest.mark.parametrize("family", FAMILIES)
def test_back_patching_equals_two_passes_by_hand_and_taps_see_the_second(family: str) -> None:
    llm, real = make(family), ROLES != PAD
    x, last = inputs(llm), llm.num_blocks - 1

    def seen() -> dict[int, torch.Tensor]:
        sink = KeepStates()
        with torch.no_grad(), (tap := Tap(llm, [sink])), tap.batch(ROLES, ["a", "b"]):
            llm(x, ROLES)
        return {layer: state for (site, layer), state in sink.states().states.items() if site is Site.RESID_POST}

    first = seen()
    wanted = torch.where((ROLES == P)[..., None], first[last + 1], first[1])
    kept: list[torch.Tensor] = []

    def replace(_module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> object:
        return ((wanted, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": wanted})

    handle = llm.table.blocks[1].register_forward_pre_hook(replace, with_kwargs=True)
    with torch.no_grad():
        kept.append(llm(x, ROLES))
    handle.remove()
    with stack(llm, [BackPatch(1, last)]):
        with torch.no_grad():
            found = llm(x, ROLES)
        shown = seen()
    torch.testing.assert_close(found[real], kept[0][real], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(shown[1][real], first[1][real], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(shown[last + 1][real], first[last + 1][real])
    assert hooks_of(llm) == [] and "forward" not in vars(llm.model.base_model)


class Calibration:
    key, name = "k", "made"

    def facts(self) -> dict[str, object]:
        return {}

    def inputs(self, llm: FrozenLLM):  # type: ignore[no-untyped-def]
        x = inputs(llm)
        yield x[:1], ROLES[:1]
        yield x[1:], ROLES[1:]


def resolved(llm: FrozenLLM, **options: object) -> Steer:
    setting = Setting(run="r", calibrate=lambda *_: Calibration())  # type: ignore[arg-type]
    return Steer(**options).resolve(llm, setting)  # type: ignore[arg-type]


def test_steering_adds_the_difference_of_the_means_to_percepts_alone() -> None:
    llm = make()
    x, text = inputs(llm), (ROLES == Q) | (ROLES == A)
    shift = x[text].mean(0) - x[ROLES == P].mean(0)
    moved = torch.where((ROLES == P)[..., None], x + 0.5 * shift, x)
    with torch.no_grad():
        with stack(llm, [resolved(llm, alpha=0.5, layer=0)]):
            found = llm(x, ROLES)
        expected = llm(moved, ROLES)
        torch.testing.assert_close(found[ROLES != PAD], expected[ROLES != PAD], atol=1e-5, rtol=1e-5)
        plain = llm(x, ROLES)
        with stack(llm, [resolved(llm, alpha=0.0, layer=1)]):
            assert torch.equal(llm(x, ROLES), plain)
        random = resolved(llm, alpha=1.0, direction="random").shift(llm, Calibration())
    assert float(random.norm()) == pytest.approx(float(shift.norm()), rel=1e-4)
    assert hooks_of(llm) == []
