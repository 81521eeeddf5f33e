"""Streamed statistics equal their definitions, computed by brute force from stored states."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from ima.alignment.rows import alignment_rows
from ima.alignment.scores import consecutive, norm_quantiles, similarity
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.tap import Tap
from ima.alignment.views import NUM_GROUPS, PAIRS, VIEWS, group_of, view_masks
from ima.core.types import Role, Site
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.sites import SiteTable, check_sites
from ima.models.llm.tiny import FAMILY_NAMES, tiny_model, tiny_tokenizer

P, Q, A, S0, PAD = Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD


def random_roles(num: int, generator: torch.Generator) -> list[list[int]]:
    """Right-ragged sequences P.. [BOS] prompt answer EOS; some examples lack percept or prompt."""
    rows = []
    for index in range(num):
        lengths = torch.randint(0, 5, (3,), generator=generator).tolist()
        percept, prompt, answer = lengths[0] + (index % 7 > 0), lengths[1], lengths[2] + 1
        rows.append([P] * percept + [S0] * (index % 2) + [Q] * prompt + [A] * answer + [S0])
    return rows


@pytest.fixture(scope="module")
def states():
    """24 examples with ragged roles and their states at 5 layers, [S, D] each."""
    generator = torch.Generator().manual_seed(0)
    roles = random_roles(24, generator)
    shift = torch.randn(5, 1, 16, generator=generator)
    return [
        (f"s{index}", row, torch.randn(5, len(row), 16, generator=generator) + shift) for index, row in enumerate(roles)
    ]


def stream(examples, batch_size: int, left: bool = False, extra: int = 0) -> AlignmentStats:
    stats = AlignmentStats(num_layers=5)
    stats_steps(stats, examples, batch_size, left, extra)
    return stats


def stats_steps(stats, examples, batch_size, left, extra):
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        length = max(len(row) for _, row, _ in part) + extra
        roles = torch.zeros(len(part), length, dtype=torch.long)
        x = torch.full((5, len(part), length, 16), 1e3)  # what stands at pads must not matter
        for index, (_, row, state) in enumerate(part):
            span = slice(length - len(row), length) if left else slice(0, len(row))
            roles[index, span] = torch.tensor(row)
            x[:, index, span] = state
        stats.begin(roles, [name for name, _, _ in part])
        for layer in range(5):
            stats.see(layer, Site.RESID_POST, x[layer])
        stats.end()


def positions(row: list[int], view: str) -> list[int]:
    roles = {"P": {P}, "T": {Q, A}, "T.answer": {A}, "T.prompt": {Q}}[view.removesuffix(".nosink")]
    start = 1 if view.endswith("nosink") else 0
    return [index for index, role in enumerate(row) if role in roles and index >= start]


def brute_similarity(examples, view_a: str, view_b: str, layer_a: int, layer_b: int) -> tuple[float, float, float]:
    """All pairs, matched and gap by a double loop in fp64."""

    def means(view, layer):
        found = {}
        for name, row, state in examples:
            chosen = positions(row, view)
            if chosen:
                found[name] = state[layer].double()[chosen].mean(0)
        return found

    a, b = means(view_a, layer_a), means(view_b, layer_b)
    cosine = {
        (x, y): float(torch.nn.functional.cosine_similarity(a[x], b[y], dim=0)) for x, y in itertools.product(a, b)
    }
    matched = [value for (x, y), value in cosine.items() if x == y]
    others = [value for (x, y), value in cosine.items() if x != y]
    every = sum(cosine.values()) / len(cosine)
    return every, sum(matched) / len(matched), sum(matched) / len(matched) - sum(others) / len(others)


@pytest.mark.parametrize("pair", PAIRS)
def test_streamed_similarity_equals_the_double_loop(states, pair):
    stats = stream(states, 5).sites[Site.RESID_POST]
    curves = similarity(stats, *pair)
    for layer in range(5):
        expected = brute_similarity(states, *pair, layer, layer)
        found = [float(curves[name].value_L[layer]) for name in ("sim", "sim_matched", "gap_read")]
        assert found == pytest.approx(expected, abs=1e-5)
    fixed = similarity(stats, *pair, layer_a=0)["sim"]
    for layer in range(5):
        assert float(fixed.value_L[layer]) == pytest.approx(brute_similarity(states, *pair, 0, layer)[0], abs=1e-5)


def test_jackknife_equals_leaving_each_group_out_by_hand(states):
    curve = similarity(stream(states, 24).sites[Site.RESID_POST], "P", "T")["sim"]
    groups = sorted({group_of(name) for name, _, _ in states})
    left_out = [brute_similarity([s for s in states if group_of(s[0]) != group], "P", "T", 2, 2)[0] for group in groups]
    values = torch.tensor(left_out)
    expected = ((len(groups) - 1) / len(groups) * (values - values.mean()).square().sum()).sqrt()
    assert float(curve.se_L[2]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("variant", [(1, False, 0), (7, True, 0), (24, True, 3), (5, False, 4)])
def test_any_batch_split_padding_and_order_gives_the_same_rows(states, variant):
    size, left, extra = variant
    base = {"run": "r"}
    reference = list(alignment_rows(stream(states, 24), base))
    other = list(alignment_rows(stream(states[::-1], size, left, extra), base))
    assert len(reference) == len(other) > 100
    for one, two in zip(reference, other, strict=True):
        assert (one.score, one.layer_a, one.layer_b, one.role_b, one.n) == (
            two.score,
            two.layer_a,
            two.layer_b,
            two.role_b,
            two.n,
        )
        assert one.value == pytest.approx(two.value, abs=1e-5, rel=1e-5, nan_ok=True)


def test_states_of_two_splits_add_up(states):
    whole, left, right = stream(states, 8), stream(states[:10], 4), stream(states[10:], 4)
    left.sites[Site.RESID_POST].add_(right.sites[Site.RESID_POST])
    for name, value in whole.sites[Site.RESID_POST].tensors().items():
        torch.testing.assert_close(left.sites[Site.RESID_POST].tensors()[name], value, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("view", ["P", "T"])
@pytest.mark.parametrize("step", [1])
def test_consecutive_similarity_is_of_the_same_token_of_the_same_example(states, view, step):
    curve = consecutive(stream(states, 6).sites[Site.RESID_POST], step, view)
    for layer in range(5 - step):
        cosines = []
        for _, row, state in states:
            for index in positions(row, view):
                x, y = state[layer, index].double(), state[layer + step, index].double()
                cosines.append(float(torch.nn.functional.cosine_similarity(x, y, dim=0)))
        assert float(curve.value_L[layer]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
        assert curve.n == len(cosines)


def test_norm_quartiles_are_exact_to_one_percent(states):
    found = norm_quantiles(stream(states, 6).sites[Site.RESID_POST], "T")
    for layer in range(5):
        norms = sorted(
            float(state[layer, index].double().norm()) for _, row, state in states for index in positions(row, "T")
        )
        for q, value in zip((0.25, 0.5, 0.75), found[:, layer].tolist(), strict=True):
            rank = max(0, -(-q * len(norms) // 1) - 1)
            assert value == pytest.approx(norms[int(rank)], rel=0.01)


def test_a_role_without_tokens_gives_nan_with_a_reason_and_a_zero_vector_has_cosine_zero():
    stats = AlignmentStats(num_layers=2)
    stats.begin(torch.tensor([[Q, A, PAD], [Q, A, A]]), ["a", "b"])
    for layer in range(2):
        stats.see(layer, Site.RESID_POST, torch.randn(2, 3, 4))
    stats.end()
    rows = [row for row in alignment_rows(stats, {"run": "r"}) if row.score == "sim" and row.role_a == "P"]
    assert rows and all(row.value != row.value and row.note for row in rows)

    zero = AlignmentStats(num_layers=2)
    zero.begin(torch.tensor([[P, A]]), ["a"])
    for layer in range(2):
        zero.see(layer, Site.RESID_POST, torch.tensor([[[0.0, 0.0], [1.0, 2.0]]]))
    zero.end()
    curve = similarity(zero.sites[Site.RESID_POST], "P", "T")["sim"]
    assert curve.value_L.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_that_is_written_to_during_the_pass_is_noticed(dtype):
    stats, x = AlignmentStats(num_layers=3), torch.randn(1, 2, 16).to(dtype)
    stats.begin(torch.tensor([[P, A]]), ["a"])
    stats.see(0, Site.RESID_POST, x)
    x += 1
    with pytest.raises(AssertionError, match="written to"):
        stats.see(1, Site.RESID_POST, torch.randn(1, 2, 16).to(dtype))
        stats.end()  # a queued call may notice it later


def random_states(num_layers: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, 16, generator=generator).to(dtype) for _ in range(num_layers)]


def two_sites(
    num_threads: int,
    copied: Sequence[int] = (),
    dtype: torch.dtype = torch.bfloat16,
    changed: Sequence[int] = (),
) -> AlignmentStats:
    """Block outputs and inputs of two passes; at the `copied` layers the input is another tensor of the same values, at
    the `changed` ones of other values."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        stats = AlignmentStats(num_layers=11)
        for ids in (["a", "b"], ["c", "d"]):
            stats.begin(torch.tensor([[P, Q, A, A, PAD], [P, P, Q, A, A]]), ids)
            states = random_states(11, dtype)
            stats.see(0, Site.RESID_POST, states[0])
            for layer in range(1, 11):
                entering = states[layer - 1]
                if layer in changed:
                    entering = entering.flip(0) + layer
                stats.see(layer, Site.RESID_PRE, entering.clone() if layer in copied else entering)
                stats.see(layer, Site.FC1, torch.cat([states[layer], entering], -1))
                stats.see(layer, Site.RESID_POST, states[layer])
            stats.end()
        return stats
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copied", [(), (1,), (4, 5), tuple(range(2, 11))])
def test_results_of_block_inputs_are_copied_from_the_output_before_and_are_the_same(copied, dtype):
    found, slow = two_sites(1, copied, dtype), two_sites(1, tuple(range(1, 11)), dtype)
    for site, stats in slow.sites.items():
        for name, value in stats.tensors().items():
            torch.testing.assert_close(found.sites[site].tensors()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("changed", [(1,), (4, 5), (2, 9), tuple(range(1, 11))])
def test_a_changed_block_input_is_measured_itself_also_next_to_copied_ones(changed):
    found = two_sites(1, changed=changed)
    slow = two_sites(1, copied=tuple(range(1, 11)), changed=changed)
    for site, stats in slow.sites.items():
        for name, value in stats.tensors().items():
            torch.testing.assert_close(found.sites[site].tensors()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_bytes", [1, 200, 600])
@pytest.mark.parametrize("constant", ["MAX_BYTES", "TILE_BYTES"])
def test_any_length_of_chunks_and_any_tile_gives_the_same(monkeypatch, constant, num_bytes, dtype):
    slow = two_sites(1, dtype=dtype, changed=(4,))
    monkeypatch.setattr(f"ima.alignment.streaming.chunks.{constant}", num_bytes)
    found = two_sites(1, dtype=dtype, changed=(4,))
    for site, stats in slow.sites.items():
        for name, value in stats.tensors().items():
            torch.testing.assert_close(found.sites[site].tensors()[name], value, rtol=1e-6, atol=1e-6)


def test_one_site_alone_does_not_depend_on_the_number_of_threads_nor_changes_it():
    threads = torch.get_num_threads()
    found = {}
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        try:
            found[num_threads] = AlignmentStats(num_layers=11)
            for ids in (["a", "b"], ["c", "d"], ["e", "f"]):
                found[num_threads].begin(torch.tensor([[P, Q, A, A, PAD], [P, P, Q, A, A]]), ids)
                for layer, state in enumerate(random_states(11, torch.bfloat16)):
                    found[num_threads].see(layer, Site.RESID_POST, state)
                found[num_threads].end()
            assert torch.get_num_threads() == num_threads
        finally:
            torch.set_num_threads(threads)
    for name, value in found[1].sites[Site.RESID_POST].tensors().items():
        torch.testing.assert_close(found[2].sites[Site.RESID_POST].tensors()[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_several_threads_add_up_what_one_thread_does(num_threads):
    found, slow = two_sites(num_threads), two_sites(1)
    for site, stats in slow.sites.items():
        for name, value in stats.tensors().items():
            torch.testing.assert_close(found.sites[site].tensors()[name], value, rtol=1e-6, atol=1e-6)


def test_an_error_in_a_queued_call_reaches_the_pass_and_the_next_pass_starts_anew():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        stats = AlignmentStats(num_layers=2)
        for index in range(3):
            stats.begin(torch.tensor([[P, A]]), ["a"])
            stats.see(0, Site.RESID_POST, torch.randn(1, 3 if index != 1 else 2, 4))  # the roles say two
            with pytest.raises(RuntimeError) if index != 1 else nullcontext():
                stats.end()
        stats = AlignmentStats(num_layers=2)
        stats.begin(torch.tensor([[P, A]]), ["a"])
        stats.see(0, Site.RESID_POST, torch.randn(1, 2, 4))  # interrupted
        stats.begin(torch.tensor([[P, A]]), ["b"])
        for layer in range(2):
            stats.see(layer, Site.RESID_POST, torch.ones(1, 2, 4))
        stats.end()
        assert stats.sites[Site.RESID_POST].count_LGR.sum(1)[:, 0].tolist() == [1, 1]
    finally:
        torch.set_num_threads(before)


def test_some_layers_and_sites_of_one_memory_give_what_each_gives_alone(states):
    """Also in bf16, whose states are made fp32 once for all sites that show the same tensor."""
    x = {layer: torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(layer)).bfloat16() for layer in (1, 2, 4)}
    both, alone = AlignmentStats(num_layers=5), {site: AlignmentStats(num_layers=5) for site in list(Site)[:2]}
    for stats, sites in ((both, list(alone)), *((stats, [site]) for site, stats in alone.items())):
        for _ in range(2):
            stats.begin(torch.tensor([[P, Q, A], [P, P, A]]), ["a", "b"])
            for layer, state in x.items():
                for site in sites:
                    stats.see(layer, site, state)
            stats.end()
    for site, stats in alone.items():
        for name, value in stats.sites[site].tensors().items():
            torch.testing.assert_close(both.sites[site].tensors()[name], value, rtol=0, atol=0)
    step = both.sites[Site.RESID_POST if Site.RESID_POST in alone else next(iter(alone))].step_sum_LGR[1]
    assert step[1].any() and not step[[0, 2, 3]].any()


def test_a_model_that_writes_to_its_states_is_noticed_and_the_tap_shows_copies():
    model = tiny_model("llama")
    model.model.layers[1].register_forward_pre_hook(lambda _module, args: (args[0].mul_(1.0), None)[1])
    llm = FrozenLLM(model, tiny_tokenizer())
    assert llm.table.written_to and not FrozenLLM(tiny_model("llama"), tiny_tokenizer()).table.written_to
    stats, roles = AlignmentStats(llm.num_blocks + 1), torch.full((2, 6), int(Role.PROMPT))
    with Tap(llm, [stats]) as tap, torch.no_grad(), tap.batch(roles, ["a", "b"]):
        llm(torch.randn(2, 6, llm.width), roles)
    assert stats.num_examples == 2


def test_memory_of_the_statistics_does_not_depend_on_the_number_of_examples(states):
    few, many = stream(states[:2], 2), AlignmentStats(num_layers=5)
    for _ in range(5):
        stats_steps(many, states, 8, False, 0)
    assert few.num_bytes() == many.num_bytes()
    assert many.num_examples == 120


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_sites_recompose_every_block(family):
    model = tiny_model(family)
    check_sites(model, SiteTable(model))


def num_hooks(llm):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in llm.modules())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_tap_shows_what_transformers_calls_hidden_states(family):
    llm = FrozenLLM(tiny_model(family), tiny_tokenizer())
    ids = torch.randint(3, 259, (2, 6), generator=torch.Generator().manual_seed(1))
    roles = torch.full((2, 6), int(Role.PROMPT))
    reference = llm.model(input_ids=ids, output_hidden_states=True).hidden_states
    seen = {}
    hooks_before = num_hooks(llm)  # transformers leaves some of its own

    class Keep:
        def begin(self, roles_BS, sample_ids): ...
        def see(self, layer, site, x_BSD):
            assert (layer, site) not in seen
            seen[layer, site] = x_BSD.clone()

        def end(self): ...

    with Tap(llm, [Keep()], sites=llm.table.sites) as tap:
        llm(llm.embed(ids), roles)  # outside a batch: not shown
        assert not seen
        with tap.batch(roles, ["a", "b"]):
            llm(llm.embed(ids), roles)
    for layer in range(llm.num_blocks):  # the last entry of transformers is after the final norm
        torch.testing.assert_close(seen[layer, Site.RESID_POST], reference[layer])
    assert seen[1, Site.FC1].shape[:2] == (2, 6)
    if Site.RESID_MID in llm.table.sites:
        for layer in range(1, llm.num_blocks + 1):
            whole = seen[layer, Site.RESID_MID] + seen[layer, Site.FC2]
            if family == "opt_350m":
                whole = llm.table.blocks[layer - 1].final_layer_norm(whole)
            torch.testing.assert_close(whole, seen[layer, Site.RESID_POST])
    assert num_hooks(llm) == hooks_before


def test_view_masks_follow_roles_and_leave_the_sink_out():
    masks = view_masks(torch.tensor([[PAD, P, P, S0, Q, A, S0]]))[0]
    found = {view: mask.nonzero().flatten().tolist() for view, mask in zip(VIEWS, masks, strict=True)}
    assert found == {"P": [1, 2], "T": [4, 5], "T.answer": [5], "T.prompt": [4], "P.nosink": [2], "T.nosink": [4, 5]}


def test_groups_spread_over_all_jackknife_groups():
    assert {group_of(f"sample/{index}") for index in range(1000)} == set(range(NUM_GROUPS))
