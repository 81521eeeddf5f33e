"""The frozen LLM behaves as the stock model: from embeddings, under padding, in cached decoding and in the loss."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from ima.core.errors import UserError
from ima.core.types import Role
from ima.models.llm.decoding import contiguous_head
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tiny import FAMILY_NAMES, tiny_model, tiny_tokenizer
from ima.models.llm.tuning import weight_sum

families = pytest.mark.parametrize("family", FAMILY_NAMES)
P, Q, A = int(Role.PERCEPT), int(Role.PROMPT), int(Role.ANSWER)


@cache
def tiny(family: str) -> FrozenLLM:
    return FrozenLLM(tiny_model(family, seed=1), tiny_tokenizer())


@pytest.fixture
def llm(family: str) -> FrozenLLM:
    return tiny(family)


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 259, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hidden(llm: FrozenLLM, ids: torch.Tensor) -> torch.Tensor:
    return llm(llm.embed(ids), torch.full_like(ids, Q))


@families
def test_a_pass_from_embeddings_is_the_stock_pass_from_ids(llm: FrozenLLM) -> None:
    ids_BT = random_ids(3, 9)
    with torch.no_grad():
        stock = llm.model(input_ids=ids_BT).logits
    ours = llm.logits(hidden(llm, ids_BT).flatten(0, 1)).view_as(stock)
    torch.testing.assert_close(ours, stock.float(), rtol=1e-5, atol=1e-5)


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_output_of_a_real_position(llm: FrozenLLM, side: str) -> None:
    lengths = (3, 8, 5)
    rows = [random_ids(1, length, seed=length) for length in lengths]
    x_BSD = torch.full((3, 10, llm.width), 7.0)  # what stands at pads must not matter
    roles_BS = torch.full((3, 10), int(Role.PAD))
    spans = [slice(10 - n, 10) if side == "left" else slice(0, n) for n in lengths]
    for index, (ids, span) in enumerate(zip(rows, spans, strict=True)):
        x_BSD[index, span] = llm.embed(ids)[0]
        roles_BS[index, span] = Q
    with torch.no_grad():
        h_BSD = llm(x_BSD, roles_BS)
    for index, (ids, span) in enumerate(zip(rows, spans, strict=True)):
        torch.testing.assert_close(h_BSD[index, span], hidden(llm, ids)[0], rtol=1e-4, atol=1e-5)


def greedy_by_whole_passes(llm: FrozenLLM, x_SD: torch.Tensor, num: int) -> list[int]:
    """The slow twin of cached decoding: the whole sequence again for every token."""
    found: list[int] = []
    x_BSD = x_SD[None]
    for _ in range(num):
        h_BSD = llm(x_BSD, torch.full(x_BSD.shape[:2], Q))
        token = int(llm.logits(h_BSD[:, -1]).argmax())
        if token == llm.eos_id:
            break
        found.append(token)
        x_BSD = torch.cat([x_BSD, llm.embed(torch.tensor([[token]]))], dim=1)
    return found


def left_padded(llm: FrozenLLM, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    width = max(lengths)
    x_BSD, roles_BS = torch.zeros(len(lengths), width, llm.width), torch.zeros(len(lengths), width, dtype=torch.long)
    rows = [llm.embed(random_ids(length, seed=17 + index)) for index, length in enumerate(lengths)]
    for index, x_SD in enumerate(rows):
        x_BSD[index, width - len(x_SD) :] = x_SD
        roles_BS[index, width - len(x_SD) :] = Q
    return x_BSD, roles_BS, rows


@families
def test_cached_decoding_is_the_argmax_of_whole_passes(llm: FrozenLLM) -> None:
    x_BSD, roles_BS, rows = left_padded(llm, (6, 2, 4))
    with torch.no_grad():
        found = llm.generate(x_BSD, roles_BS, Generation(max_new_tokens=5))
        assert found == [greedy_by_whole_passes(llm, x_SD, 5) for x_SD in rows]


def beams_by_whole_passes(llm: FrozenLLM, x_SD: torch.Tensor, num: int, num_beams: int) -> list[int]:
    """The slow twin of beam search, for texts in which the end never comes near the top."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(num):
        grown = []
        for total, ids in beams:
            whole_BSD = torch.cat([x_SD, llm.embed(torch.tensor(ids, dtype=torch.long))])[None]
            h_BSD = llm(whole_BSD, torch.full(whole_BSD.shape[:2], Q))
            log_p = llm.logits(h_BSD[:, -1])[0].log_softmax(-1)
            grown += [(total + float(value), [*ids, token]) for token, value in enumerate(log_p.tolist())]
        best = sorted(grown, reverse=True)[: 2 * num_beams]
        assert all(ids[-1] != llm.eos_id for _, ids in best), "choose another seed"
        beams = best[:num_beams]
    return beams[0][1]


