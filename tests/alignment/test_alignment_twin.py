"""The text twin: percepts are the embeddings of the sample's own text, nothing else differs, its rows stand beside."""

import pytest
import torch
from test_alignment_groups import at, evaluator_of, measured
from test_alignment_measurement import BASE

from ima.alignment.headline import headline_rows
from ima.alignment.kept_means import KeptMeans
from ima.alignment.tap import Tap
from ima.alignment.text_twin import with_texts
from ima.config.settings import Alignment
from ima.core.types import Role
from ima.models.llm.load import tiny
from ima.models.llm.pieces import Before

P, Q, A, PAD = int(Role.PERCEPT), int(Role.PROMPT), int(Role.ANSWER), int(Role.PAD)


def test_percepts_are_the_first_tokens_of_the_text_repeated_where_it_is_short():
    llm = tiny()
    roles = torch.tensor([[P, P, P, P, Q, A], [Q, P, P, A, PAD, PAD], [Q, A, PAD, PAD, PAD, PAD]])
    x = torch.randn(3, 6, llm.width)
    out = with_texts(llm, x, roles, [[7, 9, 11], [20, 21, 22], [5]])
    table = llm.model.get_input_embeddings().weight
    assert torch.equal(out[0, :4], table[[7, 9, 11, 7]]) and torch.equal(out[1, 1:3], table[[20, 21]])
    assert torch.equal(out[roles != P], x[roles != P])
    assert torch.equal(with_texts(llm, x, roles, [[], [], []]), x)


@pytest.fixture(scope="module")
def rows():
    return measured(evaluator_of(), groups=("twin",))


def test_its_rows_are_the_headline_of_a_pass_by_hand(rows):
    evaluator = evaluator_of()
    llm, samples = evaluator.module.llm, evaluator.source.samples("val")
    bank = evaluator._texts(samples, Alignment())
    kept = KeptMeans(bank.pairing.ids, bank.layers, bank.dims)
    with torch.no_grad(), Tap(llm, [kept]) as tap:
        for sample in samples:
            (batch,) = evaluator.batches([sample])
            x, roles, _ = evaluator.module.splice(batch)
            ids = llm.encode(sample.references[0], Before.TEXT)
            places = [s for s in range(roles.shape[1]) if roles[0, s] == P]
            for number, place in enumerate(places):
                x[0, place] = llm.embed(torch.tensor([[ids[number % len(ids)]]]))[0, 0]
            with tap.batch(roles, [sample.id]):
                llm(x, roles, [sample.id])
    wanted = list(headline_rows(bank, kept.means(bank.pairing.ids), BASE))
    for score in ("retrieval", "centred_cosine", "gap"):
        assert at(rows, score, variant="text_twin") == pytest.approx(at(wanted, score), abs=1e-5)


def test_it_finds_its_text_where_an_untrained_adapter_is_near_chance_and_leaves_the_other_rows_as_they_are(rows):
    alone = measured(evaluator_of())
    assert at(rows, "retrieval", variant="centred") == at(alone, "retrieval", variant="centred")
    twin = at(rows, "retrieval_mean", variant="text_twin")[None, None]
    assert twin > 3 * at(rows, "retrieval_chance")[None, None]
    assert twin > at(rows, "retrieval_mean", variant="centred")[None, None]


def test_every_row_of_the_control_has_a_number_or_a_reason(rows):
    mine = [row for row in rows if row.variant == "text_twin"]
    assert mine and all(row.value == row.value or row.note for row in mine)
