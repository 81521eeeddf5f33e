"""A whole measurement of a tiny model: every score as a row once, the same for any batch size, bounded memory."""

import json
import math
from collections import Counter

import pytest
import torch
from test_ima_of_a_run import Features, Source

from ima.alignment.cone_file import read_sums
from ima.alignment.measurement import Measurement, evenly, write_measurement
from ima.alignment.tap import Tap
from ima.config.compose import compose
from ima.config.settings import Alignment
from ima.core.errors import UserError
from ima.models.adapters.linear import PoolAdapter
from ima.models.llm.load import tiny
from ima.models.multimodal import MultimodalModel
from ima.pipeline.callbacks import AlignmentLogger
from ima.pipeline.evaluator import Evaluator
from ima.pipeline.recorder import Recorder
from ima.runs.results import RowWriter, read_rows
from ima.tasks.caption import CaptionTask

BASE = {"run": "r", "dataset_a": "made", "modality_a": "image", "dataset_b": "made", "modality_b": "text"}


def full(**changes) -> Alignment:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(compose(["alignment=full", "data=shapes", "llm=tiny"], "train"))["alignment"]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items() if key[0] != "_"}
    return Alignment(**given | {"num_reservoir": 10, "num_scale_samples": 7, "num_tsne_layers": 1} | changes)


def evaluator_of(batch_size):
    torch.manual_seed(0)
    llm = tiny()
    adapter = PoolAdapter(12, llm.width, grid=2, hidden=16)
    percepts, source = Features(9, 12), Source()
    adapter.start_at_norm(percepts(source.samples("val"), None)["features_BNE"], llm.embedding_norm)
    return Evaluator(MultimodalModel(adapter, llm), CaptionTask(), source, percepts, batch_size)


def measured(batch_size, order=1, **changes):
    evaluator = evaluator_of(batch_size)
    _, measurement = evaluator.teacher_forced(evaluator.source.samples("val")[::order], full(**changes))
    seconds: dict[str, float] = {}
    rows, lens = measurement.rows(BASE, seconds)
    return measurement, rows, lens, seconds


@pytest.fixture(scope="module")
def whole():
    return measured(24)


def key(row):
    return row.score, row.site, row.variant, row.role_a, row.role_b, row.layer_a, row.layer_b, row.modality_a


def test_every_score_is_there_once_with_a_finite_value_or_a_reason(whole):
    measurement, rows, _, seconds = whole
    single = [row for row in rows if not row.score.startswith("tsne")]
    assert max(Counter(map(key, single)).values()) == 1
    wanted = {"sim", "gap_read", "ima", "ima_p0", "cone", "consecutive", "norm_q50", "ima_inside", "ima_outside"}
    wanted |= {"medsim_matched", "maxsim_across", "maxmeansim_matched_mean", "cka_read", "mutual_knn_read"}
    wanted |= {"retrieval_read", "procrustes_read", "mir", "mir_fid", "kl", "js", "entropy", "vocabulary_cosine"}
    wanted |= {"translation", "tsne_x"}
    assert wanted <= {row.score for row in rows}
    bare = {key(row) for row in rows if not math.isfinite(row.value) and not row.note}
    assert not bare
    assert {"reservoir", "vocabulary", "tsne"} <= seconds.keys()
    assert {row.site for row in rows if row.score == "sim"} == {str(site.value) for site in measurement.sites}


def test_rows_do_not_depend_on_batches_and_order(whole):
    _, rows, _, _ = whole
    _, others, _, _ = measured(5, order=-1)
    theirs = {key(row): row for row in others if not row.score.startswith("tsne")}
    mine = {key(row): row for row in rows if not row.score.startswith("tsne")}
    assert mine.keys() == theirs.keys()
    for name, row in mine.items():
        loose = 1e-3 if name[0].startswith(("mir", "cka_debiased", "norm")) else 2e-5
        assert theirs[name].value == pytest.approx(row.value, abs=loose, rel=loose, nan_ok=True), name
        assert theirs[name].n == row.n, name


