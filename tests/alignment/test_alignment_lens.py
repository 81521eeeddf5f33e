"""The contextual lens: its bank holds the LLM's own states, shares and chance equal loops in fp64, on a planted bank
the share is 1 and chance as computed, on noise the interval covers chance."""

import dataclasses
import itertools
import math

import pytest
import torch
from test_alignment_groups import at, evaluator_of, measured
from test_alignment_measurement import BASE
from torch.nn.functional import normalize

from ima.alignment.contextual_lens import Ask, ContextualLens, LensSamples, Vocabulary, of_bank, shares_of
from ima.alignment.kept_percepts import KeptPercepts, centred
from ima.alignment.lens_shares import Shares, Wanted
from ima.alignment.naming import Namer
from ima.alignment.word_bank import WordBank, bank_layers, contexts_of, sequences_of, texts_of, word_bank
from ima.config.settings import Alignment
from ima.core.types import Role, Site
from ima.models.llm.load import tiny
from ima.models.llm.pieces import Before

TEXTS = ["a red cow, a fire truck and some cows", "the cow", "here is a cow on the left", "a cow", "truck"]
WIDTH = 12


def nothing(num):
    """Nobody is told."""


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    return tiny()


def contexts(llm, texts=TEXTS):
    return contexts_of(texts, llm.encode, llm.bos_id, Namer("stamps"))


def test_an_entry_is_the_state_of_its_word_in_the_llms_own_pass_over_what_stands_before_it(llm):
    found = contexts(llm)
    bank = word_bank(llm, found, nothing)
    assert bank.layers == bank_layers(llm.num_blocks)
    for index, context in enumerate(found):
        with torch.no_grad():
            output = llm.model(torch.tensor([context.ids]), output_hidden_states=True)
        for place, layer in enumerate(bank.layers):
            if layer < llm.num_blocks:  # the last hidden state of the library is after the final norm
                wanted = normalize(output.hidden_states[layer][0, -1], dim=0)
                assert torch.allclose(bank.state_LCD[place, index].float(), wanted, atol=2e-3)
        assert bank.words[bank.word_C[index]] == context.word


def test_beginnings_are_kept_once_and_names_of_several_words_are_one_word(llm):
    found = contexts(llm)
    assert len({context.ids for context in found}) == len(found)
    sentences = {context.sentence: context.word for context in found}
    assert sentences["a red cow, a fire truck"] == "fire truck" and sentences["a red cow"] == "cow"
    start = 1 if llm.bos_id is None else 2
    assert all(len(context.ids) > 1 for context in found)
    assert ("truck" in sentences) == (len(llm.encode("truck", Before.NOTHING)) >= start)
    assert contexts(llm, TEXTS[::-1]) == found


def test_every_entry_ends_inside_one_sequence_that_begins_like_it(llm):
    found = contexts(llm)
    runs = sequences_of(found)
    inside = sorted(itertools.chain(*(places for _, places in runs)))
    assert inside == list(range(len(found))) and len(runs) < len(found)
    assert all(ids[: len(found[place].ids)] == found[place].ids for ids, places in runs for place in places)


def test_of_a_word_at_most_fifty_contexts_are_kept_whatever_the_order(llm):
    texts = [f"{a} {b} cow" for a in ("one", "two", "red", "old", "big", "the", "my", "no") for b in "abcdefgh"]
    found = contexts(llm, texts)
    assert sum(context.word == "cow" for context in found) == 50
    assert contexts(llm, texts[::-1]) == found


def random_bank(seed=0, num_words=9, contexts=3, names=()):
    generator = torch.Generator().manual_seed(seed)
    words = [*sorted(names), *(f"zz{index}" for index in range(num_words))]
    word_C = torch.arange(len(words)).repeat_interleave(contexts)
    state = normalize(torch.randn(1, len(word_C), WIDTH, generator=generator), dim=-1).half()
    return WordBank(words, word_C, ["" for _ in word_C], [1], state)


