"""A skip within a budget: the blocks that change perceptual tokens least, no more of them than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ima.core.errors import UserError
from ima.core.types import Row
from ima.interventions.base import Setting
from ima.interventions.flops import prefill
from ima.interventions.skip.auto import SkipAuto, changes, contributions
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


def test_late_takes_the_last_blocks_and_asks_for_no_measurement() -> None:
    chosen = SkipAuto(0.8, rank="late").resolve(LLM, Setting(TOKENS)).blocks(6)
    assert chosen == list(range(6 - len(chosen), 6)) and chosen


class Samples:
    key, name = "k", "made"

    def facts(self) -> dict[str, object]:
        return {}

    def labelled(self, llm):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(0)
        rows = [[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 0, 0]]
        for part in (rows, rows[1:]):
            roles = torch.tensor(part)
            ids = torch.randint(3, 200, roles.shape, generator=generator)
            x = torch.randn(*roles.shape, llm.width, generator=generator)
            yield x, roles, torch.where(roles == 3, ids, -100)


def test_lc_and_loss_are_what_the_answer_loses_without_the_block_sample_by_sample() -> None:
    found = contributions(LLM, Samples(), "block", ("percept",), range(6))
    for block in (1, 4):
        kls, losses = [], []
        for x, roles, labels in Samples().labelled(LLM):
            for row in range(len(x)):
                num = int((roles[row] > 0).sum())
                one = x[row : row + 1, :num], roles[row : row + 1, :num]
                places = [s for s in range(num) if labels[row, s] >= 0]
                with torch.no_grad():
                    p = LLM.logits(LLM(*one)[0, [s - 1 for s in places]]).double().log_softmax(-1)
                    with Skip("block", ("percept",), blocks=[block]).apply(LLM):
                        q = LLM.logits(LLM(*one)[0, [s - 1 for s in places]]).double().log_softmax(-1)
                kls.append(float((p.exp() * (p - q)).sum(1).mean()))
                ids = labels[row, places]
                losses.append(sum(float(p[i, t] - q[i, t]) for i, t in enumerate(ids)) / len(places))
        assert found[block].kl == pytest.approx(sum(kls) / len(kls), abs=1e-6)
        assert found[block].loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)


@pytest.mark.parametrize(("rank", "name"), [("lc", "kl"), ("loss", "loss")])
def test_the_block_that_costs_least_goes_first(rank: str, name: str) -> None:
    setting = Setting(TOKENS, Path("r"), calibrate=lambda *_: Samples())  # type: ignore[arg-type, return-value]
    chosen = SkipAuto(0.8, rank=rank).resolve(LLM, setting).blocks(6)  # type: ignore[arg-type]
    found = contributions(LLM, Samples(), "block", ("percept",), range(1, 6))  # type: ignore[arg-type]
    order = sorted(range(1, 6), key=lambda block: getattr(found[block], name))
    assert chosen == sorted(order[: len(chosen)])


@pytest.mark.parametrize("rank", ["lc", "loss"])
def test_without_a_run_there_is_nothing_to_rank_by(rank: str) -> None:
    with pytest.raises(UserError, match=f"rank: {rank} looks at training samples"):
        SkipAuto(0.8, rank=rank).resolve(LLM, Setting(TOKENS, Path("r")))  # type: ignore[arg-type]


def test_other_interventions_pass_unchanged(run: Path) -> None:
    skip = Skip()
    assert skip.resolve(LLM, Setting(TOKENS, run)) is skip


def test_the_skip_of_a_budget_keeps_sinks_where_it_is_asked_to(run: Path) -> None:
    skip = SkipAuto(0.8, keep_sinks=True).resolve(LLM, Setting(TOKENS, run))
    assert skip.keep_sinks and left([skip]) <= 0.8
