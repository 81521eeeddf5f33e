"""Media files: what is read is what is in the file, only what is asked for is decoded, damage is one clear line."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import av
import corpora_files
import numpy as np
import pytest
import soundfile
from PIL import Image

from ima.core.media import Clip
from ima.data.decode import VideoFile, read_image, read_sound
from ima.data.source import MediumError

# container, codec, pixel format, frames out of order
KINDS = {
    "h264": ("a.mp4", "libx264", "yuv420p", 2),
    "lossless": ("a.mp4", "libx264rgb", "rgb24", 0),
    "webm": ("a.webm", "libvpx-vp9", "yuv420p", 0),
    "mkv": ("a.mkv", "ffv1", "bgr0", 0),
    "avi": ("a.avi", "mpeg4", "yuv420p", 2),
    "mpeg": ("a.mpg", "mpeg2video", "yuv420p", 2),
}


def decoded_in_order(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_image()) for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [[7], [30, 2, 11, 11], list(range(32)), []])
def test_any_frames_in_any_order_are_those_of_decoding_all(tmp_path: Path, kind: str, asked: list[int]) -> None:
    name, codec, pixels, b_frames = KINDS[kind]
    corpora_files.clip(tmp_path / name, 0, 32, codec, pixels, key_every=8, b_frames=b_frames)
    whole, video = decoded_in_order(tmp_path / name), VideoFile(tmp_path / name)
    rate = 25.0 if kind == "mpeg" and video.fps == 25 else 10.0  # MPEG knows some rates only
    assert isinstance(video, Clip) and (video.num_frames, video.fps) == (len(whole), rate)
    frames = video.frames(asked)
    assert len(frames) == len(asked)
    assert all(np.array_equal(np.asarray(frame), whole[index]) for frame, index in zip(frames, asked, strict=True))


def test_no_more_is_decoded_than_from_the_key_frame_before(tmp_path: Path) -> None:
    corpora_files.clip(tmp_path / "a.mp4", 0, 40, key_every=10)
    video = VideoFile(tmp_path / "a.mp4")
    assert (video.num_frames, video.num_decoded) == (40, 0)
    video.frames([33])
    assert video.num_decoded == 4
    video.frames([12, 13, 38])
    assert video.num_decoded == 4 + 4 + 9
    assert len(video.frames(range(40))) == 40 and video.num_decoded == 17 + 40


def test_a_clip_is_read_from_bytes_too_and_travels_to_workers(tmp_path: Path) -> None:
    corpora_files.clip(tmp_path / "a.mp4", 1)
    file, data = VideoFile(tmp_path / "a.mp4"), VideoFile((tmp_path / "a.mp4").read_bytes(), "tar: a")
    again = pickle.loads(pickle.dumps(file))
    frames = [np.asarray(clip.frames([5])[0]) for clip in (file, data, again)]
    assert np.array_equal(frames[0], frames[1]) and np.array_equal(frames[0], frames[2])


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_sounds_are_mono_at_their_own_rate(tmp_path: Path, ending: str) -> None:
    wave = np.sin(np.arange(22050) / 10).astype(np.float32)
    soundfile.write(tmp_path / f"a.{ending}", np.stack([wave, np.zeros_like(wave)], 1), 22050)
    sound = read_sound(tmp_path / f"a.{ending}")
    assert sound.rate == 22050 and sound.wave.ndim == 1 and sound.wave.dtype == np.float32
    num = min(len(sound.wave), len(wave))
    assert abs(num - len(wave)) < 2000 and np.abs(sound.wave[:num] - wave[:num] / 2).mean() < 0.02
    assert np.array_equal(read_sound((tmp_path / f"a.{ending}").read_bytes(), "x").wave, sound.wave)


def test_the_sound_of_a_film_is_read_as_well(tmp_path: Path) -> None:
    wave = (0.5 * np.sin(np.arange(32000) / 20)).astype(np.float32)
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=32000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = 32000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    sound = read_sound(tmp_path / "a.m4a")
    assert sound.rate == 32000 and abs(sound.seconds - 1) < 0.1
    assert 0.3 < float(np.abs(sound.wave).mean()) / 0.5 * np.pi / 2 / np.pi * 2 < 1.1


def test_pictures_of_any_mode_are_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        data = io.BytesIO()
        Image.new(mode, (5, 4)).save(data, "TIFF")
        image = read_image(data.getvalue(), mode)
        assert (image.mode, image.size) == ("RGB", (5, 4))


def truncated(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    """Each of the eight ways a camera stores a scene whose upper left corner is red, on a ground of grey."""
    scene = np.full((32, 48, 3), 90, np.uint8)
    scene[:16, :16] = (200, 30, 30)
    stored = {1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.transpose(1, 0, 2),
              6: np.rot90(scene), 7: scene[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(scene, 3)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for content in (tmp_path / "turned.jpg", (tmp_path / "turned.jpg").read_bytes()):
        image = read_image(content)
        assert image.mode == "RGB" and image.size == (48, 32)
        assert np.abs(np.asarray(image).astype(int) - scene).mean() < 4


def test_odd_metadata_do_not_make_a_picture_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\xff\0\0",
                 b"Exif\0\0II*\0\xff\xff\xff\xff"):  # fmt: skip
        Image.new("RGB", (8, 6), (10, 200, 10)).save(path, exif=exif)
        assert read_image(path).size == (8, 6)


def test_damage_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "cut.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "zero.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(99, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "rate.wav", np.zeros(99, np.float32), 7)
    (tmp_path / "noise.wav").write_bytes(bytes(range(256)) * 9)
    corpora_files.clip(tmp_path / "cut.mp4", num_frames=30)
    corpora_files.clip(tmp_path / "cut.mkv", num_frames=30)
    corpora_files.clip(tmp_path / "none.mkv", num_frames=0, codec="ffv1", pixels="bgr0")
    corpora_files.wav(tmp_path / "only.wav", 0)
    (tmp_path / "folder.jpg").mkdir()
    for path, read, words in (
        (truncated(tmp_path / "cut.jpg"), read_image, "not a readable picture (image file is truncated"),
        (tmp_path / "text.jpg", read_image, "no picture in a format"),
        (tmp_path / "gone.jpg", read_image, "not found"),
        (tmp_path / "folder.jpg", read_image, "a folder"),
        (tmp_path / "zero.wav", read_sound, "empty (0 bytes)"),
        (tmp_path / "silent.wav", read_sound, "without samples"),
        (tmp_path / "nan.wav", read_sound, "not finite"),
        (tmp_path / "rate.wav", read_sound, "a sample rate of 7 Hz"),
        (tmp_path / "noise.wav", read_sound, "not a readable sound"),
        (truncated(tmp_path / "cut.mp4"), VideoFile, "not a readable video"),
        (tmp_path / "none.mkv", VideoFile, "video"),
        (tmp_path / "only.wav", VideoFile, "no video stream"),
        (tmp_path / "gone.mp4", VideoFile, "not found"),
    ):
        with pytest.raises(MediumError) as caught:
            medium = read(path)
            if isinstance(medium, VideoFile):
                medium.frames([medium.num_frames - 1])
        message = str(caught.value)
        assert message.startswith(str(path)) and words in message and "\n" not in message, message


def test_a_video_whose_end_is_missing_is_damaged(tmp_path: Path) -> None:
    """The index at the front, the second half of the frames gone: it must not pass for a shorter video."""
    corpora_files.clip(tmp_path / "a.mp4", num_frames=60)
    with (
        av.open(str(tmp_path / "a.mp4")) as source,
        av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert VideoFile(tmp_path / "b.mp4").num_frames == 60
    truncated(tmp_path / "b.mp4", 0.7)
    with pytest.raises(MediumError, match="b.mp4: damaged video"):
        video = VideoFile(tmp_path / "b.mp4")
        video.frames([video.num_frames - 1])
