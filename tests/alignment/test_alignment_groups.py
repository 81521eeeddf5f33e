"""The headline and the groups through a real pass: texts once a run, maps whose diagonals are the scores, every number
there or a reason."""

import dataclasses
import math

import pytest
import torch
from test_alignment_measurement import BASE, Features, PoolAdapter, tiny

from ima.alignment.groups import COSTS
from ima.config.settings import Alignment
from ima.core.types import Sample
from ima.models.multimodal import MultimodalModel
from ima.pipeline.evaluator import Evaluator
from ima.tasks.caption import CaptionTask

NOUNS = ["cow", "red bus", "teapot", "violin", "star", "old dog", "cat", "green boat", "hat", "tree"]


class Source:
    name, modality, splits, fingerprint = "made", "image", ("val",), "made"

    def samples(self, split):
        return [
            Sample(
                f"made/{i}", split, "val", "image", (f"a {NOUNS[i % 10]}",), cluster=f"c{i // 10}/{i % 10}",
                facts={"noun": NOUNS[i % 10], "category": "alive" if i % 10 in (0, 5, 6, 9) else "thing"},
            )
            for i in range(30)
        ]  # fmt: skip


def evaluator_of(batch_size=8):
    torch.manual_seed(0)
    llm = tiny()
    adapter, percepts, source = PoolAdapter(12, llm.width, grid=2, hidden=16), Features(9, 12), Source()
    adapter.start_at_norm(percepts(source.samples("val"), None)["features_BNE"], llm.embedding_norm)
    return Evaluator(MultimodalModel(adapter, llm), CaptionTask(), source, percepts, batch_size)


def measured(evaluator, **changes):
    _, suite = evaluator.teacher_forced(evaluator.source.samples("val"), Alignment(**changes))
    return suite.rows(BASE, {})[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join(f"here is the {noun}" for noun in NOUNS))
    return measured(evaluator_of(), groups=tuple(COSTS), words=str(words))


def at(rows, score, **fields):
    return {
        (row.layer_a, row.layer_b): row.value
        for row in rows
        if row.score == score and all(getattr(row, key) == value for key, value in fields.items())
    }


def test_every_row_of_a_group_has_a_number_or_a_reason(whole):
    assert [row for row in whole if row.value != row.value and not row.note] == []
    scores = {row.score for row in whole}
    assert {"sim_map", "retrieval_map", "cka_debiased_p", "unit_mrr_z", "sink_share", "effective_rank"} <= scores
    assert {"probe_noun", "probe_category_null", "variance_kept", "neighbour_overlap"} <= scores


def test_the_diagonals_of_the_maps_are_the_scores_by_layer(whole):
    for table, score, fields in (
        ("sim_map", "sim", {"role_b": "T", "variant": "raw"}),
        ("retrieval_map", "retrieval", {"role_b": "T.text", "variant": "centred"}),
        ("centred_map", "centred_cosine", {"role_b": "T.text", "variant": "centred"}),
        ("gap_map", "gap", {"role_b": "T.text", "variant": "raw"}),
    ):
        diagonal = {key: value for key, value in at(whole, table).items() if key[0] == key[1]}
        assert diagonal and diagonal == pytest.approx(at(whole, score, site="resid_post", **fields), abs=1e-5), table


def test_calibrated_scores_of_units_are_those_of_the_headline_where_each_unit_has_one_text(whole):
    assert at(whole, "unit_cosine", variant="calibrated") == pytest.approx(
        at(whole, "centred_cosine", variant="centred"), abs=1e-6
    )


def test_without_sinks_similarity_is_raw_where_the_llm_has_no_sink_dimension(whole):
    assert [row.value for row in whole if row.score == "num_sink_dimensions"] == [0]
    raw, without = (at(whole, "sim", role_b="T", variant=variant) for variant in ("raw", "nosinkdim"))
    assert without == pytest.approx(raw, abs=1e-5)


def test_texts_are_read_once_a_run_and_again_where_the_llm_learns():
    evaluator, passes = evaluator_of(), []
    show = evaluator._show
    evaluator._show = lambda samples, tap: passes.append(len(samples)) or show(samples, tap)
    first, again = measured(evaluator), measured(evaluator)
    assert passes == [10, 10] and "texts" in evaluator.seconds  # sinks first, then means
    assert at(first, "retrieval") == at(again, "retrieval")
    evaluator.module.llm.trains = "lora"
    measured(evaluator)
    assert len(passes) == 4


def test_rows_of_the_headline_do_not_depend_on_batches_and_order():
    one = measured(evaluator_of(5))
    evaluator = evaluator_of(30)
    samples = evaluator.source.samples("val")[::-1]
    other = evaluator.teacher_forced(samples, Alignment())[1].rows(BASE, {})[0]
    for score in ("retrieval", "centred_cosine", "gap", "retrieval_growth", "retrieval_growth_null"):
        assert at(other, score) == pytest.approx(at(one, score), abs=1e-5), score


def test_errors_are_by_cluster_and_nan_for_fewer_than_twenty():
    evaluator = evaluator_of()
    samples = evaluator.source.samples("val")
    few = [dataclasses.replace(sample, cluster=f"c{index % 12}") for index, sample in enumerate(samples)]
    for chosen, wanted in ((samples, False), (few, True)):
        rows = evaluator.teacher_forced(chosen, Alignment())[1].rows(BASE, {})[0]
        errors = [row.se for row in rows if row.score == "sim" and row.role_b == "T"]
        assert errors and all(math.isnan(error) == wanted for error in errors)


def test_nothing_is_paired_where_it_is_not_asked_for():
    rows = measured(evaluator_of(), num_paired=0, groups=("maps",))
    assert not any(row.role_b == "T.text" or row.score == "sim_map" for row in rows)
