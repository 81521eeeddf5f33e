"""A skip within a budget: the blocks that change perceptual tokens least, no more of them than needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ima.core.errors import UserError
from ima.core.types import Row
from ima.interventions.base import Setting
from ima.interventions.flops import prefill
from ima.interventions.skip.auto import SkipAuto, changes
from ima.interventions.skip.plan import Skip
from ima.models.llm.load import tiny
from ima.runs.results import RowWriter

TOKENS = {"percept": 8, "prompt": 3, "answer": 2}
SIMILAR = [0.1, 0.9, 0.5, 0.8, 0.3, 0.7]
LLM = tiny(num_blocks=6)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    def row(epoch: int, block: int, value: float, role: str = "P", step: int = 1, site: str = "resid_post") -> Row:
        names = {"role_a": role, "role_b": role, "site": site, "epoch": epoch}
        return Row("r", "consecutive", value, layer_a=block, layer_b=block + step, **names)

    writer = RowWriter(tmp_path / "rows.jsonl")
    writer.write([row(0, block, value) for block, value in enumerate(SIMILAR[::-1])])
    writer.write([row(3, block, value) for block, value in enumerate(SIMILAR)])
    others = [{"role": "T"}, {"step": 8}, {"site": "sa"}]
    writer.write([row(3, block, 1 - value, **other) for other in others for block, value in enumerate(SIMILAR)])
    return tmp_path


def left(skips: list[Skip]) -> float:
    whole, part = (sum(flops.total for flops in prefill(LLM, plan, TOKENS)) for plan in ([], skips))
    return part / whole


def test_the_last_epochs_similarity_of_perceptual_tokens_across_a_block_decides(run: Path) -> None:
    assert changes(run, 6) == dict(enumerate(SIMILAR))


@pytest.mark.parametrize("budget", [0.95, 0.9, 0.8, 0.7])
def test_as_few_blocks_as_the_budget_asks_for_least_changing_first(run: Path, budget: float) -> None:
    skip = SkipAuto(budget).resolve(LLM, Setting(TOKENS, run))
    assert isinstance(skip, Skip)
    chosen = skip.blocks(6)
    order = sorted(range(1, 6), key=lambda block: -SIMILAR[block])
    assert chosen == sorted(order[: len(chosen)])
    assert left([skip]) <= budget < left([Skip("block", blocks=order[: len(chosen) - 1])] if chosen[1:] else [])


def test_a_budget_out_of_reach_is_refused_with_what_is_within(run: Path) -> None:
    with pytest.raises(UserError, match=r"budget: 0.05 is out of reach.*leaves 0\.\d+"):
        SkipAuto(0.05).resolve(LLM, Setting(TOKENS, run))


def test_nothing_to_choose_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no consecutive similarity"):
        SkipAuto(0.9).resolve(LLM, Setting(TOKENS, tmp_path))
    with pytest.raises(UserError, match="name the run folder"):
        SkipAuto(0.9).resolve(LLM, Setting(TOKENS))


def test_rows_of_another_llm_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match="6 blocks measured, this LLM has 3"):
        SkipAuto(0.9).resolve(tiny(num_blocks=3), Setting(TOKENS, run))


def test_other_interventions_pass_unchanged(run: Path) -> None:
    skip = Skip()
    assert skip.resolve(LLM, Setting(TOKENS, run)) is skip