def test_the_lens_at_the_last_layer_is_the_models_own_prediction(whole):
    measurement, _, lens, _ = whole
    evaluator = evaluator_of(24)
    (batch,) = list(evaluator._loader(evaluator.source.samples("val"), collate(evaluator)))
    with torch.no_grad():
        x, roles, _ = evaluator.module.splice(batch)
        h = evaluator.module.llm(x, roles)
    ids = [sample.id for sample in batch.samples]
    last = measurement.llm.num_blocks
    for shown in [item for item in lens.shown if item["layer"] == last]:
        row = ids.index(shown["sample"])
        logits = evaluator.module.llm.logits(h[row][roles[row] == 1][shown["token"]][None])[0]
        assert shown["top"][0][1] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    layers = sorted({item["layer"] for item in lens.shown})
    assert layers == list(lens.layers) and last in layers


def collate(evaluator):
    from ima.data.collate import Collate

    return Collate(evaluator.task, evaluator.module.llm, evaluator.percepts)


def test_the_last_measurement_leaves_sums_and_words(whole, tmp_path):
    measurement, rows, lens, _ = whole
    write_measurement(tmp_path, measurement, lens, {"run": "r", "dataset": "made", "modality": "image", "llm": "tiny"})
    sums = read_sums(tmp_path)
    assert {"P", "T", "P.nomassive", "T.nosink"} <= sums.sum_LGD.keys() and float(sums.count_LG["P"][0].sum()) == 24
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    pooled = {row.variant: row.value for row in rows if (row.score, row.site) == ("ima_matched", "resid_post")
              and row.role_b == "T"}  # fmt: skip
    assert len(lines) == 24
    for name, variant in (("ima_matched", "raw"), ("ima_matched/scaled", "scaled")):
        assert sum(line[name] for line in lines) / 24 == pytest.approx(pooled[variant], abs=1e-5)
    words = json.loads((tmp_path / "alignment.json").read_text())["top_tokens"]
    assert words[0].keys() == {"sample", "layer", "token", "top"}


def test_the_result_has_the_pooled_scores_of_block_outputs_whatever_sites_are_looked_at(tmp_path):
    evaluator = evaluator_of(24)
    recorder = Recorder("r", RowWriter(tmp_path / "rows.jsonl"), {"dataset_a": "made", "modality_a": "image"})
    samples = evaluator.source.samples("val")
    AlignmentLogger(evaluator, samples, full(num_tsne_layers=0), recorder, tmp_path).measure(3, 7, last=True)
    rows = [row for row in read_rows(tmp_path / "rows.jsonl") if row["score"] == "ima" and row["role_b"] == "T"]
    expected = {row["variant"]: row["value"] for row in rows if row["site"] == "resid_post"}
    assert len({row["value"] for row in rows if row["variant"] == "raw"}) > 1, "sites differ"
    assert recorder.metrics["ima/mean"] == expected["raw"] and recorder.metrics["ima/mean/scaled"] == expected["scaled"]
    assert {"mir", "cka_read_mean", "ima_outside/mean", "medsim_matched_mean/nosink"} <= recorder.metrics.keys()
    facts = read_sums(tmp_path).facts
    assert (facts["epoch"], facts["dataset"], facts["llm_blocks"]) == (3, "made", evaluator.module.llm.num_blocks)


def test_the_default_takes_one_pass_and_keeps_no_states():
    evaluator = evaluator_of(8)
    _, measurement = evaluator.teacher_forced(evaluator.source.samples("val"), Alignment())
    assert measurement.scales is None and measurement.reservoir is None and "scales" not in evaluator.seconds
    assert (
        isinstance(measurement.tap(), Tap)
        and measurement.plan.views == measurement.stats.sites["resid_post"].plan.views
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ("sa",)}, "add that to alignment.sites"),
        ({"layers": (1, 2), "reservoir_layers": (0, 2)}, "alignment.reservoir_layers: 0 is not looked at"),
    ],
)
def test_a_reservoir_of_what_is_not_looked_at_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        Measurement(full(**changes), tiny(), ["a"])


def test_layers_of_a_measurement_are_those_that_were_asked_for():
    _, rows, _, _ = measured(24, layers=(0, 2), sites=("resid_post",), num_tsne_layers=0)
    values = {row.layer_a: row.value for row in rows if row.score == "sim" and row.variant == "scaled"}
    assert math.isnan(values[1]) and not math.isnan(values[2])


def test_evenly_takes_both_ends():
    assert evenly(range(31), 9) == (0, 4, 8, 11, 15, 19, 22, 26, 30)
    assert evenly((3, 5), 9) == (3, 5) and evenly((1, 2, 3), 1) == (3,) and evenly((1, 2), 0) == ()
