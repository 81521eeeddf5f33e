"""Odd but legal media: clips that are turned or mirrored, pictures of 1 to 32 bits, transparency, strange sample rates;
sounds whose samples mean nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import corpora_files
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ima.core.errors import UserError
from ima.core.media import Sound
from ima.core.types import Sample
from ima.data.decode import VideoFile, read_image, read_sound
from ima.data.feature_cache import FeatureStore
from ima.data.source import MediumError
from ima.models.encoders.audio import MAX_PRODUCT, heard
from ima.models.encoders.hf_audio import wave_at
from ima.models.encoders.image import ImagePreprocess

ONE = 1 << 16
# Display matrix (a b c d) -> where the quarters of the frame that is stored as [[R, G], [B, W]] are seen.
SEEN = {
    (1, 0, 0, 1): "RG BW", (0, 1, -1, 0): "BR WG", (-1, 0, 0, -1): "WB GR", (0, -1, 1, 0): "GW RB",
    (-1, 0, 0, 1): "GR WB", (1, 0, 0, -1): "BW RG", (0, 1, 1, 0): "RB GW", (0, -1, -1, 0): "WG BR",
}  # fmt: skip
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """A clip of three frames 64 wide, 32 high, with this matrix in its track header."""
    frame = np.zeros((32, 64, 3), np.uint8)
    for index, name in enumerate("RGBW"):
        row, column = divmod(index, 2)
        frame[16 * row : 16 * row + 16, 32 * column : 32 * column + 32] = COLOURS[name]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv444p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    plain = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    place = data.index(plain, data.index(b"tkhd"))
    a, b, c, d = (value * ONE for value in matrix)
    path.write_bytes(data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :])
    return path


@pytest.mark.parametrize("matrix", SEEN)
def test_a_clip_is_turned_and_mirrored_as_its_container_says(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    image = VideoFile(turned(tmp_path / "clip.mp4", matrix)).frames([1])[0]
    assert image.size == ((64, 32) if matrix[0] else (32, 64))
    width, height = image.size
    for index, name in enumerate(SEEN[matrix].replace(" ", "")):
        row, column = divmod(index, 2)
        pixel = image.getpixel((width * (1 + 2 * column) // 4, height * (1 + 2 * row) // 4))
        np.testing.assert_allclose(pixel, COLOURS[name], atol=12)


RAMP = np.linspace(0, 1, 16).reshape(4, 4)


def grey_of(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(("name", "array"), [
    ("16.png", (RAMP * 65535).astype(np.uint16)),
    ("16.tiff", (RAMP * 65535).astype(np.uint16)),
    ("32.tiff", (RAMP * (2**31 - 1)).astype(np.int32)),
    ("32of16.tiff", (RAMP * 65535).astype(np.int32)),
    ("32of8.tiff", (RAMP * 255).astype(np.int32)),
    ("float.tiff", RAMP.astype(np.float32)),
    ("float255.tiff", (RAMP * 255).astype(np.float32)),
    ("float65535.tiff", (RAMP * 65535).astype(np.float32)),
    ("8.png", (RAMP * 255).astype(np.uint8)),
])  # fmt: skip
def test_a_picture_of_any_depth_has_its_greys(tmp_path: Path, name: str, array: np.ndarray) -> None:
    Image.fromarray(array).save(tmp_path / name)
    np.testing.assert_allclose(grey_of(tmp_path / name), RAMP * 255, atol=1)


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 2570, np.uint16)).save(tmp_path / "a.png")
    assert (grey_of(tmp_path / "a.png") == 10).all()


def test_pixels_that_are_no_numbers_are_damage(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(MediumError, match=r"a.tiff: not a readable picture \(pixels that are not finite\)"):
        read_image(tmp_path / "a.tiff")


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    red.putpixel((0, 0), (255, 0, 0, 255))
    red.putpixel((1, 0), (0, 0, 0, 128))
    red.save(tmp_path / "rgba.png")
    image = read_image(tmp_path / "rgba.png")
    assert image.getpixel((0, 0)) == (255, 0, 0) and image.getpixel((5, 5)) == (255, 255, 255)
    np.testing.assert_allclose(image.getpixel((1, 0)), (127, 127, 127), atol=1)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").getpixel((3, 3)) == (255, 255, 255)
    for mode, clear, told in (("P", 7, 7), ("L", 9, 9), ("RGB", (1, 2, 3), (1, 2, 3))):
        image = Image.new(mode, (8, 8), clear)  # type: ignore[arg-type]
        if mode == "P":
            image.putpalette([value for index in range(256) for value in (index, 0, 255)])
        image.save(tmp_path / f"{mode}.png", transparency=told)
        assert read_image(tmp_path / f"{mode}.png").getpixel((3, 3)) == (255, 255, 255), mode
    bits = Image.new("1", (8, 8), 0)
    bits.putpixel((1, 1), 1)
    bits.save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").getpixel((1, 1)) == (255, 255, 255)
    assert read_image(tmp_path / "bits.png").getpixel((0, 0)) == (0, 0, 0)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert read_image(tmp_path / "cmyk.tiff").getpixel((0, 0)) == (255, 0, 0)


def test_the_encoders_preprocessing_sees_pictures_of_any_depth_alike() -> None:
    see = ImagePreprocess(4, 4, (0.0,) * 3, (1.0,) * 3)
    deep = Image.fromarray((RAMP * 65535).astype(np.uint16))
    torch.testing.assert_close(see(deep)[0], torch.from_numpy(RAMP).float(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("rate", [44_099, 11_127, 1_001, 767_999, 48_000])
@pytest.mark.parametrize("to", [44_100, 16_000])
def test_a_strange_rate_costs_little_memory_and_keeps_the_pitch(rate: int, to: int) -> None:
    hertz = 200.0
    wave = np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32)
    for found in (heard(Sound(wave, rate), to, 1.0), wave_at(Sound(wave, rate), to, to)):
        spectrum = torch.fft.rfft(found[:to] * torch.hann_window(len(found[:to]))).abs()
        assert abs(int(spectrum.argmax()) * to / len(found[:to]) - hertz) <= 1
        assert abs(float(found[to // 4 : to // 2].abs().max()) - 1) < 0.05
    assert MAX_PRODUCT * 4 < 2**26


@pytest.mark.parametrize("rate", [1, 999, 768_001, 10**9])
def test_an_absurd_rate_is_one_line(rate: int) -> None:
    for hear in (lambda sound: heard(sound, 16_000, 1.0), lambda sound: wave_at(sound, 16_000, 16_000)):
        with pytest.raises(UserError, match=f"a sound of {rate} samples a second; allowed: 1000 to 768000"):
            hear(Sound(np.zeros(100, np.float32), rate))


@pytest.mark.parametrize("sample", [1e30, -1e30, np.inf, np.nan])
def test_samples_that_mean_nothing_are_a_bad_medium_that_is_named(tmp_path: Path, sample: float) -> None:
    wave = np.zeros((100, 1), np.float32)
    wave[50] = sample
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(MediumError, match=r"a.wav: (samples of up to 1e\+30|samples that are not finite)"):
        read_sound(tmp_path / "a.wav")


class Odd:
    """A source of four media, the third of which gives features that are not finite."""

    name, fingerprint = "odd", "odd"

    def __init__(self, policy: str) -> None:
        self.on_bad_medium = policy

    def medium(self, sample: Sample) -> float:
        return float("inf") if sample.id == "2" else 1.0


class Plain(torch.nn.Module):
    num_tokens, dim, fingerprint = 1, 1, "plain"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.preprocess, self.scale = (lambda medium: torch.full((1, 1), medium)), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_features_that_are_not_finite_are_a_bad_medium_and_an_overflow_names_one(tmp_path: Path) -> None:
    samples = [Sample(str(index), "train", "train", "audio", (), facts={"file": f"{index}.wav"}) for index in range(4)]
    skipping: Any = FeatureStore(tmp_path, Odd("skip"), Plain())  # type: ignore[arg-type]
    assert skipping.ensure(samples) == 3 and list(skipping.bad) == ["2"] and "2.wav" in skipping.bad["2"]
    assert skipping.read([samples[3]]).tolist() == [[[1.0]]]
    stopping: Any = FeatureStore(tmp_path / "b", Odd("error"), Plain())  # type: ignore[arg-type]
    with pytest.raises(MediumError, match="2.wav: features of it are not finite; data.on_bad_medium=skip"):
        stopping.ensure(samples)
    narrow: Any = FeatureStore(tmp_path / "c", Odd("skip"), Plain(1e9))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"loader.cache_dtype: .* overflow float16; use float32 \(the first: of 0\)"):
        narrow.ensure(samples)


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile 'secret.mp4'\n", "#EXTM3U\nsecret.mp4\n", "\n ffconcat version 1.0"]
)
def test_a_list_of_other_files_is_not_followed(tmp_path: Path, text: str) -> None:
    turned(tmp_path / "secret.mp4", (1, 0, 0, 1))
    (tmp_path / "a.mp4").write_text(text)
    for content in (tmp_path / "a.mp4", text.encode()):
        with pytest.raises(MediumError, match="a list of other files, which is not followed"):
            _ = VideoFile(content, "a.mp4").num_frames
        with pytest.raises(MediumError):
            read_sound(content, "a.mp4")


@pytest.mark.parametrize(("more", "is_whole"), [(5, True), (60, False)])
def test_an_avi_header_may_count_a_few_frames_too_many(tmp_path: Path, more: int, is_whole: bool) -> None:
    corpora_files.clip(tmp_path / "a.avi", codec="mpeg4")
    data = (tmp_path / "a.avi").read_bytes()
    for mark, ahead in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # the frames of the file and of its stream
        place = data.index(mark) + ahead
        assert struct.unpack_from("<I", data, place)[0] == 12
        data = data[:place] + struct.pack("<I", 12 + more) + data[place + 4 :]
    (tmp_path / "a.avi").write_bytes(data)
    if is_whole:
        clip = VideoFile(tmp_path / "a.avi")
        assert clip.num_frames == 12 and len(clip.frames([11])) == 1
    else:
        with pytest.raises(MediumError, match="damaged video"):
            _ = VideoFile(tmp_path / "a.avi").num_frames


def test_a_codec_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    corpora_files.wav(tmp_path / "a.wav", 1)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:20] + b"\x34\x12" + whole[22:])
    with pytest.raises(MediumError, match="a.wav: not a readable sound"):
        read_sound(tmp_path / "a.wav")
    corpora_files.clip(tmp_path / "a.mp4", 1)
    whole = (tmp_path / "a.mp4").read_bytes()
    place = whole.index(b"stsd") + 16  # of the name of the codec in its table
    (tmp_path / "a.mp4").write_bytes(whole[:place] + b"zzzz" + whole[place + 4 :])
    with pytest.raises(MediumError, match="a.mp4: not a readable video"):
        assert VideoFile(tmp_path / "a.mp4").frames([0])
