"""Media files as media: pictures by PIL, sounds by soundfile (by PyAV where that cannot), clips by PyAV.

A file is given by its path or by its bytes (from a tar or a table); `name` stands for it in messages. What cannot be
read is a MediumError with one line. Hidden here: containers, codecs, time stamps and key frames.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ima.core.media import RATES, Medium, Sound, to_rgb
from ima.data.source import MediumError

LOUDEST = 2.0**31  # floats that were left at the scale of 32 bits
NUM_LACKING = 2  # frames that a container may count more than its stream decodes; the last frame stands for them
NUM_FEW = 5  # frames that the header of a container without an exact index may count too many
LISTS = (b"ffconcat", b"#EXTM3U", b"<?xml", b"<MPD", b"v=0", b"[playlist]")  # text that names other files or addresses
BROKEN_EXIF = (SyntaxError, ValueError, TypeError, KeyError, struct.error)  # what Pillow raises over odd metadata
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers that are sought in exactly

Content = Path | bytes


def read_image(content: Content, name: str = "") -> Image.Image:
    """RGB of 8 bits on white, decoded whole, so that damage shows here; upright, as its EXIF orientation says (cameras
    write pictures as the sensor lay)."""
    name = name or str(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Corrupt EXIF")
            with Image.open(opened(content, name)) as image:
                image.load()
                with contextlib.suppress(*BROKEN_EXIF):  # the picture itself is whole
                    ImageOps.exif_transpose(image, in_place=True)
                return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediumError):
            raise
        reason = "no picture in a format that is known" if isinstance(error, Image.UnidentifiedImageError) else error
        raise MediumError(f"{name}: not a readable picture ({reason})") from error


def read_sound(content: Content, name: str = "") -> Sound:
    """Mono (the mean of the channels) at the file's own rate; encoders resample."""
    import soundfile

    name = name or str(content)
    try:
        wave, rate = soundfile.read(opened(content, name), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError):
        wave, rate = decode_sound(content, name)
    if not RATES[0] <= rate <= RATES[1]:
        raise MediumError(f"{name}: a sample rate of {rate} Hz; allowed: {RATES[0]} to {RATES[1]}")
    if not len(wave):
        raise MediumError(f"{name}: a sound without samples")
    if not np.isfinite(wave).all():
        raise MediumError(f"{name}: samples that are not finite (NaN or infinite)")
    if (loudest := float(np.abs(wave).max())) > LOUDEST:
        raise MediumError(f"{name}: samples of up to {loudest:.3g}; sounds lie between -1 and 1, so it is damaged")
    return Sound(np.ascontiguousarray(wave.mean(1, dtype=np.float32)), int(rate))


def decode_sound(content: Content, name: str) -> tuple[np.ndarray, int]:
    """(num_samples, num_channels) float32 and the rate, of whatever FFmpeg reads (mp4, m4a, webm, ...)."""
    import av

    with container_of(content, name, "sound") as container:
        if not container.streams.audio:
            raise MediumError(f"{name}: not a readable sound (no audio stream)")
        stream = known(container.streams.audio[0], name, "sound")
        rate = stream.rate
        resampler = av.AudioResampler(format="fltp")
        parts = [part.to_ndarray() for frame in container.decode(stream) for part in resampler.resample(frame)]
        parts += [part.to_ndarray() for part in resampler.resample(None)] if parts else []
    return (np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)), int(rate or 0)


def known(stream: Any, name: str, kind: str) -> Any:
    """The stream, if FFmpeg has a decoder for it."""
    if stream.codec_context is None:
        raise MediumError(f"{name}: not a readable {kind} (its codec is not known)")
    return stream


