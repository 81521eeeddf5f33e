"""Calibration against an independent brute force on every kind of family; what must not matter does not."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.prune.calibration import one_shot, sequential
from ima.interventions.prune.mask import Bits, Mask
from ima.interventions.prune.scores import linears_of, wanda
from ima.interventions.prune.select import keep_by
from ima.interventions.prune.sums import ROLE_SETS, Sums, chosen_roles
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.tuning import weight_sum

FAMILIES = ("opt", "llama", "gemma3", "phi3", "gpt_neox")
P, Q, A, S, PAD = (int(role) for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD))
SEQUENCES = (
    [P] * 4 + [Q] * 3 + [A] * 2 + [S],
    [P] * 4 + [S, Q, Q, A, S],
    [P] * 4 + [Q] + [A] * 4 + [S],
    [P] * 4 + [A, S],
)
Inputs = tuple[Tensor, Tensor]


def examples(llm: FrozenLLM, sequences: Sequence[Sequence[int]] = SEQUENCES) -> list[Inputs]:
    """One example each, unpadded; percepts are random vectors, text random embeddings."""
    out = []
    for index, roles in enumerate(sequences):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(1, len(roles), llm.width, generator=generator) * llm.embedding_norm / llm.width**0.5
        x[:, : roles.count(P)] *= 3  # so that modalities differ
        out.append((x.to(llm.dtype), torch.tensor([roles])))
    return out


def batched(inputs: Sequence[Inputs], size: int, left: bool = False, extra: int = 0) -> list[Inputs]:
    out = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        length = max(x.shape[1] for x, _ in part) + extra
        x_BSD = torch.full((len(part), length, part[0][0].shape[2]), 7.0)  # what stands in padding must not matter
        roles_BS = torch.full((len(part), length), PAD)
        for row, (x, roles) in enumerate(part):
            where = slice(length - x.shape[1], None) if left else slice(0, x.shape[1])
            x_BSD[row, where], roles_BS[row, where] = x[0], roles[0]
        out.append((x_BSD, roles_BS))
    return out


def brute_force(llm: FrozenLLM, inputs: Sequence[Inputs], roles: Sequence[Role]) -> dict[str, Tensor]:
    """|W| * sqrt(sum of squares) written down naively: one example, one token, one matrix at a time, in fp64."""
    totals: dict[str, Tensor] = {}
    names = {module: name for name, module in llm.model.named_modules()}
    for x_1SD, roles_1S in inputs:
        seen: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(
                lambda m, args, _out, seen=seen: seen.__setitem__(names[m], args[0].detach().clone())
            )
            for block in llm.table.blocks
            for module in block.modules()
            if isinstance(module, nn.Linear)
        ]
        llm.model.base_model(inputs_embeds=x_1SD, use_cache=False)
        for handle in handles:
            handle.remove()
        for name, x in seen.items():
            for token, role in zip(x.reshape(-1, x.shape[-1]).double(), roles_1S[0].tolist(), strict=True):
                if role in [int(each) for each in roles]:
                    totals[name] = totals.get(name, torch.zeros_like(token)) + token**2
    parameters = dict(llm.model.named_parameters())
    return {name: parameters[f"{name}.weight"].double().abs() * total.sqrt() for name, total in totals.items()}


def lowest_of_rows(score: Tensor, ratio: float) -> np.ndarray:
    kept = torch.ones_like(score, dtype=torch.bool)
    for row in range(len(score)):
        kept[row, score[row].sort(stable=True).indices[: int(score.shape[1] * ratio + 1e-9)]] = False
    return kept.numpy()


def masks_of(llm: FrozenLLM, sums: Sums, roles: Sequence[Role], ratio: float) -> dict[str, np.ndarray]:
    return {
        path: keep_by("row", wanda(linear, sums.norm(path, tuple(roles))), ratio)
        for path, linear in linears_of(llm).items()
    }


def kept_of(llm: FrozenLLM, bits: dict[str, Bits]) -> dict[str, np.ndarray]:
    mask = Mask(bits, {path: (linear.out_features, linear.in_features) for path, linear in linears_of(llm).items()})
    return {path: mask.kept(path) for path in bits}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("roles", ["percept", "text", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_gives_the_masks_of_every_role_that_brute_force_gives(family: str, roles: str, answers: bool) -> None:
    llm = tiny(family)
    chosen = chosen_roles(roles, answers)
    inputs = examples(llm)
    found = masks_of(llm, one_shot(llm, batched(inputs, 3)), chosen, 0.4)
    expected = {path: lowest_of_rows(score, 0.4) for path, score in brute_force(llm, inputs, chosen).items()}
    assert equal(found, expected)
    for kept in found.values():
        assert ((~kept).sum(1) == int(kept.shape[1] * 0.4)).all()


def test_without_answers_is_what_calibrating_on_prompts_alone_gives() -> None:
    llm = tiny("llama")
    cut = [[role for role in sequence if role != A] for sequence in SEQUENCES]
    cut = [sequence[: max(i for i, role in enumerate(sequence) if role in (P, Q)) + 1] for sequence in cut]
    inputs = examples(llm)
    short = [(x[:, : len(c)], torch.tensor([c])) for (x, _), c in zip(inputs, cut, strict=True)]
    roles = chosen_roles("both", answers=False)
    assert equal(
        masks_of(llm, one_shot(llm, inputs), roles, 0.5),
        masks_of(llm, one_shot(llm, short), roles, 0.5),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_batch_split_and_order_of_examples_do_not_matter(family: str) -> None:
    llm = tiny(family)
    inputs = examples(llm)
    plain = one_shot(llm, inputs)
    for way in (
        batched(inputs, 2),
        batched(inputs, 4, extra=5),
        batched(inputs[::-1], 3),
        batched(inputs, 4, left=True),
    ):
        found = one_shot(llm, way)
        assert torch.equal(found.num_tokens, plain.num_tokens) and found.num_tokens[PAD] == 0
        for path, squares in plain.squares.items():
            torch.testing.assert_close(found.squares[path], squares, rtol=1e-5, atol=1e-6)
        for roles in ROLE_SETS.values():
            assert equal(masks_of(llm, found, roles, 0.5), masks_of(llm, plain, roles, 0.5))


@pytest.mark.parametrize("family", FAMILIES)
def test_sequential_blocks_see_what_the_pruned_prefix_gives(family: str) -> None:
    """The slow twin prunes block b for good, then runs the WHOLE model again for block b + 1."""
    llm, twin = tiny(family), tiny(family)
    inputs, roles = examples(llm), ROLE_SETS["both"]
    before = weight_sum(llm)

    def decide(path: str, sums: Sums) -> Tensor:
        return keep_by("row", wanda(linears_of(llm)[path], sums.norm(path, roles)), 0.5)

    found = kept_of(llm, sequential(llm, batched(inputs, 2), decide))
    assert weight_sum(llm) == before
    expected: dict[str, np.ndarray] = {}
    for block in twin.table.blocks:
        inside = {id(module) for module in block.modules()}
        own = [path for path, linear in linears_of(twin).items() if id(linear) in inside]
        scores = brute_force(twin, inputs, roles)
        for path in own:
            expected[path] = lowest_of_rows(scores[path], 0.5)
            with torch.no_grad():
                linears_of(twin)[path].weight[torch.from_numpy(~expected[path])] = 0
    assert equal(found, expected)
    assert not equal(found, masks_of(llm, one_shot(llm, inputs), roles, 0.5))


def test_memory_grows_with_the_examples_activations_at_one_block_and_with_nothing_else() -> None:
    llm = tiny("llama", num_blocks=6)

    def held_bytes(num: int) -> int:
        """Most bytes of tensors alive while a mask is decided."""
        most = 0

        def decide(path: str, sums: Sums) -> Tensor:
            nonlocal most
            alive = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors()}
            most = max(most, sum(alive.values()))
            return keep_by("row", wanda(linears_of(llm)[path], sums.norm(path, ROLE_SETS["both"])), 0.5)

        def tensors() -> list[Tensor]:
            return [each for each in gc.get_objects() if type(each) is Tensor]

        gc.collect()
        gc.freeze()  # only what is made from here on is looked at, again and again
        sequential(llm, (batch for _ in range(num) for batch in batched(examples(llm), 4)), decide)
        gc.unfreeze()
        return most

    (x_BSD, _) = batched(examples(llm), 4)[0]
    activations = x_BSD.numel() * x_BSD.element_size()
    # Beside the block's input: roles, positions and the mask of the batch, which are smaller each.
    assert held_bytes(24) - held_bytes(8) <= 16 * 2 * activations


def test_a_sequential_calibration_that_breaks_off_leaves_the_model_as_it_was() -> None:
    llm = tiny("phi3")
    before, num = weight_sum(llm), 0

    def decide(path: str, sums: Sums) -> Tensor:
        nonlocal num
        num += 1
        if num > 6:
            raise RuntimeError("stop")
        return torch.zeros(tuple(linears_of(llm)[path].weight.shape), dtype=torch.bool)

    with pytest.raises(RuntimeError, match="stop"):
        sequential(llm, examples(llm), decide)
    assert weight_sum(llm) == before
    assert not any(hooks for m in llm.model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks))
    assert not any("forward" in vars(block) for block in llm.table.blocks)


def test_statistics_survive_their_file(tmp_path: object) -> None:
    from pathlib import Path

    llm = tiny("llama")
    sums = one_shot(llm, examples(llm))
    path = Path(str(tmp_path)) / "sums.safetensors"
    sums.save(path, {"run": "r"})
    found, facts = Sums.load(path)
    assert facts == {"run": "r"} and torch.equal(found.num_tokens, sums.num_tokens)
    assert all(torch.equal(found.squares[name], each) for name, each in sums.squares.items())
    whole = path.read_bytes()
    for place in (whole.index(b'"r'), len(whole) - 5):  # in the facts, in the numbers
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"sums.safetensors: [^\n]+$"):
            Sums.load(path)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="not readable calibration statistics"):
        Sums.load(path)


def test_roles_without_a_token_are_refused() -> None:
    llm = tiny("llama")
    sums = one_shot(llm, examples(llm, [[Q, Q, A, S]]))
    with pytest.raises(UserError, match="no calibration token is percept"):
        sums.norm(next(iter(linears_of(llm))), ROLE_SETS["percept"])


@pytest.mark.real
def test_text_masks_of_a_real_model_are_those_of_the_original_procedure() -> None:
    """Wanda as published: batch size 1, running mean of squared norms, stable sort, pruned block by block, the second
    pass through the pruned block. All tokens count, no padding."""
    from ima.models.llm.load import smollm2

    llm = smollm2(dtype="float32")
    texts = [
        "The cat sat on the mat and looked at the moon.",
        "Paris is the capital of France, and Rome of Italy.",
        "To make tea, boil water and wait.",
        "In 1969 two people walked on the moon for the first time.",
    ]
    inputs = []
    for text in texts:
        ids = torch.tensor([llm.encode(text)])
        inputs.append((llm.embed(ids), torch.full(ids.shape, Q)))
    num_blocks, ratio = 3, 0.5

    linears = linears_of(llm)
    wanted = {path for path in linears if int(path.split(".")[2]) < num_blocks}

    def decide(path: str, sums: Sums) -> Tensor:
        if path not in wanted:
            return torch.ones(tuple(linears[path].weight.shape), dtype=torch.bool)
        return keep_by("row", wanda(linears[path], sums.norm(path, (Role.PROMPT,))), ratio)

    found = kept_of(llm, sequential(llm, inputs, decide))

    model = llm.model.model
    hidden = [x for x, _ in inputs]
    num_different = 0
    for block in range(num_blocks):
        layer = model.layers[block]
        own = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        scaler = {name: torch.zeros(module.in_features) for name, module in own.items()}

        def run(x: Tensor, layer: nn.Module = layer) -> Tensor:
            turn = model.rotary_emb(x, torch.arange(x.shape[1])[None])
            with torch.no_grad():
                return layer(x, attention_mask=None, position_embeddings=turn)

        for num_samples, x in enumerate(hidden):
            seen: dict[str, Tensor] = {}
            handles = [
                m.register_forward_hook(lambda _m, args, _o, name=name, seen=seen: seen.__setitem__(name, args[0][0]))
                for name, m in own.items()
            ]
            run(x)
            for handle in handles:
                handle.remove()
            for name, rows in seen.items():
                scaler[name] *= num_samples / (num_samples + 1)
                scaler[name] += torch.norm(rows.t().float(), p=2, dim=1) ** 2 / (num_samples + 1)
        saved = {}
        for name, module in own.items():
            score = module.weight.abs() * torch.sqrt(scaler[name].reshape(1, -1))
            pruned = torch.zeros_like(score, dtype=torch.bool)
            pruned.scatter_(1, torch.sort(score, dim=-1, stable=True)[1][:, : int(score.shape[1] * ratio)], True)
            ours = torch.from_numpy(~found[f"model.layers.{block}.{name}"])
            differ = (ours != pruned).nonzero()
            num_different += len(differ)
            for row, column in differ.tolist():  # only ties up to fp32 rounding of the statistics
                edge = score[row].sort().values[int(score.shape[1] * ratio)]
                assert abs(score[row, column] - edge) <= 1e-5 * edge
            saved[name] = module.weight.detach().clone()
            with torch.no_grad():
                module.weight[pruned] = 0
        hidden = [run(x) for x in hidden]
        with torch.no_grad():
            for name, module in own.items():
                module.weight.copy_(saved[name])
    print(f"weights at ties: {num_different} of {sum(found[path].size for path in wanted)}")
    assert num_different <= 1e-5 * sum(found[path].size for path in wanted)