@families
def test_beam_search_is_that_of_whole_passes(llm: FrozenLLM) -> None:
    x_BSD, roles_BS, rows = left_padded(llm, (6, 2))
    with torch.no_grad():
        found = llm.generate(x_BSD, roles_BS, Generation(4, num_beams=2))
        assert found == [beams_by_whole_passes(llm, x_SD, 4, 2) for x_SD in rows]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_roles_are_known_in_every_pass_of_decoding(llm: FrozenLLM, length: int, num_beams: int) -> None:
    x_BSD, roles_BS, _ = left_padded(llm, (length, length))
    roles_BS = torch.tensor([[P] + [Q] * (length - 1), [Q] * (length - 1) + [A]])
    seen: list[torch.Tensor] = []
    block = llm.table.blocks[0]
    handle = block.register_forward_hook(lambda *_: seen.append(llm.roles_of(last[0])))
    last: list[torch.Tensor] = []
    before = block.register_forward_pre_hook(
        lambda _m, args, kwargs: last.insert(0, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        llm.generate(x_BSD, roles_BS, Generation(4, num_beams))
    finally:
        handle.remove()
        before.remove()
    assert torch.equal(seen[0], roles_BS.repeat_interleave(num_beams, 0))
    assert len(seen) > 1
    for roles in seen[1:]:
        assert roles.shape == (2 * num_beams, 1) and bool((roles == Role.GENERATED).all())


def test_roles_are_not_known_outside_a_pass() -> None:
    llm = tiny("llama")
    hidden(llm, random_ids(1, 3))
    with pytest.raises(AssertionError, match="while a pass runs"):
        llm.roles_of(torch.zeros(1, 3, llm.width))


def labels_for(ids_BS: torch.Tensor) -> torch.Tensor:
    labels_BS = ids_BS.clone()
    labels_BS[:, :3] = -100
    labels_BS[1, -2:] = -100
    return labels_BS


@families
def test_the_loss_is_the_cross_entropy_over_full_logits_and_only_labelled_rows_reach_the_head(llm: FrozenLLM) -> None:
    ids_BS = random_ids(2, 8)
    labels_BS = labels_for(ids_BS)
    with torch.no_grad():
        full = llm.model(input_ids=ids_BS).logits.float()
        stock = F.cross_entropy(full[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten(), reduction="sum")
        h_BSD = hidden(llm, ids_BS)
        seen: list[torch.Tensor] = []
        handle = llm.model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        ours = llm.loss_sum(h_BSD, labels_BS)
        handle.remove()
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-4)
    (rows_ND,) = seen
    assert torch.equal(rows_ND, h_BSD[:, :-1][labels_BS[:, 1:] != -100])
    assert len(rows_ND) == 5 + 3


@families
def test_gradients_reach_the_inputs_and_nothing_else(llm: FrozenLLM) -> None:
    ids_BS = random_ids(2, 8)
    x_BSD = llm.embed(ids_BS).detach().requires_grad_()
    before = weight_sum(llm)
    llm.loss_sum(llm(x_BSD, torch.full_like(ids_BS, Q)), labels_for(ids_BS)).backward()
    assert x_BSD.grad is not None and bool((x_BSD.grad[:, :3].abs().sum(-1) > 0).all())
    assert all(not p.requires_grad and p.grad is None for p in llm.parameters())
    assert weight_sum(llm) == before


def test_a_batch_without_labels_gives_a_loss_and_a_gradient_of_zero() -> None:
    """What a rank without a share of a batch passes on."""
    llm, ids = tiny("llama"), random_ids(1, 5)
    x = llm.embed(ids).requires_grad_()
    loss = llm.loss_sum(llm(x, torch.full_like(ids, Q)), torch.full_like(ids, -100))
    (found,) = torch.autograd.grad(loss, x)
    assert float(loss) == 0 and not bool(found.any())


def test_train_keeps_eval_mode() -> None:
    model = tiny_model("opt")
    model.config.dropout = 0.5
    llm = FrozenLLM(model, tiny_tokenizer())
    torch.nn.Sequential(llm).train()
    assert not any(module.training for module in llm.modules())


@families
def test_a_contiguous_head_changes_no_output_and_leaves_no_hook(llm: FrozenLLM) -> None:
    h_BSD = torch.randn(2, 5, llm.width, generator=torch.Generator().manual_seed(0))
    head = llm.model.get_output_embeddings()
    plain = head(h_BSD[:, -1:])
    with contiguous_head(llm.model):
        torch.testing.assert_close(head(h_BSD[:, -1:]), plain, rtol=1e-6, atol=1e-6)
        seen: list[bool] = []
        handle = head.register_forward_pre_hook(lambda _m, args: seen.append(args[0].is_contiguous()))
        head(h_BSD[:, -1:])
        handle.remove()
    assert seen == [True]
    assert not head._forward_pre_hooks


@families
def test_a_flipped_bit_of_any_weight_changes_the_fingerprint(family: str) -> None:
    llm = FrozenLLM(tiny_model(family), tiny_tokenizer())
    before = weight_sum(llm)
    for index, (name, parameter) in enumerate(llm.named_parameters()):
        flat = parameter.data.view(-1).view(torch.int32)
        position = (7919 * (index + 1)) % len(flat)
        flat[position] ^= 1
        assert weight_sum(llm) != before, name
        flat[position] ^= 1
    assert weight_sum(llm) == before


def test_two_swapped_weights_change_the_fingerprint() -> None:
    llm = FrozenLLM(tiny_model(), tiny_tokenizer())
    before = weight_sum(llm)
    weight = next(llm.parameters()).data
    weight[0, 0], weight[0, 1] = weight[0, 1].clone(), weight[0, 0].clone()
    assert weight_sum(llm) != before


FOREIGN = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(3, 200)),
    "bad_words_ids": [[250], [251]],
    "sequence_bias": [[[240], 50.0]],
    "min_new_tokens": 7,
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 2,
    "guidance_scale": 3.0,
    "prompt_lookup_num_tokens": 3,
    "length_penalty": 9.0,
    "early_stopping": True,
    "max_length": 3,
    "forced_eos_token_id": 2,
    "cache_implementation": "static",
}


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_a_checkpoints_own_generation_settings_change_nothing(tmp_path: Path, num_beams: int) -> None:
    """As they stand in a generation_config.json beside the weights."""
    model = tiny_model("llama", seed=1)
    ids = random_ids(2, 6)
    roles, settings = torch.full_like(ids, Q), Generation(6, num_beams)
    plain = FrozenLLM(model, tiny_tokenizer())
    expected = plain.generate(plain.embed(ids), roles, settings)
    assert any(expected)
    model.save_pretrained(tmp_path)
    for name, value in FOREIGN.items():
        (tmp_path / "generation_config.json").write_text(json.dumps({name: value, "eos_token_id": 2}))
        loaded = FrozenLLM(AutoModelForCausalLM.from_pretrained(tmp_path), tiny_tokenizer())
        before = loaded.model.generation_config
        assert loaded.generate(loaded.embed(ids), roles, settings) == expected, name
        assert loaded.model.generation_config is before


