"""Sound encoders without their weights: the front-ends against plain formulas, the networks against slow twins."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ima.core.errors import UserError
from ima.core.media import Sound
from ima.models.encoders.audio import BLOCK, HOP, RATE, WINDOW, AisFx, LogMel, MelPreprocess, heard, mel_bands
from ima.models.encoders.base import check_features
from ima.models.encoders.weights import aisfx_weights
from ima.models.encoders.whisper import WhisperTiny
from ima.models.formats.ctranslate2 import read_ct2, whisper_encoder_weights


def sine(hertz: float, seconds: float = 1.0, rate: int = RATE, level: float = 0.1) -> Sound:
    time = np.arange(round(seconds * rate)) / rate
    return Sound((level * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


def noise(seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> Sound:
    return Sound(0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32), rate)


@pytest.fixture(scope="module")
def aisfx() -> AisFx:
    return AisFx(seconds=1.0, pretrained=False)


@pytest.fixture(scope="module")
def whisper() -> WhisperTiny:
    return WhisperTiny(layer=-1, seconds=30.0, pool=1, pretrained=False)


# -- what is heard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_sound_of_any_rate_and_length_is_heard_at_the_right_pitch(rate: int) -> None:
    for seconds in (0.05, 0.5, 3.0):
        wave = heard(sine(1000, seconds, rate), RATE, 1.0)
        assert wave.shape == (RATE,) and wave.dtype == torch.float32
        assert torch.isfinite(wave).all()
        assert not wave[round(min(seconds, 1.0) * RATE) + 1 :].any()
    spectrum = torch.fft.rfft(heard(sine(1000, 2.0, rate), RATE, 1.0)).abs()
    assert abs(int(spectrum.argmax()) - 1000) <= 1


def test_what_is_no_sound_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="hears sounds .* not Image"):
        heard(Image.new("RGB", (4, 4)), RATE, 1.0)


def test_a_sound_without_samples_is_silence() -> None:
    assert not heard(Sound(np.zeros(0, dtype=np.float32), 8000), RATE, 1.0).any()


# -- the front-end of aisfx and log-mel ------------------------------------------------------------------------------


def slow_mel(wave: np.ndarray) -> np.ndarray:
    """(T, 96), window by window and band by band, from the published constants."""
    padded = np.pad(wave.astype(np.float64), WINDOW // 2)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))
    mel = lambda hertz: 2595 * math.log10(1 + hertz / 700)  # noqa: E731
    edges = [mel(RATE / 2) * index / 97 for index in range(98)]
    rows = []
    for start in range(0, len(wave) + 1, HOP):
        power = np.abs(np.fft.rfft(padded[start : start + WINDOW] * hann)) ** 2
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            weights = [max(0.0, min((mel(k * RATE / WINDOW) - low) / (middle - low),
                                    (high - mel(k * RATE / WINDOW)) / (high - middle)))
                       for k in range(WINDOW // 2 + 1)]  # fmt: skip
            row.append(math.log10(1 + 1e4 * float(np.dot(weights, power)) / sum(weights)) / 9.457798957824707)
        rows.append(row)
    return np.array(rows)


def test_the_front_end_equals_the_formula() -> None:
    sound = noise(0.15)
    found = MelPreprocess(0.15)(sound)
    np.testing.assert_allclose(found, slow_mel(sound.wave), atol=2e-5)


def test_every_band_adds_up_to_one_and_peaks_where_its_tone_is() -> None:
    bands = mel_bands()
    torch.testing.assert_close(bands.sum(1), torch.ones(96))
    peaks = [int(MelPreprocess(0.5)(sine(hertz, 0.5))[5].argmax()) for hertz in (200, 800, 3200, 12800)]
    assert peaks == sorted(set(peaks))
    for hertz, peak in zip((200, 800, 3200, 12800), peaks, strict=True):
        centre = 700 * (10 ** ((peak + 1) / 97 * math.log10(1 + RATE / 2 / 700)) - 1)
        assert abs(centre - hertz) < 0.08 * hertz + 40


def test_log_mel_tokens_are_blocks_of_frames_in_order() -> None:
    encoder = LogMel(seconds=1.0)
    x_TF = encoder.preprocess(noise(1.0))
    f_BNE = check_features(encoder, encoder(x_TF[None]))
    torch.testing.assert_close(f_BNE[0, 2], x_TF[2 * BLOCK : 3 * BLOCK].flatten())


# -- the network of aisfx --------------------------------------------------------------------------------------------


def slow_net(weights: dict[str, Tensor], x_TF: Tensor) -> Tensor:
    """The published embedding (512,) of one block: batch norms by their formula, pools by hand, maximum over time."""
    out = x_TF[None, None]
    for block, pool in (("conv_block1", 2), ("conv_block2", 2), ("conv_block3", 2), ("conv_block4", 1)):
        for half in (1, 2):
            out = F.conv2d(out, weights[f"{block}.conv{half}.weight"], padding=1)
            norm = {name: weights[f"{block}.bn{half}.{name}"][None, :, None, None]
                    for name in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
            out = (out - norm["running_mean"]) / torch.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
            out = out.clamp(min=0)
        height, width = out.shape[2] // pool, out.shape[3] // pool
        out = out[:, :, : height * pool, : width * pool].unflatten(3, (width, pool)).unflatten(2, (height, pool))
        out = out.amax(5).amax(3)
    return out.mean(3).amax(2)[0]


def test_the_network_equals_a_slow_twin_and_its_tokens_maximum_is_the_published_embedding(aisfx: AisFx) -> None:
    with torch.no_grad():
        for index, (name, value) in enumerate(aisfx.model.state_dict().items()):
            if "running" in name or ".bn" in name and value.dim() == 1 and value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(index)) + 0.5)
        x_TF = aisfx.preprocess(noise(1.0))
        torch.testing.assert_close(
            aisfx(x_TF[None])[0].amax(0), slow_net(aisfx.model.state_dict(), x_TF), atol=1e-5, rtol=1e-4
        )


def test_a_token_hears_the_time_around_it_and_nothing_far_away() -> None:
    encoder = AisFx(seconds=3.0, pretrained=False)
    loud = np.zeros(3 * RATE, dtype=np.float32)
    loud[8 * BLOCK * HOP : 9 * BLOCK * HOP] = noise(BLOCK * HOP / RATE).wave
    x_B = torch.stack([encoder.preprocess(Sound(wave, RATE)) for wave in (0 * loud, loud)])
    quiet_NE, loud_NE = encoder(x_B)
    change = (loud_NE - quiet_NE).norm(dim=1)
    assert abs(int(change.argmax()) - 8) <= 1
    assert change[:4].max() < 1e-4 * change.max() and change[13:].max() < 1e-4 * change.max()


@pytest.mark.parametrize("make", [
    lambda: AisFx(seconds=1.0, pretrained=False), lambda: LogMel(seconds=1.0),
    lambda: WhisperTiny(seconds=1.0, pretrained=False)])  # fmt: skip
def test_features_have_the_promised_shape_and_do_not_depend_on_the_batch(make: object) -> None:
    encoder = make()  # type: ignore[operator]
    x_B = torch.stack([encoder.preprocess(noise(seconds, rate)) for seconds, rate in
                       ((1.0, RATE), (0.1, 8000), (2.0, 22050), (1.0, 16000), (0.6, RATE))])  # fmt: skip
    together = check_features(encoder, encoder(x_B), 5)
    alone = torch.cat([encoder(x[None]) for x in x_B])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    again = make()  # type: ignore[operator]
    assert again.fingerprint == encoder.fingerprint
    torch.testing.assert_close(again(x_B), together, atol=0, rtol=0)


def test_fingerprints_tell_seeds_lengths_and_layers_apart() -> None:
    made = [AisFx(1.0, False, 0), AisFx(1.0, False, 1), AisFx(2.0, False, 0), LogMel(1.0), LogMel(2.0),
            WhisperTiny(2, 1.0, 4, False), WhisperTiny(1, 1.0, 4, False), WhisperTiny(2, 1.0, 2, False)]  # fmt: skip
    assert len({encoder.fingerprint for encoder in made}) == len(made)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: LogMel(seconds=0.1), "seconds: 0.1 "), (lambda: AisFx(seconds=100, pretrained=False), "seconds: 100 "),
    (lambda: WhisperTiny(layer=7, pretrained=False), "layer: 7 "),
    (lambda: WhisperTiny(pool=400, pretrained=False), "pool: 400 "),
    (lambda: WhisperTiny(seconds=31, pretrained=False), "seconds: 31 ")])  # fmt: skip
def test_what_is_out_of_range_is_one_line(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]


def test_the_checkpoint_of_aisfx_is_read_as_weights_and_never_unpickled_freely(tmp_path: Path, aisfx: AisFx) -> None:
    weights = {f"embedding_net.{key}": value for key, value in aisfx.model.state_dict().items()}
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save((weights | {"fc.0.weight": torch.zeros(2)}, {"set": np.int64(3)}), good)
    assert aisfx_weights(good).keys() == aisfx.model.state_dict().keys()
    torch.save((weights, Path("anything")), bad)
    with pytest.raises(UserError, match="bad.pth"):
        aisfx_weights(bad)


# -- Whisper ---------------------------------------------------------------------------------------------------------


def write_ct2(path: Path, variables: dict[str, np.ndarray], version: int = 6) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    kinds = {"float32": 0, "float16": 4}
    out = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        out += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape),
                struct.pack("<BI", kinds[array.dtype.name], array.nbytes), array.tobytes()]  # fmt: skip
    out += [struct.pack("<I", 1), text("decoder/alias"), text(next(iter(variables)))]
    path.write_bytes(b"".join(out))


def as_ct2(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The other way round than `whisper_encoder_weights`, written from the format's description."""
    out = {}
    for layer in range(4):
        for end, name in (("weight", "gamma"), ("bias", "beta")):
            for part, other in (("self_attn_layer_norm", "self_attention"), ("final_layer_norm", "ffn")):
                out[f"encoder/layer_{layer}/{other}/layer_norm/{name}"] = weights[f"layers.{layer}.{part}.{end}"]
        for end in ("weight", "bias"):
            place = f"layers.{layer}.self_attn"
            parts = [weights.get(f"{place}.{letter}_proj.{end}", torch.zeros(384)) for letter in "qkv"]
            out[f"encoder/layer_{layer}/self_attention/linear_0/{end}"] = torch.cat(parts)
            for part, other in (
                (f"{place}.out_proj", "self_attention/linear_1"),
                (f"layers.{layer}.fc1", "ffn/linear_0"),
                (f"layers.{layer}.fc2", "ffn/linear_1"),
            ):
                out[f"encoder/layer_{layer}/{other}/{end}"] = weights[f"{part}.{end}"]
    for end, name in (("weight", "gamma"), ("bias", "beta")):
        out[f"encoder/layer_norm/{name}"] = weights[f"layer_norm.{end}"]
        for conv in ("conv1", "conv2"):
            out[f"encoder/{conv}/{end}"] = weights[f"{conv}.{end}"]
    out["encoder/position_encodings/encodings"] = weights["embed_positions.weight"]
    out["decoder/embeddings/weight"] = torch.ones(3, 2)
    return {name: value.numpy().astype(np.float16) for name, value in out.items()}


