"""What a person looks at: predictions of every test example as lines, and a few with their pictures, sounds, clips."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ima.core.files import to_json, write_atomic
from ima.core.media import Clip, Medium, Sound, spaced
from ima.core.metric_names import TRACKS_WITHOUT_MEDIA
from ima.core.types import Sample
from ima.data.source import MediumError, Source
from ima.tasks.base import Prediction, Task

NUM_SHOWN = 12
PICTURE_SIZE = 160  # pixels; of one frame
SHOWN_SECONDS, MAX_FRAMES = 15.0, 150
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
NUM_FRAMES, NUM_COLUMNS = 4, 2


Final = tuple[str, Mapping[str, Sequence[Prediction]], Task, Source]  # an entry's name, its tracks, what they are of


def write_predictions(
    folder: Path, final: Mapping[str, Sequence[Prediction]], task: Task, source: Source, epoch: int
) -> None:
    """`predictions.jsonl` (all, with per-example scores) and `samples.jsonl` with pictures in `media/`."""
    write_all_predictions(folder, [("", final, task, source)], epoch)


def write_all_predictions(folder: Path, entries: Sequence[Final], epoch: int | None) -> None:
    """The same of a mixture; the names of its tracks begin with those of its entries."""
    lines, shown = [], []
    for entry, final, task, source in entries:
        first = next(iter(final), "")
        for split_name, predictions in final.items():
            track = f"{entry}/{split_name}" if entry else split_name
            # the rows beside the tracks are about the first one
            split = split_name if split_name in source.splits else first
            scores = task.per_example(predictions, [sample.references for sample in source.samples(split)])
            for prediction, score in zip(predictions, scores, strict=True):
                sample = prediction.sample
                line: dict[str, Any] = {"id": sample.id, "track": track, "cluster": sample.cluster, "epoch": epoch}
                line |= {"question": sample.question} if sample.question else {}
                line |= {"references": list(sample.references), "prediction": prediction.text}
                line = score | line  # the blind row's samples are those of another track: `track` is not theirs
                lines.append(line)
            if split_name not in TRACKS_WITHOUT_MEDIA:
                offset = len(lines) - len(predictions)
                for index, position in enumerate(varied([p.sample for p in predictions], NUM_SHOWN)):
                    stem = f"{track}-{index:02d}".replace("/", "-")
                    shown.append(
                        lines[offset + position] | files_of(folder, source, predictions[position].sample, stem)
                    )
    for name, content in (("predictions.jsonl", lines), ("samples.jsonl", shown)):
        write_atomic(folder / name, "".join(json.dumps(to_json(line)) + "\n" for line in content))


def varied(samples: Sequence[Sample], num: int) -> list[int]:
    """Positions of up to `num` samples, spread over what there is to say: one of each first reference before a
    second of any. Chosen by the references alone, never by the answers."""
    rounds: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        rounds.setdefault(sample.references[0] if sample.references else "", []).append(position)
    firsts = [positions[0] for positions in rounds.values()]
    if len(firsts) >= num:
        return [firsts[index * len(firsts) // num] for index in range(num)]
    rest = [position for positions in rounds.values() for position in positions[1:]]
    return sorted(firsts + rest[: num - len(firsts)])


def files_of(folder: Path, source: Source, sample: Sample, stem: str) -> dict[str, str]:
    """`media_files` of its first medium; a medium that cannot be read any more costs its picture, not the results."""
    try:
        return media_files(folder, source.medium(sample.media_samples[0]), stem) if sample.media_samples else {}
    except MediumError as error:
        print(f"warning: sample {sample.id} is shown without its medium: {error}", file=sys.stderr)
        return {}


def media_files(folder: Path, medium: Medium, stem: str) -> dict[str, str]:
    """Paths below `folder`: image, a small PNG of the medium, and what can be played: sound (mp3) or clip (webm)."""
    buffer = io.BytesIO()
    still(medium).save(buffer, "PNG")
    files = {"image": (f"media/{stem}.png", buffer.getvalue())}
    if isinstance(medium, Sound):
        kind, data = sound_file(medium)
        files["sound"] = (f"media/{stem}.{kind}", data)
    elif not isinstance(medium, Image.Image):
        files["clip"] = (f"media/{stem}.webm", clip_file(medium))
    for name, data in files.values():
        write_atomic(folder / name, data)
    return {what: name for what, (name, _) in files.items()}


def sound_file(sound: Sound) -> tuple[str, bytes]:
    """(ending, bytes) that any browser plays; at most SHOWN_SECONDS."""
    import soundfile

    kind = "mp3" if sound.rate in MP3_RATES else "wav"
    buffer = io.BytesIO()
    wave = np.clip(sound.wave[: int(SHOWN_SECONDS * sound.rate)], -1, 1)
    soundfile.write(buffer, wave, sound.rate, format=kind.upper())
    return kind, buffer.getvalue()


def clip_file(clip: Clip) -> bytes:
    """WebM (VP9) of at most SHOWN_SECONDS, small."""
    import av

    num = min(clip.num_frames, max(1, int(SHOWN_SECONDS * clip.fps)), MAX_FRAMES)
    frames = [frame.convert("RGB") for frame in clip.frames(list(range(num)))]
    scale = min(1.0, PICTURE_SIZE / max(frames[0].size))
    width, height = (max(2, round(side * scale / 2) * 2) for side in frames[0].size)  # the colours are halved
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=Fraction(clip.fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "32", "b": "0", "cpu-used": "8", "deadline": "realtime"}
        for frame in frames:
            image = frame.resize((width, height), Image.Resampling.BILINEAR)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return buffer.getvalue()


def still(medium: Medium) -> Image.Image:
    """A picture of any medium: itself, four frames of a clip in two rows, the spectrogram of a sound."""
    if isinstance(medium, Sound):
        return spectrogram(medium)
    if isinstance(medium, Image.Image):
        image = medium.convert("RGB")
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        return image
    shown = [still(frame) for frame in medium.frames(spaced(medium.num_frames, NUM_FRAMES))]
    width, height = max(frame.width for frame in shown) + 2, max(frame.height for frame in shown) + 2
    num_rows = -(-len(shown) // NUM_COLUMNS)
    grid = Image.new("RGB", (NUM_COLUMNS * width - 2, num_rows * height - 2))
    for index, frame in enumerate(shown):
        grid.paste(frame, (index % NUM_COLUMNS * width, index // NUM_COLUMNS * height))
    return grid


def spectrogram(sound: Sound) -> Image.Image:
    """Time to the right, frequency (0 to half the rate, square-root scale) upwards, 60 dB from light to dark."""
    hop = max(1, len(sound.wave) // (2 * PICTURE_SIZE))
    padded = np.pad(sound.wave, (0, 1024))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::hop] * np.hanning(1024)
    power = 20 * np.log10(np.abs(np.fft.rfft(windows, axis=1)) + 1e-6)
    bins = (np.linspace(1, 0, PICTURE_SIZE) ** 2 * (power.shape[1] - 1)).astype(int)
    shade = np.clip((power.T[bins] - power.max() + 60) / 60, 0, 1)
    return Image.fromarray((255 * (1 - shade)).astype(np.uint8)).convert("RGB")
