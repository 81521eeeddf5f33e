"""The published mode strings, block by block and word by word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_skipping import ROLES, make, states

from ima.core.errors import UserError
from ima.interventions.drop import Drop
from ima.interventions.merge import Merge
from ima.interventions.paper_modes import skipped_blocks, translate
from ima.interventions.parallel import Parallel
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.exit import Exit
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack


@pytest.mark.parametrize(("interval", "num"), [(1, 30), (2, 15), (3, 10), (4, 7), (60, 0)])
def test_start_and_end_are_strict_and_the_interval_counts_from_block_0(interval: int, num: int) -> None:
    found = skipped_blocks(32, interval)
    assert found == [b for b in range(1, 31) if b % interval == 0] and len(found) == num
    assert 0 not in found and 31 not in found


def test_the_start_does_not_shift_the_interval() -> None:
    assert skipped_blocks(32, 3, start_layer=4) == [6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert skipped_blocks(32, 2, start_layer=4, end_layer=10) == [6, 8]
    assert skipped_blocks(30, 2) == list(range(2, 29, 2)), "end_layer is the last block"


def test_a_list_of_intervals_is_one_for_each_equal_segment() -> None:
    assert skipped_blocks(32, "32,4,2,1") == [8, 12, 16, 18, 20, 22, *range(24, 31)]
    assert skipped_blocks(32, [2, 2]) == skipped_blocks(32, 2)
    with pytest.raises(UserError, match="unequal segments"):
        skipped_blocks(32, [1, 2, 3])


def settings(plan: Any) -> list[tuple[Any, ...]]:
    names = ("part", "roles", "phase", "visibility")
    return [tuple(getattr(skip, name) for name in names) for skip in plan]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("skip_block", ("block", ("all",), "decode", "visible")),
        ("fixed_skip_block", ("block", ("all",), "decode", "visible")),
        ("context_skip_block", ("block", ("all",), "both", "visible")),
        ("onlycontext_skip_block", ("block", ("all",), "prefill", "visible")),
        ("context_skip_block_prompt", ("block", ("percept",), "both", "hidden")),
        ("onlycontext_skip_block_prompt", ("block", ("percept",), "prefill", "hidden")),
        ("skip_ffn", ("ffn", ("all",), "decode", "visible")),
        ("context_skip_ffn", ("ffn", ("all",), "both", "visible")),
        ("context_skip_ffn_prompt", ("ffn", ("percept",), "both", "visible")),
        ("skip_attn", ("attn", ("all",), "decode", "visible")),
        ("onlycontext_skip_attn", ("attn", ("all",), "prefill", "visible")),
        ("context_skip_attn_prompt", ("attn", ("percept",), "both", "visible")),
    ],
)
def test_a_mode_is_a_skip_of_its_part_tokens_and_phase(mode: str, expected: tuple[Any, ...]) -> None:
    plan = translate(mode, 2)
    assert settings(plan) == [expected]
    assert plan[0].blocks(32) == list(range(2, 31, 2))  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["baseline", "normal", "drop", "exit", "context_skip_block"])
def test_defaults_ask_for_nothing(mode: str) -> None:
    assert translate(mode) == []


def test_parallel_attention_has_the_norm_of_its_family() -> None:
    (llama,), (opt,) = translate("context_parrallel_attn", 4), translate("parrallel_attn", 4, family="opt")
    assert isinstance(llama, Parallel) and isinstance(opt, Parallel)
    assert (llama.norm, llama.phase, opt.norm, opt.phase) == ("ln1", "both", "own", "decode")
    assert llama.blocks(32) == opt.blocks(32) == [4, 8, 12, 16, 20, 24, 28]


def test_pairs_of_blocks_are_merged_and_the_interval_skips_others() -> None:
    merge, skip = translate("context_parrallel_block", 3, layers_interval=4)
    assert isinstance(merge, Merge) and isinstance(skip, Skip)
    assert merge.blocks(32) == [4, 8, 12, 16, 20, 24, 28] and merge.phase == "both"
    assert skip.blocks(32) == [3, 6, 15, 18, 27, 30]
    (alone,) = translate("context_parrallel_block", layers_interval=2)
    assert isinstance(alone, Merge) and alone.blocks(32) == list(range(2, 29, 2)), "30 has no eligible partner"


def test_drop_stops_before_the_end_layer() -> None:
    (drop,) = translate("drop", start_drop_layer=24)
    assert isinstance(drop, Drop) and drop.blocks(32) == list(range(24, 31))


@pytest.mark.parametrize(("mode", "leaving"), [("exit", "context"), ("exit_prompt", "percept")])
def test_exit_leaves_after_its_block(mode: str, leaving: str) -> None:
    (found,) = translate(mode, exit_layer=20)
    assert isinstance(found, Exit) and found.leaving == leaving and found.blocks(32) == list(range(21, 32))


def test_an_entropy_may_skip_what_the_interval_does_not_name() -> None:
    skip, entropy = translate("context_skip_block", 4, ent_thresh=2.0)
    assert isinstance(skip, Skip) and isinstance(entropy, Entropy) and entropy.threshold == 2.0
    assert sorted(skip.blocks(32) + entropy.blocks(32)) == list(range(1, 31))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip_mode": "skip_blok"}, "skip_block"),
        ({"skip_mode": "random_skip_block"}, "random"),
        ({"skip_mode": "token_index_skip_block"}, "token_index"),
        ({"skip_mode": "skip_ffn_prompt"}, "add context_"),
        ({"skip_mode": "context_parrallel_attn_prompt"}, "leave prompt out"),
        ({"skip_mode": "parrallel_block"}, "layers_interval: 0"),
        ({"skip_mode": "skip_ffn", "skip_interval": 0}, "skip_interval: 0"),
        ({"skip_mode": "skip_ffn", "skip_interval": "2,x"}, "skip_interval: '2,x'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translate(**arguments)


@pytest.mark.parametrize("mode", ["context_skip_block_prompt", "context_skip_ffn", "context_parrallel_attn", "exit"])
@torch.no_grad()
def test_a_translated_plan_acts(mode: str) -> None:
    llm = make("llama")
    x = states(llm)
    plain = llm(x, ROLES)
    with stack(llm, translate(mode, 1, num_blocks=llm.num_blocks, exit_layer=1)):
        assert not torch.allclose(llm(x, ROLES), plain, atol=1e-3)