def test_a_ct2_file_gives_back_every_tensor_of_the_encoder(tmp_path: Path, whisper: WhisperTiny) -> None:
    weights = {name: value.half().float() for name, value in whisper.model.state_dict().items()}
    write_ct2(tmp_path / "model.bin", as_ct2(weights))
    variables = read_ct2(tmp_path / "model.bin")
    assert variables["decoder/alias"] is variables[next(iter(variables))]
    found = whisper_encoder_weights(variables)
    assert found.keys() == weights.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, weights[name], atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("keep", [0, 3, 20, 100, -1])
def test_a_cut_ct2_file_is_one_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.bin"
    write_ct2(path, {"encoder/conv1/weight": np.ones((4, 5), dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.bin: "):
        read_ct2(path)


def test_another_version_of_ct2_is_one_line(tmp_path: Path) -> None:
    write_ct2(tmp_path / "model.bin", {"a": np.ones(2, dtype=np.float32)}, version=5)
    with pytest.raises(UserError, match="version 5"):
        read_ct2(tmp_path / "model.bin")


def test_log_mel_and_encoder_equal_those_of_transformers_on_half_a_minute(whisper: WhisperTiny) -> None:
    from transformers import WhisperFeatureExtractor

    sound = noise(4.0, 16000)
    x = whisper.preprocess(sound)
    theirs = WhisperFeatureExtractor(feature_size=80)(sound.wave, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(x, theirs.input_features[0], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        expected = whisper.model(x[None]).last_hidden_state
    torch.testing.assert_close(whisper(x[None]), expected, atol=1e-4, rtol=1e-4)


def test_an_earlier_layer_of_whisper_is_the_hidden_state_of_transformers() -> None:
    full, part = (WhisperTiny(layer=layer, seconds=30.0, pool=10, pretrained=False) for layer in (-1, 2))
    x_B = full.preprocess(noise(2.0))[None]
    with torch.no_grad():
        hidden = full.model(x_B, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(part(x_B), hidden.unflatten(1, (150, 10)).mean(2), atol=1e-4, rtol=1e-4)