def brute_share(tokens, bank, nouns, named, k):
    """Of each medium and set of nouns the share of its tokens, by loops in fp64."""
    units = [row.double() / row.double().norm() for row in bank.state_LCD[0]]
    centre = torch.stack([row.double() for row in bank.state_LCD[0]]).mean(0)
    units = [(row - centre) / (row - centre).norm() for row in units]
    own = [[row.double() / row.double().norm() for row in x_KD] for x_KD in tokens]
    media = torch.stack([torch.stack(rows).mean(0) for rows in own]).mean(0)
    out = {}
    for index, rows in enumerate(own):
        for wanted in set(nouns):
            hits = 0
            for row in rows:
                x = (row - media) / (row - media).norm()
                best = {}
                for place, unit in enumerate(units):
                    word = int(bank.word_C[place])
                    best[word] = max(best.get(word, -2.0), float(unit @ x))
                last = sorted(best.values(), reverse=True)[k - 1]
                hits += any(value >= last - 1e-6 and named[word] & wanted for word, value in best.items())
            out[index, wanted] = hits / len(rows)
    return out


@pytest.mark.parametrize("k", [1, 5])
def test_shares_and_chance_equal_loops_over_tokens_words_and_media(k):
    names = {"cow": {"cow"}, "kine": {"cow"}, "cat": {"cat"}, "dog": {"dog"}}
    bank = random_bank(3, names=names)
    named = [frozenset(names.get(word, ())) for word in bank.words]
    generator = torch.Generator().manual_seed(1)
    nouns = [frozenset(given) for given in (["cow"], ["cat"], ["cow", "dog"], ["cow"], ["dog"], ["cat"], ["dog"])]
    tokens = [torch.randn(2 + index % 3, WIDTH, generator=generator) for index in range(len(nouns))]
    tokens[1][0] = tokens[4][1]  # two tokens that tie
    bank.state_LCD[0, -1] = bank.state_LCD[0, 0]  # two words that tie
    sets = sorted(set(nouns), key=sorted)
    shown = LensSamples([str(i) for i in range(7)], [f"c{i}" for i in range(7)], nouns, None)
    (found,) = shares_of(centred(tokens), of_bank(bank), [Ask(Wanted.of(sets, named), k)], shown)
    brute = brute_share(tokens, bank, nouns, named, k)
    for (index, wanted), value in brute.items():
        assert float(found.share_MS[index, sets.index(wanted)]) == value
    chances = []
    for mine in nouns:
        others = [brute[index, mine] for index, theirs in enumerate(nouns) if not theirs & mine]
        chances.append(sum(others) / len(others))
    assert found.chance_value() == pytest.approx(sum(chances) / len(chances), abs=1e-12)
    own = [brute[index, mine] for index, mine in enumerate(nouns)]
    assert found.difference().value == pytest.approx(sum(own) / 7 - sum(chances) / 7, abs=1e-12)


def test_on_a_planted_bank_the_share_is_one_and_chance_is_what_other_media_say(llm):
    names = [f"n{index}" for index in range(12)]
    bank = random_bank(5, num_words=40, contexts=2, names=names)
    named = [frozenset({word} if word in names else ()) for word in bank.words]
    # Each medium's two tokens are its word's two contexts: media have the centre that the words have.
    state = bank.state_LCD[0].float()
    state = state.reshape(-1, 2, WIDTH)
    state[12:] -= state[12:].mean((0, 1)) - state[:12].mean((0, 1))
    bank = dataclasses.replace(bank, state_LCD=normalize(state.reshape(1, -1, WIDTH), dim=-1))
    tokens = [bank.state_LCD[0, 2 * index : 2 * index + 2] for index in range(12)]
    nouns = [frozenset({name}) for name in bank.words[:12]]
    sets = sorted(set(nouns), key=sorted)
    shown = LensSamples(names, names, nouns, None)
    (found,) = shares_of(centred(tokens), of_bank(bank), [Ask(Wanted.of(sets, named))], shown)
    assert float(found.value_M.min()) == 1.0
    share = found.share_MS
    off = [float(share[i, sets.index(nouns[j])]) for i in range(12) for j in range(12) if i != j]
    assert found.chance_value() == pytest.approx(sum(off) / len(off)) and 0 < found.chance_value() < 0.5


