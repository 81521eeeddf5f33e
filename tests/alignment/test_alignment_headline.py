"""Retrieval of text-only T by layer, growth, centred cosine and gap equal their definitions, by loops in fp64."""

import itertools
import math

import pytest
import torch
from alignment_states import NUM_LAYERS, S0, WIDTH, A, P, Q

from ima.alignment.headline import headline_rows
from ima.alignment.kept_means import KeptMeans, TextBank
from ima.alignment.pairing import NUM_PERMUTATIONS, Pairing, components
from ima.alignment.sinks import SinkDimensions, sink_mask
from ima.core.types import Role, Site

SINK = 7
NUM = 26
UNITS = 9


def made(seed=0, num=NUM, shared=0.7, massive=True):
    """(id, cluster, text, roles, states [L, S, D], text roles, text states): examples of a noun share a direction;
    texts of one noun are the same, two nouns share a cluster; some tokens are massive in one dimension."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    nouns, centre = randn(UNITS + 1, WIDTH), 3 * randn(2, WIDTH)
    texts = {}
    for noun in range(UNITS + 1):
        roles = [Q] * 2 + [A] * (1 + noun % 3) + [S0]
        state = randn(NUM_LAYERS, len(roles), WIDTH) + nouns[noun] + centre[1]
        if massive:
            state[1:, 0, SINK] = 4e3
        if massive and noun == 4:
            state[2:, 2, SINK] = -4e3  # the only answer token but one
        texts[noun] = roles, state
    out = []
    for index in range(num):
        noun = index % (UNITS + 1)
        roles = [P] * (index % 4 + (index != 12)) + [Q] * 2 + [A] * (index % 2)
        state = randn(NUM_LAYERS, len(roles), WIDTH) + shared * nouns[noun] + centre[0]
        if massive and index % 5 == 1:
            state[1:, 0, SINK] = 5e3
        cluster = "both" if noun >= UNITS - 1 and index < 10 else f"c{index}"
        out.append((f"s{index}", cluster, noun, roles, state, *texts[noun]))
    return out


def show(sink, part, left=False, extra=0):
    """(id, roles, states) in one batch."""
    length = max(len(roles) for _, roles, _ in part) + extra
    roles_BS = torch.zeros(len(part), length, dtype=torch.long)
    x = torch.full((NUM_LAYERS, len(part), length, WIDTH), 1e6)
    for index, (_, roles, state) in enumerate(part):
        span = slice(length - len(roles), length) if left else slice(0, len(roles))
        roles_BS[index, span], x[:, index, span] = torch.tensor(roles), state
    sink.begin(roles_BS, [name for name, _, _ in part])
    for layer in range(NUM_LAYERS):
        sink.see(layer, Site.RESID_POST, x[layer])
    sink.end()


def measured(examples, batch=5, left=False, extra=0, num=512, ranks=1):
    ids, clusters, nouns = (list(column) for column in zip(*[example[:3] for example in examples], strict=True))
    pairing = Pairing.of(ids, clusters, [((noun,), (3,)) for noun in nouns], num)
    text = [(pairing.ids[i], *examples[ids.index(pairing.ids[i])][5:]) for i in pairing.representatives]
    layers = list(range(NUM_LAYERS))
    dims = SinkDimensions(layers, NUM_LAYERS - 1)
    show(dims, text, left, extra)
    kept = KeptMeans([name for name, _, _ in text], layers, dims.found(), tokens="answer")
    show(kept, text, left, extra)
    bank = TextBank(pairing, layers, dims.found(), kept.means([name for name, _, _ in text]))
    parts = [KeptMeans(pairing.ids, layers, dims.found()) for _ in range(ranks)]
    media = [(name, roles, state) for name, _, _, roles, state, *_ in examples]
    for rank, part in enumerate(parts):
        mine = media[rank::ranks]
        for start in range(0, len(mine), batch):
            show(part, mine[start : start + batch], left, extra)
    for part in parts[1:]:
        parts[0].kept |= part.kept
    return bank, list(headline_rows(bank, parts[0].means(pairing.ids), {"run": "r"}))


def table(rows):
    return {(row.score, row.layer_a): row.value for row in rows}


def unit(x):
    return x / x.norm() if x.norm() > 0 else x


def is_sink(state_SD, roles, position, dims):
    chosen = [s for s, role in enumerate(roles) if role in (P, Q, A)]
    values = sorted(abs(float(v)) for s in chosen for v in state_SD[s])
    median = values[(len(values) - 1) // 2]
    return any(abs(float(state_SD[position, d])) > 1000 * median for d in dims)


def mean_of(state_SD, roles, wanted, dims):
    kept = [s for s, role in enumerate(roles) if role == wanted and not is_sink(state_SD, roles, s, dims)]
    return state_SD[kept].double().mean(0) if kept else None


def brute_force(examples, dims):
    """By loops over examples, texts and units, one vector at a time."""
    units = brute_units(examples)
    numbers = sorted(set(units))
    texts = {noun: (roles, state) for _, _, noun, _, _, roles, state in examples}
    found = {}
    for layer in range(NUM_LAYERS):
        p = [mean_of(state[layer], roles, P, dims) for _, _, _, roles, state, _, _ in examples]
        t = {noun: mean_of(state[layer], roles, A, dims) for noun, (roles, state) in texts.items()}

        def own(values):
            have = [value for value in values if value is not None]
            return unit(torch.stack(have).mean(0)) if have else None

        unit_p = {u: own([p[e] for e in range(len(examples)) if units[e] == u]) for u in numbers}
        unit_t = {u: own([t[examples[e][2]] for e in range(len(examples)) if units[e] == u]) for u in numbers}

        def centred(x, u, of):
            others = [value for other, value in of.items() if other != u and value is not None]
            return unit(unit(x) - torch.stack(others).mean(0))

        unit_of_noun = {examples[e][2]: units[e] for e in range(len(examples))}
        hits = []
        for e, example in enumerate(examples):
            if p[e] is None:
                continue
            query = centred(p[e], units[e], unit_p)
            scores = {
                noun: float(query @ centred(x, unit_of_noun[noun], unit_t)) for noun, x in t.items() if x is not None
            }
            best = [noun for noun, score in scores.items() if score >= max(scores.values()) - 1e-9]
            hits.append((example[2] in best) / len(best))
        found["retrieval", layer] = sum(hits) / len(hits)
        cosines = [
            float(centred(unit_p[u], u, unit_p) @ centred(unit_t[u], u, unit_t))
            for u in numbers
            if unit_p[u] is not None and unit_t[u] is not None
        ]
        found["centred_cosine", layer] = sum(cosines) / len(cosines)
        raw_p = [mean_of(state[layer], roles, P, []) for _, _, _, roles, state, _, _ in examples]
        raw_t = [mean_of(texts[e[2]][1][layer], texts[e[2]][0], A, []) for e in examples]
        have = [e for e in range(len(examples)) if raw_p[e] is not None]
        cosine = {(a, b): float(unit(raw_p[a]) @ unit(raw_t[b])) for a in have for b in have}
        matched = sum(cosine[a, a] for a in have) / len(have)
        across = [cosine[a, b] for a, b in itertools.permutations(have, 2)]
        found["gap", layer] = matched - sum(across) / len(across)
    rates = [found["retrieval", layer] for layer in range(NUM_LAYERS)]
    found["retrieval_growth", None] = max(rates[1:]) - rates[0]
    found["retrieval_mean", None] = sum(rates[1:]) / len(rates[1:])
    found["retrieval_chance", None] = 1 / len(texts)
    return found


def brute_units(examples):
    """Colours spread until nothing changes."""
    colour = list(range(len(examples)))
    for _ in examples:
        for a, b in itertools.product(range(len(examples)), repeat=2):
            if examples[a][1] == examples[b][1] or examples[a][2] == examples[b][2]:
                colour[a] = colour[b] = min(colour[a], colour[b])
    return colour


def test_the_headline_is_its_definition_for_any_batches_padding_order_and_ranks():
    examples = made()
    bank, rows = measured(examples)
    assert bank.dims == [SINK] and bank.pairing.num_units == UNITS
    expected = brute_force(examples, bank.dims)
    found = table(rows)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-5), key
    for examples_again, how in (
        (examples, {"batch": 1}),
        (examples, {"batch": 26, "left": True, "extra": 3}),
        (examples[::-1], {"batch": 7}),
        (examples, {"batch": 4, "ranks": 2}),
    ):
        again = table(measured(examples_again, **how)[1])
        assert {key: again[key] for key in expected} == pytest.approx(expected, abs=1e-5)


def test_the_null_of_growth_is_the_same_maximum_with_units_given_each_others_texts():
    examples = made(shared=0.4)
    bank, rows = measured(examples)
    pairing, found = bank.pairing, table(rows)
    by_id = {example[0]: example for example in examples}
    nulls = []
    for permutation in pairing.permutations_BU.tolist():
        texts_of = {u: [x for x, unit_ in enumerate(pairing.unit_of_text) if unit_ == u] for u in permutation}
        rates = []
        for layer in range(NUM_LAYERS):
            nearest = nearest_texts(examples, bank, layer)
            shares = [
                len(set(nearest[name]) & set(texts_of[permutation[u]]))
                / len(nearest[name])
                / len(texts_of[permutation[u]])
                for name, u in zip(pairing.ids, pairing.unit_of, strict=True)
                if by_id[name][3].count(P) and nearest[name]
            ]  # fmt: skip
            rates.append(sum(shares) / len(shares))
        nulls.append(max(rates[1:]) - rates[0])
    assert len(nulls) == NUM_PERMUTATIONS
    assert found["retrieval_growth_null", None] == pytest.approx(sum(nulls) / len(nulls), abs=1e-9)
    above = sum(value >= found["retrieval_growth", None] - 1e-9 for value in nulls)
    assert found["retrieval_growth_p", None] == pytest.approx((1 + above) / (1 + len(nulls)))
    assert found["retrieval_growth_over_null", None] == pytest.approx(
        found["retrieval_growth", None] - found["retrieval_growth_null", None]
    )


def nearest_texts(examples, bank, layer, cache={}):  # noqa: B006 (states of one test)
    key = id(bank), layer
    if key in cache:
        return cache[key]
    units = dict(zip(bank.pairing.ids, bank.pairing.unit_of, strict=True))
    texts = {noun: (roles, state) for _, _, noun, _, _, roles, state in examples}
    nouns = [next(e[2] for e in examples if e[0] == bank.pairing.ids[i]) for i in bank.pairing.representatives]
    p = {e[0]: mean_of(e[4][layer], e[3], P, bank.dims) for e in examples}
    t = [mean_of(texts[noun][1][layer], texts[noun][0], A, bank.dims) for noun in nouns]

    def units_of(pairs):
        found = {}
        for u, value in pairs:
            if value is not None:
                found.setdefault(u, []).append(value)
        return {u: unit(torch.stack(values).mean(0)) for u, values in found.items()}

    of_p = units_of((units[name], value) for name, value in p.items())
    of_t = units_of((units[e[0]], t[nouns.index(e[2])]) for e in examples)

    def centred(x, u, of):
        return unit(unit(x) - torch.stack([value for other, value in of.items() if other != u]).mean(0))

    found = {}
    for name, value in p.items():
        if value is None:
            found[name] = []
            continue
        query = centred(value, units[name], of_p)
        scores = [
            -2.0 if x is None else float(query @ centred(x, u, of_t))
            for x, u in zip(t, bank.pairing.unit_of_text, strict=True)
        ]
        found[name] = [x for x, score in enumerate(scores) if score >= max(scores) - 1e-9]
    cache[key] = found
    return found


def test_units_are_connected_by_texts_and_clusters():
    assert components(["a", "b", "a", "c", "d"], [1, 1, 2, 3, 2]) == [0, 0, 0, 1, 0]
    assert components([], []) == []


def test_fewer_than_eight_units_give_no_number_and_say_why():
    rows = measured(made()[:7])[1]
    assert rows and all(math.isnan(row.value) and "7 units" in row.note for row in rows)
    assert {row.score for row in rows} >= {"retrieval", "retrieval_growth", "gap_mean"}


def test_whole_units_are_drawn_and_do_not_depend_on_order():
    examples = made()
    one, other = measured(examples, num=12)[0].pairing, measured(examples[::-1], num=12)[0].pairing
    assert sorted(one.ids) == sorted(other.ids) and len(one.ids) <= 12
    whole = Pairing.of(*[list(c) for c in zip(*[(e[0], e[1], e[2]) for e in examples], strict=True)], num=999)
    members = {}
    for name, number in zip(whole.ids, whole.unit_of, strict=True):
        members.setdefault(number, set()).add(name)
    assert all(unit_ <= set(one.ids) or not unit_ & set(one.ids) for unit_ in members.values())


def test_noise_finds_texts_by_chance_and_planted_directions_by_layer():
    noise = [table(measured(made(seed, 60, shared=0.0, massive=False))[1]) for seed in range(12)]
    rates = [found["retrieval_mean", None] for found in noise]
    assert sum(rates) / len(rates) == pytest.approx(1 / (UNITS + 1), abs=0.04)
    planted = table(measured(made(0, 60, shared=3.0))[1])
    assert planted["retrieval_mean", None] > 0.8


def test_a_token_is_a_sink_only_in_a_sink_dimension_far_above_its_examples_median():
    x = torch.ones(1, 4, 6)
    x[0, 1, 2], x[0, 2, 3] = 1001.0, 999.0
    roles = torch.tensor([[int(P), int(P), int(Q), int(Role.PAD)]])
    assert sink_mask(x, roles, [2, 3]).tolist() == [[False, True, False, False]]
    assert not sink_mask(x, roles, [3]).any() and not sink_mask(x, roles, []).any()
