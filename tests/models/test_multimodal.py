"""The network as a plain torch module: loss, gradient and text of one sample, without a trainer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from ima.core.errors import UserError
from ima.core.types import Batch, Role, Sample
from ima.data.collate import Collate, NoMediaInputs
from ima.models.adapters.base import AdapterSet
from ima.models.adapters.linear import LinearAdapter
from ima.models.llm.load import tiny
from ima.models.llm.pass_context import Generation
from ima.models.multimodal import MultimodalModel
from ima.pipeline.lightning_module import MappingModule
from ima.tasks.caption import CaptionTask

NUM_TOKENS, DIM = 3, 4


class Given:
    """Features from a seed, in the place of an encoder's."""

    def __call__(self, samples: Any, epoch: int | None) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"features_BNE": torch.randn(len(samples), NUM_TOKENS, DIM, generator=generator)}


def made(train: str = "none") -> MultimodalModel:
    llm = tiny(train=train)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultimodalModel(LinearAdapter(DIM, llm.width), llm)


def batch_of(model: MultimodalModel, answers: bool = True, percepts: Any = None, num: int = 1) -> Batch:
    samples = [Sample(f"made/{i}", "test", "test", "image", ("a red cat",), "") for i in range(num)]
    collate = Collate(CaptionTask(), model.llm, percepts or Given(), answers)
    return collate([(sample, 0) for sample in samples])


def test_the_loss_of_one_sample_is_the_mean_over_its_labels_of_the_stock_model() -> None:
    model = made()
    batch = batch_of(model)
    x_BSD, roles_BS, labels_BS = model.splice(batch)
    assert x_BSD.shape == (1, NUM_TOKENS + batch.ids_BT.shape[1], model.llm.width)
    assert (roles_BS == Role.PERCEPT).sum() == NUM_TOKENS
    expected = model.llm.model(inputs_embeds=x_BSD, labels=labels_BS).loss
    torch.testing.assert_close(model.loss(batch), expected, rtol=1e-5, atol=1e-5)
    num_labels = int((labels_BS != -100).sum())
    torch.testing.assert_close(model.loss_sum(batch), expected * num_labels, rtol=1e-5, atol=1e-5)
    hidden = model(batch)
    assert hidden.shape == x_BSD.shape
    torch.testing.assert_close(model.llm.loss_sum(hidden, labels_BS), model.loss_sum(batch))


def test_the_gradient_of_the_loss_reaches_what_is_trained_and_nothing_else() -> None:
    for train in ("none", "lora"):
        model = made(train)
        model.loss(batch_of(model)).backward()
        trained = set(map(id, model.trained_parameters()))
        assert {id(p) for p in model.parameters() if p.grad is not None} == trained
        assert (len(trained) > 2) == (train == "lora")


def test_one_sample_is_answered_without_a_trainer_and_the_media_decide() -> None:
    model, settings = made(), Generation(5)
    answers = [model.generate(batch_of(model, False, percepts), settings) for percepts in (Given(), NoMediaInputs())]
    assert all(len(texts) == 1 and isinstance(texts[0], str) for texts in answers)
    assert answers[0] != answers[1] and answers[0] == model.generate(batch_of(model, False), settings)


def test_a_batch_without_labels_has_no_mean_loss() -> None:
    model = made()
    with pytest.raises(UserError, match="no token of the batch is labelled"):
        model.loss(batch_of(model, answers=False))


@pytest.mark.parametrize("train", ["none", "lora"])
def test_checkpoints_hold_what_is_trained_under_the_names_of_the_network(train: str) -> None:
    model = made(train)
    module, checkpoint = MappingModule(model), dict[str, Any]()
    module.on_save_checkpoint(checkpoint)
    saved = {key: value.clone() for key, value in checkpoint["state_dict"].items()}
    assert saved.keys() <= model.state_dict().keys() and {"adapter.proj.weight", "adapter.proj.bias"} <= saved.keys()
    assert all(key.startswith("adapter.") or "lora_" in key for key in saved)
    other = MappingModule(made(train))
    with torch.no_grad():
        for parameter in other.model.trained_parameters():
            parameter.add_(1)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])  # strict, as Lightning does
    assert all(torch.equal(other.model.state_dict()[key], value) for key, value in saved.items())


def test_a_network_of_several_channels_takes_the_adapter_of_each() -> None:
    llm = tiny()
    adapters = {"image": LinearAdapter(4, llm.width), "audio": LinearAdapter(5, llm.width)}
    model = MultimodalModel(AdapterSet(adapters), llm)
    assert model.adapters == adapters and made().adapters.keys() == {""}
    assert {key.split(".")[1] for key in model.trained_state()} == {"image", "audio"}


def test_the_network_is_imported_without_lightning() -> None:
    code = "import sys, ima.models.multimodal; sys.exit(any(name.startswith('lightning') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
