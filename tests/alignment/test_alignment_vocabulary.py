"""The logit lens is the model's own head; divergences equal their definitions; the translation test holds out."""

import math

import pytest
import torch

from ima.alignment.logit_lens import Head, js, kl, look, mean_log, translation, vocabulary_rows
from ima.alignment.reservoir import Reservoir, Tokens
from ima.alignment.tap import Tap
from ima.core.types import Role
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.tiny import FAMILY_NAMES, tiny_model, tiny_tokenizer

FAMILIES = [name for name in FAMILY_NAMES if name != "opt_350m"]  # has no pre-norm sites


def measured(llm, num=5, percepts=3):
    """A reservoir of random perceptual tokens before token ids, and the ids."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 259, (num, 6), generator=generator)
    p = torch.randn(num, percepts, llm.width, generator=generator)
    x = torch.cat([p, llm.embed(ids).float()], 1)
    roles = torch.tensor([[Role.PERCEPT] * percepts + [Role.PROMPT] * 2 + [Role.ANSWER] * 4] * num)
    roles[0, :percepts] = Role.SPECIAL  # one example without perceptual tokens
    reservoir = Reservoir(num, range(llm.num_blocks + 1))
    names = [f"s{index}" for index in range(num)]
    with torch.no_grad(), Tap(llm, [reservoir]) as tap, tap.batch(roles, names):
        h = llm(x, roles)
    return Tokens(reservoir), h, roles, names, ids


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_layer_the_lens_is_the_models_own_distribution(family):
    llm = FrozenLLM(tiny_model(family), tiny_tokenizer())
    tokens, h, roles, names, _ = measured(llm)
    found = tokens.of(llm.num_blocks, "T")[tokens.ids.index("s1")]
    expected = llm.logits(h[1][roles[1] != Role.PERCEPT]).log_softmax(-1)
    torch.testing.assert_close(Head(llm)(found), expected, atol=1e-4, rtol=1e-4)


def test_divergences_equal_sums_over_the_vocabulary_in_fp64():
    generator = torch.Generator().manual_seed(0)
    logp, logq = (torch.randn(4, 50, generator=generator).mul(8).log_softmax(-1) for _ in range(2))
    p, q = (side.double().exp().mean(0) for side in (logp, logq))
    middle = (p + q) / 2
    expected = float((p * (p / q).log()).sum())
    assert kl(mean_log(logp), mean_log(logq)) == pytest.approx(expected, abs=1e-5)
    halves = float((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
    assert js(mean_log(logp), mean_log(logq)) == pytest.approx(halves, abs=1e-6)
    certain = torch.full((2, 3), -1e4)
    certain[0, 0] = certain[1, 1] = 0.0
    assert js(certain[0], certain[1]) == pytest.approx(math.log(2))


def test_each_example_is_compared_with_itself_at_the_same_layer():
    llm = FrozenLLM(tiny_model("llama"), tiny_tokenizer())
    tokens, _, _, _, _ = measured(llm)
    lens, head = look(tokens, llm, (0, 2, 3)), Head(llm)
    for layer in (0, 2, 3):
        for index, name in enumerate(tokens.ids):
            p, t = (tokens.of(layer, role)[index] for role in ("P", "T"))
            found = float(lens.values["kl", layer, "PT"][index])
            if name == "s0":
                assert math.isnan(found)
                continue
            dp, dt = (head(x).double().exp().mean(0) for x in (p, t))
            assert found == pytest.approx(float((dp * (dp / dt).log()).sum()), abs=1e-5)
            entropy = -(head(p).double().exp() * head(p).double()).sum(-1).mean()
            assert float(lens.values["entropy", layer, "P"][index]) == pytest.approx(float(entropy), abs=1e-5)
    index = tokens.ids.index("s2")
    before, after = (head(tokens.of(layer, "T")[index]).exp() for layer in (2, 3))
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
    assert float(lens.values["vocabulary_cosine", 3, "T"][index]) == pytest.approx(float(cosine), abs=1e-5)
    rows = list(vocabulary_rows(lens, {"run": "r"}))
    pairs = {(row.layer_a, row.layer_b) for row in rows if row.score == "vocabulary_cosine"}
    assert pairs == {(0, 2), (2, 3)}
    assert next(row.n for row in rows if row.score == "kl") == 4


def test_a_text_tokens_own_embedding_is_held_out():
    llm = FrozenLLM(tiny_model("llama"), tiny_tokenizer())
    tokens, _, _, _, ids = measured(llm)
    found = translation(tokens, llm)
    words = torch.nn.functional.normalize(llm.model.get_input_embeddings().weight.double(), dim=-1)
    for index, name in enumerate(tokens.ids):
        cosine = words[ids[int(name[1:])]] @ words.T
        cosine.scatter_(1, ids[int(name[1:])][:, None], -2.0)
        assert float(found["T"][index]) == pytest.approx(float(cosine.amax(1).mean()), abs=1e-5)
        if name == "s0":
            assert math.isnan(float(found["P"][index]))
            continue
        p = torch.nn.functional.normalize(tokens.of(0, "P")[index].double(), dim=-1)
        assert float(found["P"][index]) == pytest.approx(float((p @ words.T).amax(1).mean()), abs=1e-5)


def test_in_half_precision_the_lens_still_divides_in_full():
    full = FrozenLLM(tiny_model("llama"), tiny_tokenizer())
    half = FrozenLLM(tiny_model("llama").bfloat16(), tiny_tokenizer())
    x = torch.randn(4, full.width, generator=torch.Generator().manual_seed(1))
    found = Head(half)(x)
    assert found.dtype == torch.float32
    rounded = FrozenLLM(tiny_model("llama").bfloat16().float(), tiny_tokenizer())
    torch.testing.assert_close(found, Head(rounded)(x), atol=1e-6, rtol=1e-6)
