"""SparseGPT against the published procedure written down naively; its weights in a file, applied and taken back; TAMP's
ratios and ATV's calibration against brute force."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_masks_calibration import Inputs, batched, examples, kept_of, lowest_of_rows
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.prune.apply import masked, pruned, replaced
from ima.interventions.prune.builder import MaskBuilder
from ima.interventions.prune.calibration import Decide, sequential
from ima.interventions.prune.diversity import diversities, ratios_of
from ima.interventions.prune.mask import Mask, place_of
from ima.interventions.prune.recipe import Recipe
from ima.interventions.prune.scores import linears_of, wanda
from ima.interventions.prune.select import keep_by
from ima.interventions.prune.sparsegpt import prune_matrix
from ima.interventions.prune.sums import ROLE_SETS, GramWatch, Sums
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.tuning import weight_sum

P, Q, A, S, PAD = (int(role) for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD))
BOTH = [int(role) for role in ROLE_SETS["both"]]


class Task:
    """Calibration examples made up here."""

    name, key = "made up", "key"

    def __init__(self, inputs: list[Inputs]) -> None:
        self.batches = inputs

    def inputs(self, llm: FrozenLLM) -> list[Inputs]:
        return self.batches

    def facts(self) -> dict[str, str]:
        return {"run": "made up"}


def states_in(out: Any) -> Tensor:
    """What a block gives out, alone or first of several."""
    states: Tensor = out if isinstance(out, Tensor) else out[0]
    return states


def published(weight: Tensor, gram: Tensor, ratio: float, columns: int, group: int = 0) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper with plain loops and an explicit inverse for every column: after column j the inverse
    Hessian of the columns to its right is that of the Hessian without column j."""
    hessian = gram.clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    new = weight.double().clone()
    new[:, dead] = 0
    kept = torch.ones_like(new, dtype=torch.bool)
    num = new.shape[1]
    first_diagonal = [torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(num)]
    for j in range(num):
        if not group and j % columns == 0:
            ahead = range(j, min(j + columns, num))
            score = torch.stack([new[:, k] ** 2 / first_diagonal[k] for k in ahead], dim=1)
            order = score.reshape(-1).sort(stable=True).indices[: int(ratio * score.numel() + 1e-9)]
            flat = torch.ones(score.numel(), dtype=torch.bool)
            flat[order] = False
            kept[:, j : j + columns] = flat.reshape(score.shape)
        if group and j % group == 0:
            score = torch.stack([new[:, k] ** 2 / first_diagonal[k] for k in range(j, j + group)], dim=1)
            for row in range(len(new)):
                kept[row, j + score[row].sort(stable=True).indices[: group // 2]] = False
        inverse = torch.linalg.inv(hessian[j:, j:])
        lost = torch.where(kept[:, j], 0.0, new[:, j]) / inverse[0, 0]
        new[:, j:] -= lost[:, None] * inverse[0]
        new[:, j] = torch.where(kept[:, j], new[:, j], 0.0)
    return kept, new


def matrix(rows: int = 12, num: int = 40, tokens: int = 70) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(num, num, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, num, generator=generator, dtype=torch.float64) @ mixing
    x[:, 5] = 0  # never used
    return torch.randn(rows, num, generator=generator), x.T @ x


@pytest.mark.parametrize("columns", [8, 16, 128])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8])
def test_a_matrix_is_pruned_as_published(ratio: float, columns: int) -> None:
    weight, gram = matrix()
    kept, new = prune_matrix(weight.double(), gram, ratio, columns=columns)
    expected_kept, expected = published(weight, gram, ratio, columns)
    assert torch.equal(kept, expected_kept)
    torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-7)
    assert not new[~kept].any()


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_is_chosen_when_its_columns_turn_comes(pattern: str) -> None:
    weight, gram = matrix()
    kept, new = prune_matrix(weight.double(), gram, 0.5, pattern, columns=16)
    expected_kept, expected = published(weight, gram, 0.5, 16, int(pattern[-1]))
    assert torch.equal(kept, expected_kept)
    torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-7)
    assert (kept.reshape(len(kept), -1, int(pattern[-1])).sum(-1) == int(pattern[0])).all()