@torch.no_grad()
def test_every_end_that_a_checkpoint_lists_ends_an_answer(tmp_path: Path) -> None:
    model, ids = tiny_model("llama", seed=1), random_ids(1, 6)
    plain = FrozenLLM(model, tiny_tokenizer())
    roles = torch.full_like(ids, Q)
    (said,) = plain.generate(plain.embed(ids), roles, Generation(6))
    assert plain.stop_ids == [2] and len(said) > 2
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, said[2]]}))
    loaded = FrozenLLM(AutoModelForCausalLM.from_pretrained(tmp_path), tiny_tokenizer())
    assert loaded.stop_ids == [2, said[2]] and loaded.eos_id == 2
    assert loaded.generate(loaded.embed(ids), roles, Generation(6)) == [said[: said.index(said[2])]]


def test_a_tokenizer_without_an_end_or_with_more_tokens_than_embeddings_is_refused() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.eos_token, model.config.eos_token_id = None, None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        FrozenLLM(model, tokenizer)
    larger = tiny_tokenizer()
    larger.add_tokens(["giraffe"])
    with pytest.raises(UserError, match=r"260 tokens and the model 259 embeddings: 'giraffe'"):
        FrozenLLM(tiny_model("llama"), larger)
    FrozenLLM(tiny_model("llama"), tiny_tokenizer(["<image>"]))  # no text makes a special of pictures


