"""Encoders: the contract, the controls, weights under other names; the embedded ones against their sources."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ima.config.compose import CONF, compose
from ima.core.errors import UserError
from ima.models.encoders import (
    EfficientNetLite,
    Encoder,
    FocusViT,
    ImagePreprocess,
    NoiseEncoder,
    TimmImage,
    check_features,
)
from ima.models.encoders.base import fingerprint_of, seeded
from ima.models.encoders.weights import lite_key


class Toy(Encoder):
    modality, dim, num_tokens, fingerprint = "image", 3, 2, "toy"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.preprocess = torch.as_tensor
        self.freeze()

    def encode(self, x_B: Tensor) -> Tensor:
        return self.layers(x_B).reshape(-1, 2, 3)


def test_an_encoder_stays_frozen_and_in_eval_mode_inside_a_module_that_trains() -> None:
    encoder = Toy()
    nn.Sequential(encoder).train()
    before = fingerprint_of(encoder)
    x_B = torch.randn(5, 4)
    first, second = encoder(x_B), encoder(x_B)
    assert torch.equal(first, second) and not first.requires_grad
    assert fingerprint_of(encoder) == before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_autocast_does_not_change_features() -> None:
    encoder, x_B = Toy(), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder(x_B)
    assert inside.dtype == torch.float32 and torch.equal(inside, encoder(x_B))


@pytest.mark.parametrize(
    "features, words",
    [
        (torch.zeros(5, 2, 4), "shape"),
        (torch.zeros(5, 6), "shape"),
        (torch.zeros(4, 2, 3), "shape"),
        (torch.zeros(5, 2, 3, dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros(5, 2, 3, requires_grad=True), "gradient"),
        (torch.tensor([0.0] * 29 + [float("nan")]).reshape(5, 2, 3), "1 of 5 media"),
    ],
)
def test_features_that_break_the_promise_are_refused(features: Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_features(Toy(), features, num_media=5)
    good = torch.zeros(5, 2, 3)
    assert check_features(Toy(), good, num_media=5) is good


def test_a_fingerprint_sees_weights_names_and_facts() -> None:
    with seeded(0):
        model = nn.Linear(2, 2)
    base = fingerprint_of(model, layer=1)
    assert base == fingerprint_of(model, layer=1)
    assert base != fingerprint_of(model, layer=2)
    with torch.no_grad():
        model.weight[1, 1] += 1e-6
    assert base != fingerprint_of(model, layer=1)


def test_noise_does_not_depend_on_the_batch() -> None:
    noise = NoiseEncoder(dim=5, num_tokens=3, seed=1)
    together = noise.features(["a", "b", "c"], epoch=2)
    alone = torch.cat([noise.features([name], epoch=2) for name in "abc"])
    assert torch.equal(together, alone)
    assert torch.equal(noise.features(["c", "a"], epoch=2), together[[2, 0]])


def test_noise_is_fresh_per_epoch_and_sample_and_seed_and_fixed_in_evaluation() -> None:
    noise = NoiseEncoder(dim=5, num_tokens=3, seed=1)
    draws = [noise.features([name], epoch) for name in ("a", "b") for epoch in (None, 0, 1)]
    draws.append(NoiseEncoder(dim=5, num_tokens=3, seed=2).features(["a"]))
    for i, one in enumerate(draws):
        assert not any(torch.equal(one, other) for other in draws[:i])
    torch.manual_seed(0)
    first = noise.features(["a"])
    torch.manual_seed(1)
    assert torch.equal(noise.features(["a"]), first)


def test_noise_is_standard_normal_and_leaves_the_global_stream_alone() -> None:
    noise = NoiseEncoder(dim=64, num_tokens=16)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    features = check_features(noise, noise.features([str(i) for i in range(40)], epoch=0), 40)
    assert torch.equal(torch.rand(1), expected)
    assert abs(features.mean()) < 0.02 and abs(features.std() - 1) < 0.02  # 41k draws: 4 standard errors


def test_noise_reads_no_medium() -> None:
    noise = NoiseEncoder()
    assert not noise.reads_medium and not noise.deterministic
    with pytest.raises(TypeError, match="features"):
        noise.preprocess(Image.new("RGB", (4, 4)))
    with pytest.raises(TypeError, match="features"):
        noise(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match="num_tokens=0"):
        NoiseEncoder(num_tokens=0)


PREPROCESS = ImagePreprocess(8, 6, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))


def test_preprocessing_resizes_the_whole_picture_and_normalises() -> None:
    picture = np.zeros((40, 30, 3), dtype=np.uint8)
    picture[:, :5, 0] = 255  # red at the left edge, which a crop would lose
    x_CHW = PREPROCESS(Image.fromarray(picture))
    assert x_CHW.shape == (3, 8, 6) and x_CHW.dtype == torch.float32
    assert x_CHW[0, :, 0].min() > 0.7 and x_CHW[0, :, 2:].max() < -0.7
    assert torch.allclose(x_CHW[1], torch.tensor(-2.0))


def test_preprocessing_takes_arrays_grey_and_transparent_pictures() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert torch.equal(PREPROCESS(colour), PREPROCESS(Image.fromarray(colour)))
    grey = PREPROCESS(Image.new("L", (5, 5), 255))
    assert torch.allclose(grey, torch.tensor([1.0, 2.0, 1.0])[:, None, None].expand(3, 8, 6))
    clear = PREPROCESS(Image.new("RGBA", (5, 5), (255, 0, 0, 0)))
    assert torch.equal(clear, grey)  # white


@pytest.fixture(scope="module")
def random_lite() -> EfficientNetLite:
    return EfficientNetLite(pretrained=False, seed=5)


def test_preprocessing_travels_without_the_weights(random_lite: EfficientNetLite) -> None:
    assert len(pickle.dumps(random_lite.preprocess)) < 1000


def test_a_random_twin_is_reproducible_and_leaves_the_global_stream_alone(random_lite: EfficientNetLite) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    again = EfficientNetLite(pretrained=False, seed=5)
    assert torch.equal(torch.rand(1), expected)
    assert again.fingerprint == random_lite.fingerprint
    assert EfficientNetLite(pretrained=False, seed=6).fingerprint != random_lite.fingerprint


def test_random_lite_gives_49_finite_tokens_row_by_row(random_lite: EfficientNetLite) -> None:
    x_B = torch.randn(2, 3, 224, 224)
    f_BNE = check_features(random_lite, random_lite(x_B), 2)
    assert f_BNE.shape == (2, 49, 1280)
    with torch.no_grad():
        map_BEHW = random_lite.model.forward_features(x_B)
    assert torch.equal(f_BNE[1, 7 * 2 + 3], map_BEHW[1, :, 2, 3])


@pytest.mark.parametrize("name, layer, shape", [("resnet10t", -1, (36, 512)), ("vit_tiny_patch16_224", 3, (196, 192))])
def test_any_timm_model_measures_its_own_shape(name: str, layer: int, shape: tuple[int, int]) -> None:
    encoder = TimmImage(name, pretrained=False, layer=layer)
    assert (encoder.num_tokens, encoder.dim) == shape
    picture = encoder.preprocess(Image.new("RGB", (50, 60), "red"))
    check_features(encoder, encoder(picture[None]), 1)


@pytest.mark.parametrize("path", sorted(CONF.glob("encoder/*.yaml")), ids=lambda path: path.stem)
def test_every_timm_encoder_of_conf_is_one_that_timm_has_weights_for(path: Path) -> None:
    import timm
    import yaml

    node = yaml.safe_load(path.read_text())
    if node.get("_target_") == "ima.models.encoders.image.TimmImage" and node["name"] != "???":
        assert node["name"] in timm.list_pretrained(), node["name"]


@pytest.mark.parametrize(
    "name, small, shape",
    [
        ("vit_large", "vit_tiny_patch16_224.augreg_in21k", (197, 192)),
        ("mae_vit_large", "vit_base_patch16_224.mae", (197, 768)),
        ("clip_large", "vit_base_patch32_clip_224.openai", (50, 768)),
        ("siglip2", "vit_base_patch32_siglip_256.v2_webli", (64, 768)),
        ("dinov2", "vit_small_patch14_dinov2.lvd142m", (1370, 384)),
        ("dinov3", "vit_small_patch16_dinov3.lvd1689m", (261, 384)),
    ],
)
def test_the_small_sister_of_each_large_encoder_reads_its_own_normalisation(
    name: str, small: str, shape: tuple[int, int]
) -> None:
    import timm
    from hydra.utils import instantiate

    large = compose([f"encoder={name}"]).encoder.name
    encoder = instantiate(compose([f"encoder={name}", f"encoder.name={small}", "encoder.pretrained=false"]).encoder)
    assert (encoder.num_tokens, encoder.dim) == shape
    for config in (timm.get_pretrained_cfg(small), timm.get_pretrained_cfg(large)):
        assert (encoder.preprocess.mean, encoder.preprocess.std) == (config.mean, config.std)
        assert (3, encoder.preprocess.height, encoder.preprocess.width) == config.input_size
    x_B = encoder.preprocess(Image.new("RGB", (50, 60), "red"))[None]
    features = encoder(x_B)
    assert torch.equal(check_features(encoder, features, 1), features)


def test_a_channels_last_map_becomes_tokens() -> None:
    encoder = TimmImage("swin_tiny_patch4_window7_224", pretrained=False)
    assert (encoder.num_tokens, encoder.dim) == (49, 768)


def test_a_local_checkpoint_is_loaded_without_its_classifier(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = TimmImage("resnet10t", pretrained=False, seed=1)
    weights = dict(source.model.state_dict())
    save_file({**weights, "fc.weight": torch.zeros(9, 512)}, tmp_path / "a.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert TimmImage("resnet10t", checkpoint=str(tmp_path / name), seed=2).fingerprint == source.fingerprint


class Trap:
    """Pickled into a checkpoint: would run code when unpickled freely."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/nonexistent/trap"),))  # type: ignore[return-value]


