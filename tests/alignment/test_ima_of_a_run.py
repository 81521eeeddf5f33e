"""The IMA score of a run equals its definition over stored states: every pair, a double loop, fp64."""

import itertools
import math

import pytest
import torch

from ima.alignment.rows import alignment_rows
from ima.config.settings import Alignment
from ima.core.types import Role, Sample
from ima.models.adapters.linear import PoolAdapter
from ima.models.multimodal import MultimodalModel
from ima.pipeline.evaluator import Evaluator
from ima.tasks.caption import CaptionTask


class Source:
    name, modality, splits, fingerprint = "made", "image", ("val",), "made"

    def __init__(self, num_samples=24):
        self.num_samples = num_samples

    def samples(self, split):
        nouns = ["cow", "red bus", "teapot", "violin on a chair", "star", "old dog"]
        return [
            Sample(f"made/{i}", split, "val", "image", (f"a {nouns[i % 6]}" + " again" * (i % 3),))
            for i in range(self.num_samples)
        ]


class Features:
    """Features that depend on the sample alone."""

    def __init__(self, num_tokens, dim):
        self.shape = (num_tokens, dim)

    def __call__(self, samples, epoch):
        rows = [torch.randn(self.shape, generator=torch.Generator().manual_seed(hash_of(s.id))) for s in samples]
        return {"features_BNE": torch.stack(rows)}


def hash_of(text):
    return sum(ord(letter) * 31**index for index, letter in enumerate(text)) % 2**31


def brute_force(module, evaluator, samples):
    """States of each example on its own, then IMA, its layer-0 twin, and the matched mean, by loops over pairs."""
    means = []
    for sample in samples:
        (batch,) = list(evaluator._loader([sample], collate_of(evaluator)))
        with torch.no_grad():
            x, roles, _ = module.splice(batch)
            blocks = []
            handle = module.llm.table.blocks[-1].register_forward_hook(lambda _m, _a, out, to=blocks: to.append(out))
            output = module.llm.model.base_model(
                inputs_embeds=x.to(module.llm.dtype),
                attention_mask=torch.ones_like(roles),
                position_ids=torch.arange(x.shape[1])[None],
                use_cache=False,
                output_hidden_states=True,
            )
            handle.remove()
        states = [state[0].double() for state in output.hidden_states[:-1]]
        states.append(blocks[0][0].double())  # transformers keeps the last state after the final norm
        percept = roles[0] == Role.PERCEPT
        text = (roles[0] == Role.PROMPT) | (roles[0] == Role.ANSWER)
        means.append([(state[percept].mean(0), state[text].mean(0)) for state in states])
    num_layers = len(means[0])

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    def average(layer_a, layer_b):
        pairs = itertools.product(means, means)
        return sum(cosine(a[layer_a][0], b[layer_b][1]) for a, b in pairs) / len(means) ** 2

    layers = range(1, num_layers)
    matched = sum(cosine(*example[layer]) for example in means for layer in layers) / (len(means) * len(layers))
    return {
        "ima": sum(average(layer, layer) for layer in layers) / len(layers),
        "ima_p0": sum(average(0, layer) for layer in layers) / len(layers),
        "ima_matched": matched,
    }


def collate_of(evaluator):
    from ima.data.collate import Collate

    return Collate(evaluator.task, evaluator.module.llm, evaluator.percepts)


def compare(llm, num_tokens, dim, batch_size, accelerated, num_samples=24):
    torch.manual_seed(0)
    adapter = PoolAdapter(dim, llm.width, grid=2, hidden=16)
    percepts = Features(num_tokens, dim)
    source = Source(num_samples)
    samples = source.samples("val")
    adapter.start_at_norm(percepts(samples, None)["features_BNE"], llm.embedding_norm)
    module = MultimodalModel(adapter, llm)
    evaluator = Evaluator(module, CaptionTask(), source, percepts, batch_size)
    if accelerated:
        from ima.models.llm.acceleration.blocks import accelerate

        with accelerate(llm.model):
            _, measurement = evaluator.teacher_forced(samples, Alignment())
    else:
        _, measurement = evaluator.teacher_forced(samples, Alignment())
    pooled = {
        row.score: row
        for row in alignment_rows(measurement.stats, {"run": "r"})
        if row.layer_a is None and row.variant == "raw" and row.role_b == "T"
    }
    expected = brute_force(module, evaluator, samples)
    for score, value in expected.items():
        assert pooled[score].value == pytest.approx(value, abs=1e-5), score
        assert pooled[score].n == num_samples
        assert not math.isnan(pooled[score].se)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("batch_size", [5, 24])
def test_streamed_ima_of_a_pass_equals_the_double_loop(batch_size, accelerated):
    from ima.models.llm.load import tiny

    compare(tiny(), num_tokens=9, dim=12, batch_size=batch_size, accelerated=accelerated)


@pytest.mark.real
def test_streamed_ima_of_smollm2_equals_the_double_loop():
    from ima.models.llm.load import smollm2

    compare(smollm2(dtype="float32"), num_tokens=9, dim=12, batch_size=4, accelerated=True, num_samples=10)