class VideoFile:
    """A Clip of a video file. Nothing is decoded before frames are asked for, then only from the key frame before each.

    Frames are numbered in the order of their time stamps, which are read once without decoding. Containers whose
    stamps are not exact (AVI, MPEG) are decoded from the start up to the last frame asked. `num_decoded`: so far.
    """

    def __init__(self, content: Content, name: str = "") -> None:
        self.content, self.name = content, name or str(content)
        self.num_decoded = 0
        self._index: tuple[list[int], list[int], float] | None = None
        if isinstance(content, Path):
            opened(content, self.name)

    @property
    def num_frames(self) -> int:
        return len(self._times()[0])

    @property
    def fps(self) -> float:
        return self._times()[2]

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """RGB, as large as in the file, in the order asked; an index may come twice."""
        times, keys, _ = self._times()
        wanted = sorted(set(indices))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < len(times):
            raise IndexError(f"{self.name}: frame {wanted[0]} to {wanted[-1]} of {len(times)}")
        found: dict[int, Image.Image] = {}
        with container_of(self.content, self.name, "video") as container:
            stream = known(container.streams.video[0], self.name, "video")
            stream.codec_context.thread_count = 1  # workers are processes
            decoded: Iterator[Any] = iter(())
            place, last = -1, None  # of the frame decoded last
            for index in wanted:
                key = keys[bisect.bisect(keys, index) - 1] if keys and keys[0] <= index else 0
                if place < 0 or key > place + 1:  # a key frame lies between here and there
                    if key:
                        container.seek(times[key], stream=stream, backward=True)
                    decoded, place = container.decode(stream), -1
                while place < index and (frame := next(decoded, None)) is not None:
                    self.num_decoded += 1
                    place, last = (int(np.searchsorted(times, frame.pts)) if keys else place + 1), frame
                if last is None or place < index - NUM_LACKING:
                    raise MediumError(f"{self.name}: damaged video (frame {index} of {len(times)} cannot be decoded)")
                found[index] = upright(last)
        return [found[index] for index in indices]

    def _times(self) -> tuple[list[int], list[int], float]:
        """Time stamps in order, the numbers of the key frames (none where time stamps mean little), frames a second."""
        if self._index is None:
            with container_of(self.content, self.name, "video") as container:
                if not container.streams.video:
                    raise MediumError(f"{self.name}: not a readable video (no video stream)")
                stream = known(container.streams.video[0], self.name, "video")
                packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
                rate, counted = float(stream.average_rate or 0), stream.frames
                timed = container.format.name in INDEXED and all(time is not None for time, _ in packets)
            if not packets:
                raise MediumError(f"{self.name}: a video without frames")
            lacking, few = counted - len(packets), 0 if container.format.name in INDEXED else NUM_FEW
            if lacking > max(few, 0.05 * counted):
                raise MediumError(f"{self.name}: damaged video ({len(packets)} of {counted} frames are there)")
            if timed:
                packets.sort()
            keys = [index for index, (_, is_key) in enumerate(packets) if is_key and timed]
            self._index = [time for time, _ in packets], keys, rate if rate > 0 else 25.0
        return self._index


# Entries a, b, c, d of a container's display matrix (x' = ax + cy, y' = bx + dy; y downwards) -> how PIL turns so.
TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def upright(frame: Any) -> Image.Image:
    """RGB of a frame as players show it: telephones write clips as the sensor lay, with a matrix that turns or mirrors
    them. Other angles are rounded to quarter turns."""
    image: Image.Image = frame.to_image()
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return image
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        b = c = 0
    else:
        a = d = 0
    turn = TURNS.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))
    return image if turn is None else image.transpose(turn)


READERS: dict[str, Callable[[Content, str], Medium]] = {"image": read_image, "video": VideoFile, "audio": read_sound}


def opened(content: Content, name: str) -> str | io.BytesIO:
    """What a library can open, after the plain things have been ruled out: absent, a folder, empty."""
    if isinstance(content, bytes):
        if not content:
            raise MediumError(f"{name}: empty (0 bytes)")
        return io.BytesIO(content)
    if content.is_dir():
        raise MediumError(f"{name}: a folder, not a file")
    try:
        size = content.stat().st_size
    except FileNotFoundError as error:
        raise MediumError(f"{name}: not found") from error
    except (OSError, ValueError) as error:  # a link to itself; a name with NUL
        raise MediumError(f"{name!r}: {getattr(error, 'strerror', None) or error}") from error
    if not size:
        raise MediumError(f"{name}: empty (0 bytes)")
    return str(content)


@contextlib.contextmanager
def container_of(content: Content, name: str, what: str) -> Iterator[Any]:
    """An opened container; whatever FFmpeg objects to, now or while reading, is a MediumError."""
    import av

    found = opened(content, name)
    if isinstance(content, bytes):
        start = content[:64]
    else:
        with open(content, "rb") as file:
            start = file.read(64)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(LISTS):
        raise MediumError(f"{name}: not a readable {what} (a list of other files, which is not followed)")
    try:
        with av.open(found) as container:
            yield container
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, MediumError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MediumError(f"{name}: not a readable {what} ({reason})") from error