def test_positions_that_depend_on_the_batch_are_warned_of() -> None:
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.warns(UserWarning, match="rope_type dynamic"):
        FrozenLLM(model, tiny_tokenizer())


def test_numbers_beyond_float16_are_named_as_such() -> None:
    model = tiny_model("llama").half()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
        model.model.layers[1].mlp.up_proj.weight.fill_(6e4)
    with pytest.raises(UserError, match=r"llm.dtype: float16 ends at 65504, and values of block 1 \("):
        FrozenLLM(model, tiny_tokenizer())


@families
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_fixed_cache_says_what_the_growing_one_says_batch_after_batch(llm: FrozenLLM, num_beams: int) -> None:
    settings, said = Generation(5, num_beams), []
    batches = [left_padded(llm, lengths)[:2] for lengths in ((6, 2, 4), (3, 3, 1), (5, 2), (150, 9, 4))]
    for compile in (False, True):
        llm.compile_when = compile
        try:
            said.append([llm.generate(x_BSD, roles_BS, settings) for x_BSD, roles_BS in batches])
        finally:
            llm.compile_when = "auto"
            kept = llm.fixed_cache.size
            llm.fixed_cache.forget()
    assert said[0] == said[1]
    assert kept == (3 * num_beams, 256)  # grown for the last batch; the third one, of two rows, went without


def test_a_hook_keeps_the_growing_cache() -> None:
    llm = FrozenLLM(tiny_model("llama", seed=1), tiny_tokenizer(), compile=True)
    x_BSD, roles_BS, _ = left_padded(llm, (4, 4))
    handle = llm.table.blocks[0].register_forward_hook(lambda *_: None)
    llm.generate(x_BSD, roles_BS, Generation(3))
    assert llm.fixed_cache.size == (0, 0)
    handle.remove()
    llm.generate(x_BSD, roles_BS, Generation(3))
    assert llm.fixed_cache.size == (2, 128)


def test_where_decoding_cannot_be_compiled_it_goes_on_as_usual_with_one_line() -> None:
    llm = FrozenLLM(tiny_model("llama", seed=1), tiny_tokenizer(), compile=True)
    x_BSD, roles_BS, _ = left_padded(llm, (4, 3))
    generate = llm.model.generate

    def refuses(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            raise torch._dynamo.exc.Unsupported("no such operation")
        return generate(*args, **kwargs)

    llm.model.generate = refuses
    with pytest.warns(
        UserWarning, match=r"llm.compile: decoding of llm cannot be compiled here \(Unsupported: no such"
    ):
        found = llm.generate(x_BSD, roles_BS, Generation(3))
    assert (
        found == llm.generate(x_BSD, roles_BS, Generation(3)) == tiny("llama").generate(x_BSD, roles_BS, Generation(3))
    )
