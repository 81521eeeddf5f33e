"""Video and audio encoders of Hugging Face on tiny folders: shapes, own preprocessing, layers, weights, refusals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from tiny_encoders import AUDIO, MEAN, STD, VIDEO, audiomae_folder, tiny_config, tiny_folder

from ima.config.compose import CONF, compose
from ima.core.errors import UserError
from ima.core.media import Frames, Sound
from ima.models.encoders import check_features
from ima.models.encoders.base import Encoder
from ima.models.encoders.hf import read_processor
from ima.models.encoders.hf_audio import AudioMAE, AudioTransformer
from ima.models.encoders.hf_video import VideoTransformer

KINDS = (*VIDEO, *AUDIO, "audiomae")
# N, E of the output and of layer 2
SHAPES = {
    "timesformer": ((17, 16), (17, 16)),
    "videomae": ((12, 16), (12, 16)),
    "xclip": ((3, 12), (15, 16)),
    "ast": ((2 * 5 + 2, 16), (12, 16)),
    "clap": ((64, 16), None),
    "whisper": ((50, 16), (50, 16)),
    "audiomae": ((9, 16), (9, 16)),
}


def make(kind: str, folder: Path, **options: Any) -> Encoder:
    cls = AudioMAE if kind == "audiomae" else VideoTransformer if kind in VIDEO else AudioTransformer
    found: Encoder = cls(str(folder), **options)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {kind: tiny_folder(kind, root / kind, weights=True) for kind in (*VIDEO, *AUDIO)}
    return made | {"audiomae": audiomae_folder(root / "audiomae", weights=True)}


def tone(seconds: float, rate: int = 16000, hertz: float = 440) -> Sound:
    time = np.arange(round(seconds * rate)) / rate
    return Sound((0.4 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


def clip(num_frames: int = 9) -> Frames:
    rng = np.random.default_rng(0)
    return Frames(tuple(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(num_frames)))


def media(kind: str) -> list[Any]:
    return [clip(9), clip(2)] if kind in VIDEO else [tone(0.3), tone(0.8, 22050, 900)]


def features(encoder: Encoder, kind: str) -> torch.Tensor:
    found: torch.Tensor = encoder(torch.stack([encoder.preprocess(medium) for medium in media(kind)]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_the_promised_shape_and_are_the_same_again(kind: str, folders: dict[str, Path]) -> None:
    encoder = make(kind, folders[kind])
    assert (encoder.num_tokens, encoder.dim) == SHAPES[kind][0]
    assert encoder.modality == ("video" if kind in VIDEO else "audio")
    f_BNE = check_features(encoder, features(encoder, kind), 2)
    assert torch.equal(f_BNE, features(make(kind, folders[kind]), kind))
    assert not torch.allclose(f_BNE[0], f_BNE[1], atol=1e-4), "two media, one feature"


@pytest.mark.parametrize("kind", KINDS)
def test_its_config_composes_and_gives_the_class_from_a_local_folder(kind: str, folders: dict[str, Path]) -> None:
    config = compose([f"encoder={kind}", f"encoder.path={folders[kind]}", "encoder.pretrained=false"])
    encoder = instantiate(config.encoder)
    assert encoder.fingerprint == make(kind, folders[kind], pretrained=False).fingerprint


def test_every_encoder_of_conf_that_the_hub_holds_is_tried_here() -> None:
    texts = {path.stem: path.read_text() for path in CONF.glob("encoder/*.yaml")}
    assert {name for name, text in texts.items() if "ima.models.encoders.hf_" in text} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_features_do_not_depend_on_the_batch(kind: str, folders: dict[str, Path]) -> None:
    encoder = make(kind, folders[kind])
    alone = torch.cat([encoder(encoder.preprocess(medium)[None]) for medium in media(kind)])
    torch.testing.assert_close(alone, features(encoder, kind), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", VIDEO + AUDIO)
def test_the_output_is_that_of_the_published_class_with_all_its_weights(kind: str, folders: dict[str, Path]) -> None:
    import transformers

    name = tiny_config(kind)[0]
    whole = getattr(transformers, name).from_pretrained(folders[kind]).eval()
    encoder = make(kind, folders[kind])
    x_B = torch.stack([encoder.preprocess(medium) for medium in media(kind)])
    with torch.no_grad():
        match kind:
            case "timesformer" | "videomae":
                expected = getattr(whole, kind)(pixel_values=x_B).last_hidden_state
            case "xclip":
                expected = None  # its MIT tokens are not an output; their mean is
                mean = whole.get_video_features(pixel_values=x_B).pooler_output
                torch.testing.assert_close(encoder(x_B).mean(1), mean, rtol=1e-4, atol=1e-5)
            case "ast":
                expected = whole.audio_spectrogram_transformer(input_values=x_B).last_hidden_state
            case "clap":
                pooled = whole.audio_model(input_features=x_B).pooler_output
                torch.testing.assert_close(encoder(x_B).mean(1), pooled, rtol=1e-4, atol=1e-5)
                expected = None
            case "whisper":
                expected = whole.model.encoder(x_B).last_hidden_state
    if expected is not None:
        torch.testing.assert_close(encoder(x_B), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clap"])
def test_a_layer_is_what_leaves_that_block_and_has_a_fingerprint_of_its_own(
    kind: str, folders: dict[str, Path]
) -> None:
    whole = make(kind, folders[kind])
    seen: list[torch.Tensor] = []
    blocks = whole.blocks  # type: ignore[attr-defined]
    handles = [block.register_forward_hook(lambda _m, _a, output: seen.append(output)) for block in blocks]
    features(whole, kind)
    for handle in handles:
        handle.remove()
    second = seen[1][0] if isinstance(seen[1], tuple) else seen[1]
    encoder = make(kind, folders[kind], layer=2)
    assert (encoder.num_tokens, encoder.dim) == SHAPES[kind][1]
    f_BNE = check_features(encoder, features(encoder, kind), 2)
    torch.testing.assert_close(f_BNE, second.reshape(f_BNE.shape), rtol=1e-5, atol=1e-5)
    prints = {make(kind, folders[kind], layer=layer).fingerprint for layer in (-1, 0, 1, 2, 3)}
    assert len(prints) == 5
    assert not torch.allclose(features(make(kind, folders[kind], layer=0), kind), f_BNE)
    with pytest.raises(UserError, match="0 to 3"):
        make(kind, folders[kind], layer=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_twin_has_the_shape_a_seed_and_another_fingerprint(kind: str, folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    twin = make(kind, folders[kind], pretrained=False, seed=5)
    assert torch.equal(torch.rand(1), expected), "the global stream was touched"
    assert make(kind, folders[kind], pretrained=False, seed=5).fingerprint == twin.fingerprint
    others = {make(kind, folders[kind]).fingerprint, make(kind, folders[kind], pretrained=False, seed=6).fingerprint}
    assert twin.fingerprint not in others and len(others) == 2
    check_features(twin, features(twin, kind), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_preprocessing_travels_without_the_weights(kind: str, folders: dict[str, Path]) -> None:
    encoder = make(kind, folders[kind])
    packed = pickle.dumps(encoder.preprocess)
    assert len(packed) < 200_000
    medium = media(kind)[0]
    assert torch.equal(pickle.loads(packed)(medium), encoder.preprocess(medium))


@pytest.mark.parametrize("kind", KINDS)
def test_another_modality_or_an_empty_medium_is_refused_in_a_line(kind: str, folders: dict[str, Path]) -> None:
    encoder = make(kind, folders[kind])
    picture = Image.new("RGB", (8, 8))
    empty = Frames(()) if kind in VIDEO else Sound(np.zeros(0, dtype=np.float32), 16000)
    wrong = tone(0.2) if kind in VIDEO else clip()
    for medium, words in ((picture, "Image"), (wrong, type(wrong).__name__), (empty, "of 0")):
        with pytest.raises(UserError, match=words) as caught:
            encoder.preprocess(medium)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, num_frames", [("timesformer", 4), ("videomae", 6), ("xclip", 3)])
def test_clips_are_seen_with_the_models_own_frames_size_and_normalisation(
    kind: str, num_frames: int, folders: dict[str, Path]
) -> None:
    encoder = make(kind, folders[kind])
    greys = Frames(tuple(Image.new("RGB", (30, 20), (10 * i, 10 * i, 10 * i)) for i in range(12)))
    x_TCHW = encoder.preprocess(greys)
    assert x_TCHW.shape == (num_frames, 3, 16, 16)
    middles = [int((i + 0.5) * 12 / num_frames) for i in range(num_frames)]
    for x_CHW, index in zip(x_TCHW, middles, strict=True):
        expected = (torch.full((3,), 10 * index / 255) - torch.tensor(MEAN)) / torch.tensor(STD)
        torch.testing.assert_close(x_CHW, expected[:, None, None].expand(3, 16, 16))


def test_the_mean_and_deviation_of_ast_are_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_folder("ast", tmp_path / "ast", weights=True)
    facts = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(facts | {"mean": -1.0, "std": 4.0}))
    one, two = make("ast", folders["ast"]), make("ast", other)
    x, y = one.preprocess(tone(0.3)), two.preprocess(tone(0.3))
    torch.testing.assert_close(x * 2 * 2.0 - 3.0, y * 2 * 4.0 - 1.0, rtol=1e-4, atol=1e-4)
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize("kind", [*AUDIO, "audiomae"])
def test_sounds_are_heard_at_the_models_own_rate(kind: str, folders: dict[str, Path]) -> None:
    encoder = make(kind, folders[kind])
    own, other = encoder.preprocess(tone(0.6, 16000)), encoder.preprocess(tone(0.6, 44100))
    unlike = encoder.preprocess(Sound(tone(0.6, 44100).wave, 16000))  # the same numbers called another rate
    assert (own - other).abs().mean() < 0.3 * (own - unlike).abs().mean()


@pytest.mark.parametrize("kind", [*AUDIO, "audiomae"])
@pytest.mark.parametrize("seconds", [0.001, 5.0])
def test_very_short_and_long_sounds_are_heard_always_in_the_same_way(
    kind: str, seconds: float, folders: dict[str, Path]
) -> None:
    encoder = make(kind, folders[kind])
    x = encoder.preprocess(tone(seconds))
    np.random.seed(7)
    assert torch.equal(encoder.preprocess(tone(seconds)), x) and bool(torch.isfinite(x).all())
    if seconds > 1:  # the start is heard: what comes after the window does not matter
        late = tone(seconds)
        late.wave[round(2.0 * late.rate) :] = 0
        assert torch.equal(encoder.preprocess(late), x)


def test_audiomae_sees_the_published_front_end(folders: dict[str, Path]) -> None:
    from torchaudio.compliance import kaldi

    encoder = make("audiomae", folders["audiomae"])
    sound = tone(0.3)
    wave = torch.from_numpy(sound.wave)[None]
    energies = kaldi.fbank(
        wave - wave.mean(), htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
        num_mel_bins=32, dither=0.0, frame_shift=10,
    )  # fmt: skip
    expected = torch.zeros(64, 32)
    expected[: len(energies)] = energies
    torch.testing.assert_close(encoder.preprocess(sound), ((expected + 4.2677393) / (4.5689974 * 2))[None])


def test_a_checkpoint_that_lacks_part_of_the_encoder_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for kind, part in (
        ("timesformer", "encoder.layer.1."),
        ("clap", "audio_encoder.norm"),
        ("whisper", "encoder.conv1"),
    ):
        folder = tiny_folder(kind, tmp_path / kind, weights=True)
        kept = {key: value for key, value in load_file(folder / "model.safetensors").items() if part not in key}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="weights lack") as caught:
            make(kind, folder)
        assert "\n" not in str(caught.value)


def test_videomae_keeps_its_biases_under_the_names_that_checkpoints_are_published_with(tmp_path: Path) -> None:
    """Versions of transformers without that renaming left them at zero with a warning only."""
    from safetensors.torch import load_file, save_file

    folder = tiny_folder("videomae", tmp_path / "videomae", weights=True)
    weights = load_file(folder / "model.safetensors")
    published = {
        key.replace(".query.bias", ".q_bias").replace(".value.bias", ".v_bias"): value for key, value in weights.items()
    }
    for key, value in published.items():
        if key.endswith(("q_bias", "v_bias")):
            value.fill_(0.25)
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = make("videomae", folder)
    biases = [value for name, value in encoder.named_parameters() if name.endswith(("query.bias", "value.bias"))]
    assert len(biases) == 6 and all(bool((bias == 0.25).all()) for bias in biases)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_here_are_one_line_with_the_way_out(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf download someone/nothing") as caught:
        make(kind, Path("someone/nothing"))
    assert "\n" not in str(caught.value) and "encoder.path=someone/nothing" in str(caught.value)
    folder = audiomae_folder(tmp_path / kind) if kind == "audiomae" else tiny_folder(kind, tmp_path / kind)
    with pytest.raises(UserError, match="that folder") as caught:
        make(kind, folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_foreign_configs_are_refused_by_what_they_are(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="whisper model.*timesformer"):
        VideoTransformer(str(folders["whisper"]))
    with pytest.raises(UserError, match="timesformer model.*whisper"):
        AudioTransformer(str(folders["timesformer"]))
    with pytest.raises(UserError, match="layer -1"):
        AudioTransformer(str(folders["clap"]), layer=1)
    with pytest.raises(UserError, match="3 channels"):
        AudioMAE(str(audiomae_folder(tmp_path / "rgb", channels=3)), pretrained=False)
    folder = tiny_folder("timesformer", tmp_path / "bare")
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="image_mean"):
        VideoTransformer(str(folder), pretrained=False)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config.json"):
        VideoTransformer(str(folder), pretrained=False)


def test_what_processors_say_is_found_in_one_file_of_each_or_one_of_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="preprocessor_config.json cannot be loaded"):
        read_processor(str(tmp_path), None, "video_processor")
    whole = {"video_processor": {"image_mean": [1]}, "image_processor": {"image_mean": [2]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    assert read_processor(str(tmp_path), None, "video_processor") == {"image_mean": [1]}
    assert read_processor(str(tmp_path), None, "image_processor") == {"image_mean": [2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [3]}))
    assert read_processor(str(tmp_path), None, "video_processor") == {"image_mean": [3]}
    (tmp_path / "preprocessor_config.json").write_text("[]")
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(UserError, match="has no video_processor"):
        read_processor(str(tmp_path), None, "video_processor")
