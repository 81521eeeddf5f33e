"""Attention mass equals loops over the weights that the stock model gives with `output_attentions`, in every family,
whatever the batches and the padding, and looking changes nothing."""

import math

import pytest
import torch
from test_alignment_groups import at, evaluator_of, measured
from test_alignment_measurement import BASE

from ima.alignment.attention_mass import KEYS, QUERIES, AttentionMass, attention_rows, first_content
from ima.config.settings import Alignment
from ima.core.types import Role
from ima.models.llm.attention_weights import can_watch, watching
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.tiny import FAMILY_NAMES, tiny_model, tiny_tokenizer

P, Q, A, S0 = Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL
ROWS = {
    "a": ([P, P, P, Q, Q, A, A, A, S0], [1, 2]),
    "b": ([S0, P, P, Q, A, S0], [0]),
    "c": ([S0, Q, Q, A, A], []),
    "d": ([P, P], []),
}


def states(llm, name):
    generator = torch.Generator().manual_seed(ord(name))
    return torch.randn(len(ROWS[name][0]), llm.width, generator=generator) * llm.embedding_norm / llm.width**0.5


@torch.no_grad()
def shown(llm, names, extra=0, mass=None):
    """The mass of a pass over these rows, padded on the right; and what the pass gives."""
    mass = mass or AttentionMass({name: nouns for name, (_, nouns) in ROWS.items()}, llm.num_blocks)
    length = max(len(ROWS[name][0]) for name in names) + extra
    roles = torch.zeros(len(names), length, dtype=torch.long)
    x = torch.zeros(len(names), length, llm.width)
    for row, name in enumerate(names):
        size = len(ROWS[name][0])
        roles[row, :size], x[row, :size] = torch.tensor(ROWS[name][0]), states(llm, name)
    mass.begin(roles, names)
    with watching(llm, mass.see):
        h = llm(x, roles)
    mass.end()
    return mass, h, x, roles


def loops(llm, name):
    """From the attentions of the stock model over this row alone, query by query and key by key."""
    kinds, nouns = ROWS[name]
    llm.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = llm.model.base_model(inputs_embeds=states(llm, name)[None], output_attentions=True, use_cache=False)
    llm.model.set_attn_implementation("sdpa")
    answers = [s for s, kind in enumerate(kinds) if kind == A]
    queries = {
        "P": [s for s, kind in enumerate(kinds) if kind == P],
        "T.prompt": [s for s, kind in enumerate(kinds) if kind == Q],
        "T.answer": [s - 1 for s in answers],
        "T.noun": [answers[place] - 1 for place in nouns],
    }
    of_role = {"P": P, "T.prompt": Q, "T.answer": A, "special": S0}
    keys = {key: [s for s, kind in enumerate(kinds) if kind == role and s > 0] for key, role in of_role.items()}
    keys["sink"] = [0]
    mass, each = {}, {}
    for layer, weights in enumerate(output.attentions):
        for head in range(weights.shape[1]):
            w = weights[0, head].double()
            for a, k in ((a, k) for a in QUERIES for k in KEYS):
                given = [sum(float(w[q, s]) for s in keys[k]) for q in queries[a]]
                mass[layer, a, head, k] = sum(given) / len(given) if given else math.nan
                read = [(q, [s for s in keys[k] if s <= q]) for q in queries[a]]
                shares = [sum(float(w[q, s]) for s in mine) / len(mine) for q, mine in read if mine]
                each[layer, a, head, k] = sum(shares) / len(shares) if shares else math.nan
    return mass, each


def flat(found):
    """As `loops` gives it."""
    layers, queries, heads, keys = found.shape
    return {
        (layer, QUERIES[a], head, KEYS[k]): float(found[layer, a, head, k])
        for layer in range(layers) for a in range(queries) for head in range(heads) for k in range(keys)
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_mass_equals_loops_over_the_stock_models_attentions(family):
    llm = FrozenLLM(tiny_model(family, seed=1), tiny_tokenizer(), name=family)
    mass, *_ = shown(llm, ["a", "b"])
    for name in ("a", "b"):
        for mine, wanted in zip(mass.kept[name], loops(llm, name), strict=True):
            assert flat(mine) == pytest.approx(wanted, abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    return tiny()


def test_mass_does_not_depend_on_batches_order_and_padding(llm):
    whole, *_ = shown(llm, ["a", "b", "c", "d"])
    parts, *_ = shown(llm, ["d", "b"], extra=3)
    shown(llm, ["c"], mass=parts)
    shown(llm, ["a"], extra=1, mass=parts)
    for name, sides in whole.kept.items():
        for side, other in zip(sides, parts.kept[name], strict=True):
            assert torch.allclose(side, other, atol=1e-6, equal_nan=True)


def test_the_kinds_of_keys_share_out_the_whole(llm):
    mass, *_ = shown(llm, ["a", "b", "c"])
    for sides in mass.kept.values():
        total = sides[0].sum(-1)
        assert torch.allclose(total[~total.isnan()], torch.ones(1).double(), atol=1e-6)


def test_looking_changes_nothing_and_leaves_nothing_behind(llm):
    before = llm.model.config._attn_implementation
    _, h, x, roles = shown(llm, ["a", "b"])
    assert llm.model.config._attn_implementation == before and can_watch(llm)
    with torch.no_grad():
        assert torch.allclose(llm(x, roles)[roles > 0], h[roles > 0], atol=1e-6)


def test_the_first_content_word_is_found_among_the_answers_tokens(llm):
    ids = [*llm.encode("say:"), *llm.encode(" there is a cow here")]
    roles = [Q] * 4 + [A] * (len(ids) - 4)
    places = first_content(llm, ids, roles)
    assert llm.tokenizer.decode([ids[4 + place] for place in places]).strip() == "cow"
    assert first_content(llm, llm.encode(" is the"), [A] * 7) == []


def test_rows_are_means_over_examples_and_say_why_there_is_nothing(llm):
    mass, *_ = shown(llm, ["a", "b", "c", "d"])
    rows = list(attention_rows(mass, {}, {"run": "r"}))
    assert all(row.value == row.value or row.note for row in rows)
    wanted = torch.stack([mass.kept[name][0][0, 2, :, 1].mean() for name in ("a", "b", "c")]).mean()
    found = at(rows, "attention_mass", role_a="T.answer", role_b="P", variant="raw")
    assert found[1, 1] == pytest.approx(float(wanted))
    assert [row.note for row in attention_rows(None, {}, {"run": "r"})] == [
        "an intervention computes attention in its own way"
    ] * 2


def test_through_a_whole_measurement_it_does_not_depend_on_batches_and_order():
    one = measured(evaluator_of(8), groups=("attention",))
    evaluator = evaluator_of(5)
    samples = evaluator.source.samples("val")[::-1]
    other = evaluator.teacher_forced(samples, Alignment(groups=("attention",)))[1].rows(BASE, {})[0]
    for query in QUERIES:
        for score in ("attention_mass", "attention_per_token"):
            mine = at(one, score, role_a=query, role_b="P", variant="raw")
            assert mine and at(other, score, role_a=query, role_b="P", variant="raw") == pytest.approx(mine, abs=1e-5)