def test_on_noise_the_interval_covers_chance():
    names = [f"n{index}" for index in range(10)]
    covered = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(1000 + seed)
        bank = random_bank(seed, num_words=20, contexts=2, names=names)
        named = [frozenset({word} if word in names else ()) for word in bank.words]
        nouns = [frozenset({names[index % 10]}) for index in range(60)]
        views = torch.randn(30, 4, WIDTH, generator=generator).repeat_interleave(2, dim=0)  # two views of one thing
        tokens = list(views + 0.5 * torch.randn(60, 4, WIDTH, generator=generator))
        order = [2 * (index % 30) + index // 30 for index in range(60)]  # nouns and pairs of views are crossed
        nouns = [nouns[(index // 2) % 10] for index in range(60)]
        shown = LensSamples([f"s{i}" for i in order], [f"c{i // 2}" for i in range(60)], nouns, None)
        sets = sorted(set(nouns), key=sorted)
        (found,) = shares_of(centred(tokens), of_bank(bank), [Ask(Wanted.of(sets, named))], shown)
        interval = found.difference()
        covered += interval.low <= 0 <= interval.high
    assert covered >= 90


def test_chance_is_nan_with_its_reason_where_all_media_show_the_same():
    own_M, other_MS = torch.zeros(9, dtype=torch.long), torch.zeros(9, 1).bool()
    shares = Shares(torch.ones(9, 1).double(), own_M, other_MS, list("abcdefghi"))
    assert math.isnan(shares.chance_value()) and math.isnan(shares.difference().value)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    nouns = ("cow", "red bus", "teapot", "violin", "star", "old dog", "cat", "green boat", "hat", "tree", "time", "way")
    path.write_text("\n".join(f"{start} {noun}" for start in ("here is the", "we see a") for noun in nouns))
    return str(path)


@pytest.fixture(scope="module")
def rows(texts):
    return measured(evaluator_of(), groups=("lens",), words=texts)


def test_by_default_words_are_those_of_training_texts_and_of_the_vocabulary_in_carrier_sentences():
    texts = texts_of(["a picture of a cow", "a cow"], Namer("shapes").forms)
    assert "a picture of a cow" in texts and "we see the circle" in texts and "about time" in texts
    assert texts_of(["a cow", "a picture of a cow"], Namer("shapes").forms) == texts


def test_each_row_has_a_number_or_a_reason(rows):
    mine = [row for row in rows if row.score.startswith("lens")]
    assert [row for row in mine if row.value != row.value and not row.note] == []
    assert {"lens_one_token", "lens_share_mean", "lens_nouns_reached", "lens_share_broader"} <= {
        row.score for row in mine
    }
    assert {(row.layer_b, row.role_b) for row in mine if row.score == "lens_share"} == {(2, "T.text")}


def test_rows_do_not_depend_on_batches_and_order(rows, texts):
    evaluator = evaluator_of(7)
    samples = evaluator.source.samples("val")[::-1]
    other = evaluator.teacher_forced(samples, Alignment(groups=("lens",), words=texts))[1].rows(BASE, {})[0]
    for score in ("lens_share", "lens_chance", "lens_share_first", "lens_over_chance_low"):
        for variant in ("centred", "raw"):
            assert at(other, score, variant=variant) == pytest.approx(at(rows, score, variant=variant), abs=1e-9)


def test_a_texts_words_can_be_ones_own(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the cow and the cat\nwe see a teapot\n")
    found = measured(evaluator_of(), groups=("lens",), words=str(path))
    notes = [row.note for row in found if row.score == "lens_share"]
    assert notes and all("nouns have no word in the bank" in note for note in notes)


def test_logit_lens_and_embeddings_are_asked_for_the_same_distinct_words(llm):
    vocabulary = Vocabulary(llm, Namer("stamps"))
    x = torch.randn(3, llm.width, generator=torch.Generator().manual_seed(0))
    words = llm.model.get_input_embeddings().weight
    logits = llm.logits(llm.model.model.norm(x)).log_softmax(-1)
    cosines = normalize(x, dim=1) @ normalize(words.float(), dim=1).T
    for name, values in (("logit", logits), ("embedding", cosines)):
        found = vocabulary.nearness[name](x)
        for word in (0, len(vocabulary.words) // 2, len(vocabulary.words) - 1):
            mine = [t for t in range(len(words)) if llm.tokenizer.decode([t]).strip().lower() == vocabulary.words[word]]
            assert torch.allclose(found[:, word], values[:, mine].max(1).values, atol=1e-4)


class Letters:
    """Each letter names itself: what the tiny vocabulary has words for."""

    def __call__(self, word):
        return frozenset({word} if word in "abcdef" else ()), frozenset()

    def ending(self, words):
        return words[-1]


def test_three_ways_to_look_words_up_are_compared_on_the_same_media_by_loops(llm):
    letters, num = "abcdef", 18
    percepts = KeptPercepts([str(i) for i in range(num)], [0, 1])
    states = torch.randn(2, num, 3, llm.width, generator=torch.Generator().manual_seed(2))
    states[0, :9] = llm.embed(torch.tensor([llm.encode(f" {letters[i % 6]}") for i in range(9)]))[:, -1:].detach()
    percepts.begin(torch.full((num, 3), int(Role.PERCEPT)), [str(i) for i in range(num)])
    for layer in (0, 1):
        percepts.see(layer, Site.RESID_POST, states[layer])
    percepts.end()
    bank = word_bank(
        llm, contexts_of([f"x {letter}" for letter in "abcdefghij"], llm.encode, llm.bos_id, Letters()), nothing
    )
    shown = LensSamples(
        [str(i) for i in range(num)],
        [f"c{i}" for i in range(num)],
        [frozenset({letters[i % 6]}) for i in range(num)],
        Letters(),
    )
    rows = ContextualLens(bank, percepts, shown, llm).rows({"run": "r"})
    found = {(row.variant, row.layer_a): row.value for row in rows if row.score == "lens_one_token"}
    assert {variant for variant, _ in found} == {"centred", "logit", "embedding"}
    texts = [llm.tokenizer.decode([token]).strip().lower() for token in range(len(llm.tokenizer))]
    table = normalize(llm.model.get_input_embeddings().weight.double(), dim=1)
    for layer in (0, 1):
        hits = 0
        for medium, token in itertools.product(range(num), range(3)):
            cosines = table @ normalize(states[layer, medium, token].double(), dim=0)
            best = {}
            for text, cosine in zip(texts, cosines.tolist(), strict=True):
                best[text] = max(best.get(text, -1.0), cosine)
            nearest = sorted(best, key=best.get, reverse=True)[:5]
            hits += letters[medium % 6] in nearest
        assert found["embedding", layer] == pytest.approx(hits / (3 * num), abs=1e-12)
    assert found["embedding", 0] >= 0.5  # half of the tokens are embeddings of their letter


def test_percepts_without_a_token_are_left_out_of_the_lens(llm):
    percepts = KeptPercepts(["a", "b"], [0])
    percepts.begin(torch.tensor([[Role.PERCEPT, Role.PROMPT], [Role.PROMPT, Role.PROMPT]]), ["a", "b"])
    percepts.see(0, Site.RESID_POST, torch.ones(2, 2, WIDTH))
    percepts.end()
    bank = random_bank(names=("cow", "cat"))
    shown = LensSamples(["a", "b"], ["a", "b"], [frozenset({"cow"})] * 2, Namer("stamps"))
    assert ContextualLens(bank, percepts, shown, llm).shown.ids == ["a"]
