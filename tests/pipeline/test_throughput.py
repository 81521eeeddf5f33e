"""Throughput of a training: what is counted, that parts add up, that nothing stays behind and the numbers do not
change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ima.config.compose import compose
from ima.models.llm.load import tiny
from ima.pipeline.fit import train
from ima.pipeline.throughput import PARTS, Throughput, product_rate
from ima.report.page.tables import throughput_words

TINY = ["llm=tiny", "data=shapes", "data.num_train=24", "data.num_test=6", "encoder=noise", "encoder.dim=8",
        "encoder.num_tokens=4", "adapter.hidden=16", "trainer.accelerator=cpu", "loader.batch_size=6", "logger=none",
        "task.max_new_tokens=4", "trainer.max_epochs=2", "alignment=none", "evaluation.num_generated=2"]  # fmt: skip


def config_of(*argv: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(compose([*TINY, *argv]))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Throughput]:
    made: list[Throughput] = []
    with pytest.MonkeyPatch.context() as patch:

        def noted() -> Throughput:
            made.append(Throughput())
            return made[-1]

        patch.setattr("ima.pipeline.fit.Throughput", noted)
        record = train(config_of(), tmp_path_factory.mktemp("run"), "test")
    return record.facts["throughput"], made[0]


def test_every_pass_and_sample_and_each_token_that_is_no_padding_is_counted(
    found: tuple[dict[str, Any], Throughput],
) -> None:
    facts, throughput = found
    assert throughput.passes == 8 and throughput.samples == 48  # 2 epochs of 24 samples, 6 a pass
    assert throughput.tokens is not None
    ratio = facts["tokens_per_second"] / facts["samples_per_second"]
    assert ratio == pytest.approx(int(throughput.tokens) / 48, rel=1e-3) and ratio > 4


def test_shares_of_a_pass_are_all_of_it_and_training_and_measuring_all_of_fitting(
    found: tuple[dict[str, Any], Throughput],
) -> None:
    facts, throughput = found
    assert tuple(facts["shares_of_a_pass"]) == PARTS
    assert sum(facts["shares_of_a_pass"].values()) == pytest.approx(1, abs=1e-2)
    assert facts["shares_of_a_pass"]["backward"] > 0 and facts["shares_of_a_pass"]["llm forward"] > 0
    assert facts["shares_of_a_pass"]["encoder"] == 0  # noise is drawn by the loader
    assert 0 < facts["share_of_measuring"] < 1 and facts["peak_memory_bytes"] > 10_000_000
    assert all(end >= begin for _, begin, end in throughput.spans)


def test_hooks_are_gone_afterwards_and_products_are_measured(found: tuple[dict[str, Any], Throughput]) -> None:
    facts, throughput = found
    assert not throughput.handles
    assert facts["share_of_products"] == pytest.approx(facts["tflops"] / facts["tflops_of_products"], rel=1e-2)
    assert math.isfinite(product_rate(tiny("llama"), rounds=1))


def test_a_live_encoder_has_its_share(tmp_path: Path) -> None:
    given = [each for each in TINY if not each.startswith("encoder")]
    plain = OmegaConf.to_container(compose([*given, "encoder=random_efficientnet", "loader.cache_features=false"]))
    assert isinstance(plain, dict)
    record = train({str(key): value for key, value in plain.items()}, tmp_path, "test")
    assert record.facts["throughput"]["shares_of_a_pass"]["encoder"] > 0.1


def test_the_page_says_shares_in_percent_and_bytes_in_gb() -> None:
    words = throughput_words({"tokens_per_second": 1234.0, "shares_of_a_pass": {"encoder": 0.25, "backward": 0.75},
                              "share_of_products": 0.5, "peak_memory_bytes": 2_500_000_000})  # fmt: skip
    assert words["shares of a pass"] == "encoder 25 %, backward 75 %"
    assert words["share of products"] == "50 %" and words["peak memory"] == "2.50 GB"
    assert words["tokens per second"].startswith("1")