def test_its_outputs_change_less_than_those_under_the_same_zeros_and_under_wandas() -> None:
    weight, gram = matrix(rows=30)

    def error(new: Tensor) -> float:
        change = new.double() - weight.double()
        return float(((change @ gram) * change).sum())

    kept, new = prune_matrix(weight, gram, 0.5)
    by_wanda = keep_by("row", weight.abs() * gram.diagonal().sqrt().float(), 0.5)
    assert error(new) < error(weight * kept)
    assert error(new) < error(weight * by_wanda)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_blocks_of_a_model_are_pruned_one_after_the_other_each_seeing_the_new_weights_before_it(family: str) -> None:
    llm, twin = tiny(family), tiny(family)
    inputs = examples(llm)
    mask = MaskBuilder(llm).make(Recipe("sparsegpt", 0.4), Task(batched(inputs, 2, extra=1)), [])  # type: ignore[arg-type]
    for block in twin.table.blocks:
        inside = {id(module) for module in block.modules()}
        own = {path: linear for path, linear in linears_of(twin).items() if id(linear) in inside}
        grams = grams_of(twin, inputs, own)
        for path, linear in own.items():
            kept, new = published(linear.weight, grams[path], 0.4, 128)
            assert np.array_equal(mask.kept(path), kept.numpy())
            with torch.no_grad():
                linear.weight.copy_(new)
    with masked(llm, mask):
        for path, linear in linears_of(llm).items():
            torch.testing.assert_close(linear.weight, linears_of(twin)[path].weight, rtol=1e-4, atol=1e-6)


def grams_of(llm: FrozenLLM, inputs: list[Inputs], linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for x_1SD, roles_1S in inputs:
        seen: dict[str, Tensor] = {}
        handles = [
            linear.register_forward_hook(lambda _m, args, _o, path=path, seen=seen: seen.__setitem__(path, args[0]))
            for path, linear in linears.items()
        ]
        with torch.no_grad():
            llm.model.base_model(inputs_embeds=x_1SD, use_cache=False)
        for handle in handles:
            handle.remove()
        counted = torch.isin(roles_1S[0], torch.tensor(BOTH))
        for path, x in seen.items():
            rows = x.reshape(len(counted), -1)[counted].double()
            totals[path] = totals.get(path, torch.zeros(())) + rows.T @ rows
    return totals


def test_its_file_brings_the_new_weights_and_takes_them_away_bit_for_bit(tmp_path: Path) -> None:
    llm = tiny("llama", dtype="bfloat16")
    before = weight_sum(llm)
    mask = MaskBuilder(llm).make(Recipe("sparsegpt", 0.5), Task(batched(examples(llm), 4)), [])  # type: ignore[arg-type]
    mask.save(tmp_path / "m.safetensors")
    found = Mask.load(tmp_path / "m.safetensors")
    assert found == mask and found.values.keys() == mask.values.keys()
    weights = []
    for each in (mask, found):
        with pytest.raises(RuntimeError, match="inside"), masked(llm, each):
            weights.append({path: linear.weight.clone() for path, linear in linears_of(llm).items()})
            raise RuntimeError("inside")
        assert weight_sum(llm) == before
    for path, weight in weights[0].items():
        assert torch.equal(weight, weights[1][path])
        assert not weight[torch.from_numpy(~mask.kept(path))].any()
        changed = weight != linears_of(llm)[path].weight
        assert changed[torch.from_numpy(mask.kept(path))].any()  # not only zeros
    with pytest.raises(UserError, match="new values of the weights"), masked(llm, found, any_weights=True):
        pass
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(UserError, match="damaged"):
        Mask.load(tmp_path / "m.safetensors")
    assert not (mask & mask).values  # what two masks share has no new values


# -- ratios by layer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_diversity_is_the_mean_cosine_distance_of_all_pairs_in_any_batches(family: str) -> None:
    llm = tiny(family)
    inputs = examples(llm)
    expected = [0.0] * llm.num_blocks
    for x_1SD, roles_1S in inputs[:3]:  # the fourth has one text token
        outs: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda _m, _a, out, outs=outs: outs.append(states_in(out)))
            for block in llm.table.blocks
        ]
        with torch.no_grad():
            llm.model.base_model(inputs_embeds=x_1SD, use_cache=False)
        for handle in handles:
            handle.remove()
        for block, out in enumerate(outs):
            p = [x for x, role in zip(out[0].double(), roles_1S[0], strict=True) if role == P]
            t = [x for x, role in zip(out[0].double(), roles_1S[0], strict=True) if role in (Q, A)]

            def far(a: Tensor, b: Tensor) -> float:
                return 1 - float(torch.cosine_similarity(a, b, dim=0))

            within = [[far(a, b) for i, a in enumerate(g) for b in g[i + 1 :]] for g in (p, t)]
            parts = [*within, [far(a, b) for a in p for b in t]]
            expected[block] += sum(sum(part) / len(part) for part in parts) / 3 / 3
    for way in (inputs, batched(inputs, 4, extra=3), batched(inputs, 2, left=True)):
        assert diversities(llm, way) == pytest.approx(expected, rel=1e-4)