def test_broken_foreign_or_unfitting_checkpoints_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    torch.save({"conv": torch.zeros(2)}, tmp_path / "other.pth")
    for name, words in (("broken.safetensors", "cannot be read"), ("trap.pth", "cannot be read"), ("no.pth", "no.pth")):
        with pytest.raises(UserError, match=words) as caught:
            TimmImage("resnet10t", checkpoint=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="do not fit"):
        TimmImage("resnet10t", checkpoint=str(tmp_path / "other.pth"))


def test_wrong_names_and_layers_name_what_is_allowed() -> None:
    with pytest.raises(UserError, match="resnet10t"):
        TimmImage("resnet10s", pretrained=False)
    with pytest.raises(UserError, match="layer=77"):
        TimmImage("resnet10t", pretrained=False, layer=77)
    with pytest.raises(UserError, match="0 to 12"):
        FocusViT(layer=13, pretrained=False)
    with pytest.raises(UserError, match="variant=3"):
        EfficientNetLite(variant=3)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    with pytest.raises(UserError, match="encoder.checkpoint") as caught:
        TimmImage("resnet10t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "resnet10t.c3_in1k"])
def test_weights_in_the_hubs_cache_are_taken_without_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from safetensors.torch import save_file

    def refused(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    with seeded(3):
        source = timm.create_model(name, pretrained=False)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    own = TimmImage(name).model.state_dict()
    assert own and all(torch.equal(source.state_dict()[key], value) for key, value in own.items())


def test_random_vit_reads_the_chosen_layer() -> None:
    early, last = FocusViT(layer=1, pretrained=False, seed=3), FocusViT(layer=-1, pretrained=False, seed=3)
    x_B = torch.randn(1, 3, 224, 224)
    f_BNE = check_features(early, early(x_B), 1)
    assert f_BNE.shape == (1, 257, 384)
    with torch.no_grad():
        states = last.model(pixel_values=x_B, output_hidden_states=True).hidden_states
    torch.testing.assert_close(f_BNE, states[1])
    assert early.fingerprint != last.fingerprint


STAMPS = ("gorilla", "strawberry", "basketball")  # their file names are words of their ImageNet classes


def stamp(word: str) -> Image.Image:
    from ima.core.assets.registry import locate

    path = min(path for path in locate("stamps").rglob("*.png") if path.stem.lower() == word)
    picture = Image.open(path).convert("RGBA")
    side = round(max(picture.size) * 1.16)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite:
    return EfficientNetLite()


@pytest.mark.real
@pytest.mark.stamps
@pytest.mark.parametrize("variant, shape", [(0, (49, 1280)), (1, (64, 1280)), (2, (81, 1280))])
def test_lite_equals_timm_with_the_strictly_loaded_weights_and_knows_stamps(
    variant: int, shape: tuple[int, int]
) -> None:
    import timm

    from ima.core.assets.registry import locate

    lite = EfficientNetLite(variant)
    assert (lite.num_tokens, lite.dim) == shape
    full = timm.create_model(f"tf_efficientnet_lite{variant}", pretrained=False).eval()
    places = [f"{s}.{i}" for s, stage in enumerate(full.blocks) for i in range(len(stage))]
    weights = torch.load(locate(f"lite{variant}"), weights_only=True)
    full.load_state_dict({lite_key(key, places): value for key, value in weights.items()}, strict=True)
    x_BCHW = torch.stack([lite.preprocess(stamp(word)) for word in STAMPS])
    with torch.no_grad():
        map_BEHW = full.forward_features(x_BCHW)
        classes = full.forward_head(map_BEHW).argmax(1).tolist()
    assert torch.equal(lite(x_BCHW), map_BEHW.flatten(2).transpose(1, 2))
    names = timm.data.ImageNetInfo()
    for word, index in zip(STAMPS, classes, strict=True):
        assert word in names.index_to_description(index).lower()


@pytest.mark.real
@pytest.mark.stamps
@pytest.mark.parametrize("make", [EfficientNetLite, FocusViT])
def test_real_features_do_not_depend_on_the_batch(make: type[Encoder]) -> None:
    encoder = make()
    x_BCHW = torch.stack([encoder.preprocess(stamp(word)) for word in STAMPS])
    together = check_features(encoder, encoder(x_BCHW), 3)
    assert torch.equal(together, encoder(x_BCHW))
    apart = torch.cat([encoder(x_BCHW[:1]), encoder(x_BCHW[1:])])
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)


@pytest.mark.real
def test_real_weights_and_their_random_twin_have_other_fingerprints(
    lite: EfficientNetLite, random_lite: EfficientNetLite
) -> None:
    assert lite.fingerprint == EfficientNetLite().fingerprint != random_lite.fingerprint
    assert FocusViT().fingerprint == FocusViT().fingerprint != FocusViT(pretrained=False).fingerprint


@pytest.mark.real
def test_all_dinov2_weights_are_found_in_the_onnx_file() -> None:
    from ima.core.assets.registry import locate
    from ima.models.encoders.weights import dinov2_weights
    from ima.models.formats.onnx import read_onnx

    weights = dinov2_weights(read_onnx(locate("focus_vit")))
    assert sum(tensor.numel() for tensor in weights.values()) == 22_056_192
    position, cls = weights["embeddings.position_embeddings"], weights["embeddings.cls_token"]
    assert position.shape == (1, 1370, 384)
    # In DINOv2 the class token came to equal its own position: a wrong matching of the two would show here.
    torch.testing.assert_close(position[0, 0], cls[0, 0], rtol=0, atol=1e-6)
