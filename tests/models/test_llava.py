"""LLaVA's files: what goes out gives the same logits in plain transformers, what comes in gives theirs here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Launcher
from test_mixture import TINY

from ima.cli.export_llava import model_card
from ima.core.errors import UserError
from ima.core.types import Batch, MediaGroup, Role, Sample
from ima.models.adapters.linear import LinearAdapter, MlpAdapter
from ima.models.adapters.query import QueryAdapter
from ima.models.encoders.controls import NoiseEncoder
from ima.models.encoders.image import FocusViT
from ima.models.encoders.llava import LlavaTower, side_of
from ima.models.llava import foreign_adapter, llava_of, processor_of
from ima.models.llm.load import hf, tiny
from ima.models.llm.tiny import tiny_tokenizer
from ima.models.multimodal import MultimodalModel
from ima.pipeline.checkpoint import load_adapter
from ima.runs.record import RunRecord


def batch_of(ids: torch.Tensor, pixels: torch.Tensor, place: int) -> Batch:
    samples = [Sample(f"s{row}", "t", "t", "image", ("x",)) for row in range(len(ids))]
    roles = torch.full_like(ids, int(Role.PROMPT))
    rows = list(range(len(ids)))
    group = MediaGroup("", rows, [place] * len(rows), media=pixels)
    return Batch(samples, ids, roles, torch.full_like(ids, -100), groups=[group])


def ours(module: MultimodalModel, batch: Batch) -> torch.Tensor:
    x_BSD, roles_BS, _ = module.splice(batch)
    h_BSD = module.llm(x_BSD, roles_BS)
    return torch.stack([module.llm.logits(row) for row in h_BSD])


def theirs(model: Any, ids: torch.Tensor, pixels: torch.Tensor, place: int, num_tokens: int) -> torch.Tensor:
    images = torch.full((len(ids), num_tokens), model.config.image_token_id)
    whole = torch.cat([ids[:, :place], images, ids[:, place:]], 1)
    logits: torch.Tensor = model(input_ids=whole, pixel_values=pixels, attention_mask=torch.ones_like(whole)).logits
    return logits


@pytest.mark.parametrize("train", ["none", "lora"])
@torch.no_grad()
def test_what_goes_out_gives_the_same_logits_in_plain_transformers(tmp_path: Path, train: Any) -> None:
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    encoder = FocusViT(layer=2, pretrained=False)
    llm = tiny(train=train)
    for name, value in llm.named_parameters():
        if "lora_" in name:
            value.normal_(0, 0.1)
    adapter = MlpAdapter(encoder.dim, llm.width)
    module = MultimodalModel(adapter, llm, encoder)
    ids, pixels = torch.randint(3, 259, (2, 6)), torch.randn(2, 3, 224, 224)
    expected = ours(module, batch_of(ids, pixels, 2))
    model, tokenizer = llava_of(encoder, adapter, llm)
    model.save_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    found = theirs(loaded, ids, pixels, 2, encoder.num_tokens)[..., :259]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA of stock parts, with a CLIP tower whose last layer but one is read without CLS."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(1)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                              image_size=28, patch_size=7)  # fmt: skip
    text = LlamaConfig(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=259, vision_feature_layer=-2)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(folder)
    tiny_tokenizer(["<image>"]).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


@torch.no_grad()
def test_what_comes_in_gives_their_logits_here(checkpoint: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    encoder, llm = LlavaTower(str(checkpoint)), hf(str(checkpoint), dtype="float32")
    assert (encoder.num_tokens, encoder.dim) == (16, 16)
    adapter = MlpAdapter(encoder.dim, llm.width)
    load_adapter(checkpoint, adapter)
    ids, pixels = torch.randint(3, 259, (2, 5)), torch.randn(2, 3, 28, 28)
    found = ours(MultimodalModel(adapter, llm, encoder), batch_of(ids, pixels, 1))
    torch.testing.assert_close(found, theirs(model, ids, pixels, 1, 16), rtol=1e-4, atol=1e-4)
    out, _ = llava_of(encoder, adapter, llm)  # and out again
    torch.testing.assert_close(theirs(out, ids, pixels, 1, 16), found, rtol=1e-4, atol=1e-4)


def test_a_projector_file_of_llava_and_a_published_connector_are_read(tmp_path: Path) -> None:
    mlp, query = MlpAdapter(8, 32), QueryAdapter(8, 32, num_tokens=3, hidden=16, num_blocks=1, num_heads=2, inner=8)
    names = {"up": "model.mm_projector.0", "proj": "model.mm_projector.2"}
    theirs = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in mlp.state_dict().items()}
    torch.save(theirs, tmp_path / "mm_projector.bin")
    torch.save(
        {"model": {f"connector.0.{key}": value for key, value in query.state_dict().items()}}, tmp_path / "c.pth"
    )
    fresh, other = MlpAdapter(8, 32), QueryAdapter(8, 32, num_tokens=3, hidden=16, num_blocks=1, num_heads=2, inner=8)
    load_adapter(tmp_path / "mm_projector.bin", fresh)
    load_adapter(tmp_path / "c.pth", other)
    x = torch.randn(2, 4, 8)
    assert torch.equal(fresh(x), mlp(x)) and torch.equal(other(x), query(x))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.bin")
    with pytest.raises(UserError, match="holds no mm_projector"):
        foreign_adapter(tmp_path / "other.bin")
    for content in (b"no weights", b""):
        (tmp_path / "bad.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"bad.bin: cannot be read as weights \(\w+"):
            foreign_adapter(tmp_path / "bad.bin")


@pytest.mark.parametrize("further", ["mm_projector.4.weight", "connector.1.proj.weight"])
def test_a_projector_of_more_layers_is_refused_instead_of_cut(tmp_path: Path, further: str) -> None:
    stem = further.split(".")[0]
    names = ["mm_projector.0", "mm_projector.2"] if stem == "mm_projector" else ["connector.0.proj"]
    torch.save({f"{name}.weight": torch.zeros(2, 2) for name in names} | {further: torch.zeros(2)}, tmp_path / "p.bin")
    with pytest.raises(UserError, match=f"{further} has no place in an adapter"):
        foreign_adapter(tmp_path / "p.bin")


@torch.no_grad()
def test_what_went_out_comes_back_in_as_encoder_llm_and_init(tmp_path: Path) -> None:
    encoder, llm = FocusViT(layer=2, pretrained=False), tiny()
    adapter = MlpAdapter(encoder.dim, llm.width)
    ids, pixels = torch.randint(3, 259, (2, 6)), torch.randn(2, 3, 224, 224)
    expected = ours(MultimodalModel(adapter, llm, encoder), batch_of(ids, pixels, 2))
    model, tokenizer = llava_of(encoder, adapter, llm)
    model.save_pretrained(tmp_path)
    processor_of(encoder, model.config, tokenizer).save_pretrained(tmp_path)
    tower, again, fresh = LlavaTower(str(tmp_path)), hf(str(tmp_path), dtype="float32"), MlpAdapter(384, 32)
    load_adapter(tmp_path, fresh)
    assert tower.preprocess == encoder.preprocess and tower.num_tokens == encoder.num_tokens
    found = ours(MultimodalModel(fresh, again, tower), batch_of(ids, pixels, 2))[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [224, {"height": 224, "width": 224}, {"shortest_edge": 224}, None])
@pytest.mark.parametrize("crop", [224, {"height": 224, "width": 224}])
def test_the_side_of_pictures_is_read_from_old_and_new_processors(size: Any, crop: Any) -> None:
    assert side_of({"size": size, "crop_size": crop}) == 224
    assert side_of({}) is None


def test_what_llava_cannot_hold_is_refused_by_name() -> None:
    llm = tiny()
    with pytest.raises(UserError, match="LLaVA cannot hold a LinearAdapter"):
        llava_of(NoiseEncoder(), LinearAdapter(8, 32), llm)
    with pytest.raises(UserError, match="LLaVA cannot hold NoiseEncoder"):
        llava_of(NoiseEncoder(), MlpAdapter(8, 32), llm)
    with pytest.raises(UserError, match="FocusViT at layer -1"):
        llava_of(FocusViT(layer=-1, pretrained=False), MlpAdapter(384, 32), llm)


def test_training_starts_from_a_projector_and_says_so(launcher: Launcher, tmp_path: Path) -> None:
    mlp = MlpAdapter(8, 32)
    names = {"up": "mm_projector.0", "proj": "mm_projector.2"}
    theirs = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in mlp.state_dict().items()}
    torch.save(theirs, tmp_path / "p.bin")
    base = [text for text in TINY if not text.startswith("adapter")]
    argv = [
        *base,
        "adapter=mlp",
        f"init={tmp_path / 'p.bin'}",
        "trainer.max_epochs=1",
        f"output_dir={tmp_path}",
        "name=r",
    ]
    done = launcher.run("train", argv)
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "r" / "result.json").read_text())["facts"]["init"].endswith("p.bin")
    refused = launcher.run("train", [*base, "adapter=linear", *argv[len(base) + 1 :], "overwrite=true"])
    assert refused.code == 2 and "p.bin: has an unexpected key 'up." in refused.stderr


def test_a_model_card_tells_what_the_run_was() -> None:
    card = model_card("run", RunRecord(facts={"llm": "smollm2", "encoder": "FocusViT"}, metrics={"T0/accuracy": 0.5}))
    assert "# run" in card and "smollm2 (frozen)" in card and "| T0/accuracy | 0.5 |" in card