def test_ratios_are_inverse_to_diversity_and_together_what_was_asked_for() -> None:
    sizes = [100, 300, 100]
    for ratio in (0.1, 0.5, 0.9, 1.0):
        found = ratios_of([0.1, 0.4, 0.8], sizes, ratio)
        assert sum(r * n for r, n in zip(found, sizes, strict=True)) == pytest.approx(ratio * 500)
        assert all(0 <= r <= 1 for r in found) and found[0] >= found[1] >= found[2]
    low = ratios_of([0.1, 0.4, 0.8], sizes, 0.1)
    assert low[0] / low[2] == pytest.approx(8)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_more_diverse_blocks_keep_more_at_the_same_whole(method: str) -> None:
    llm = tiny("llama")
    task = Task(batched(examples(llm), 4))
    mask = MaskBuilder(llm).make(Recipe(method, 0.5, layers="diversity"), task, [])  # type: ignore[arg-type]
    found, by_block = diversities(llm, task.batches), mask.densities("block")
    kept = [by_block[str(block)] for block in range(llm.num_blocks)]
    assert [kept[b] for b in np.argsort(found)] == sorted(kept) and len(set(kept)) > 1
    assert mask.density == pytest.approx(0.5, abs=0.02)


# -- the percepts that a block changes most -------------------------------------------------------------------------


def test_calibration_on_changed_percepts_counts_those_that_the_block_turns_most() -> None:
    """The slow twin: one example at a time, the whole model again for every block."""
    llm, twin = tiny("llama"), tiny("llama")
    inputs, share = examples(llm), 3.0
    mask = MaskBuilder(llm).make(
        Recipe("wanda", 0.5, percepts="changed", percept_share=share),
        Task(batched(inputs, 2, extra=2)),
        [],  # type: ignore[arg-type]
    )
    some_left_out = False
    for index, block in enumerate(twin.table.blocks):
        entered, left = [], []
        for x_1SD, _ in inputs:
            with torch.no_grad():
                states = twin.model.base_model(inputs_embeds=x_1SD, use_cache=False, output_hidden_states=True)
            seen: list[Tensor] = []
            handle = block.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(states_in(out)))
            with torch.no_grad():
                twin.model.base_model(inputs_embeds=x_1SD, use_cache=False)
            handle.remove()
            entered.append(states.hidden_states[index][0])
            left.append(seen[0][0])
        change = [1 - torch.cosine_similarity(a, b, dim=-1) for a, b in zip(entered, left, strict=True)]
        mean = float(torch.cat([c[r[0] == P] for c, (_, r) in zip(change, inputs, strict=True)]).mean())
        counted: list[Tensor] = []
        for c, (_, roles_1S) in zip(change, inputs, strict=True):
            roles = roles_1S[0]
            text = (roles == Q) | (roles == A)
            num = min(int((roles == P).sum()), round(min(1.0, share * mean) * int(text.sum())))
            best = sorted((i for i in range(len(roles)) if roles[i] == P), key=lambda i, c=c: -float(c[i]))[:num]
            some_left_out |= num < int((roles == P).sum())
            counted.append(torch.tensor([bool(text[i]) or i in best for i in range(len(roles))]))
        inside = {id(module) for module in block.modules()}
        own = {path: linear for path, linear in linears_of(twin).items() if id(linear) in inside}
        for path, linear in own.items():
            total = torch.zeros(linear.in_features, dtype=torch.float64)
            for (x_1SD, _), rows in zip(inputs, counted, strict=True):
                at: list[Tensor] = []
                handle = linear.register_forward_hook(lambda _m, args, _o, at=at: at.append(args[0][0]))
                with torch.no_grad():
                    twin.model.base_model(inputs_embeds=x_1SD, use_cache=False)
                handle.remove()
                total += at[0][rows].double().square().sum(0)
            expected = lowest_of_rows(linear.weight.double().abs() * total.sqrt(), 0.5)
            assert np.array_equal(mask.kept(path), expected), path
        with torch.no_grad():
            for path, linear in own.items():
                linear.weight[torch.from_numpy(~mask.kept(path))] = 0
    assert some_left_out


def test_a_share_of_percepts_that_takes_all_of_them_is_plain_sequential_calibration() -> None:
    llm = tiny("llama")
    inputs = batched(examples(llm, [[P] * 2 + [Q] * 9 + [A] * 3] * 3), 2)

    def decide(path: str, sums: Sums) -> Tensor:
        return keep_by("row", wanda(linears_of(llm)[path], sums.norm(path, ROLE_SETS["both"])), 0.5)

    plain = kept_of(llm, sequential(llm, inputs, decide))
    all_of_them = kept_of(llm, sequential(llm, inputs, decide, percept_share=1e6))
    assert all(np.array_equal(plain[path], all_of_them[path]) for path in plain)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "sparsegpt", "order": "one_shot"}, "decides block by block"),
        ({"method": "sparsegpt", "group": "row"}, "leave order and group"),
        ({"method": "magnitude", "layers": "diversity"}, "for methods wanda and sparsegpt"),
        ({"method": "wanda", "layers": "diversity", "pattern": "2:4"}, "needs pattern=unstructured"),
        ({"method": "wanda", "percepts": "changed", "order": "one_shot"}, "order=sequential"),
        ({"method": "wanda", "percepts": "changed", "roles": "text"}, "roles=both"),
        ({"method": "magnitude", "percepts": "changed"}, "sequential is for methods wanda and sparsegpt"),
        ({"percept_share": -1.0}, "percept_share: -1.0"),
        ({"layers": "divers"}, "diversity"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        Recipe(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.real
def test_with_half_of_its_first_blocks_pruned_smollm2s_loss_on_text_is_below_wandas() -> None:
    """The known order (arXiv 2301.00774). Over all 30 blocks: docs/masks.md."""
    from ima.models.llm.load import smollm2

    llm = smollm2(dtype="float32")
    docs, num_blocks = Path(__file__).parents[2] / "docs", 4
    pages = [(docs / f"{name}.md").read_text().splitlines() for name in ("masks", "skipping", "training")]
    ids = torch.tensor(llm.encode(" ".join(line for page in pages for line in page if line[:1].isalpha())))
    pieces = torch.stack([ids[start : start + 48] for start in range(0, len(ids) - 48, 48)][:40])
    inputs = [(llm.embed(piece), torch.full(piece.shape, Q)) for piece in pieces.split(8)]
    test = "The sun rose over the hills, and the farmer walked slowly to the barn, where the cows were waiting for him."
    test_ids = torch.tensor([llm.encode(test)])
    linears, new = linears_of(llm), dict[str, Tensor]()

    def by_wanda(path: str, sums: Sums) -> Tensor:
        return keep_by("row", wanda(linears[path], sums.norm(path, (Role.PROMPT,))), 0.5)

    def by_error(path: str, sums: Sums) -> Tensor:
        kept, new[path] = prune_matrix(linears[path].weight, sums.gram(path, (Role.PROMPT,)), 0.5)
        return kept

    class Enough(Exception):
        """The blocks in question are decided."""

    def first(decide: Decide, found: dict[str, Tensor]) -> Decide:
        def only(path: str, sums: Sums) -> Tensor:
            if place_of(path).block == num_blocks:
                raise Enough
            found[path] = decide(path, sums)
            return found[path]

        return only

    def loss() -> float:
        with torch.no_grad():
            return float(llm.model(input_ids=test_ids, labels=test_ids).loss)

    plain, kept, of_error = loss(), dict[str, Tensor](), dict[str, Tensor]()
    with pytest.raises(Enough):
        sequential(llm, inputs, first(by_wanda, kept))
    with pytest.raises(Enough):
        sequential(llm, inputs, first(by_error, of_error), partial(GramWatch, roles=(Role.PROMPT,)), new)
    own = {path: linears[path] for path in kept}
    with pruned(own, kept):
        with_wanda = loss()
    with replaced(own, new.__getitem__):
        with_sparsegpt = loss()
    print(f"loss: {plain:.3f}, wanda {with_wanda:.3f}, sparsegpt {with_sparsegpt:.3f}")
    assert plain < with_sparsegpt < with_wanda
