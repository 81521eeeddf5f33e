"""Writes a source into a folder of yours in the official file formats of its kind, media rendered on the way.

    python -m ima export-data stamps_single --out FOLDER [data.limit=100 ...]

Pictures become COCO captions or VQAv2, clips MSR-VTT or MSRVTT-QA, sounds AudioCaps (and Clotho) or Clotho-AQA; the
kind follows from the modality and from whether samples ask something. Read back by data=exported, or by any program
that knows the format. Annotation files are written last, so that a folder with export.json is a whole one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ima.core.errors import UserError
from ima.core.files import replace_atomic, write_atomic
from ima.core.media import Clip, Medium, Sound
from ima.core.progress import progress
from ima.data.corpora.writing import WRITERS, Splits
from ima.data.source import Source

ENDINGS = {"image": ("png", "jpg"), "video": ("mp4", "mp4"), "audio": ("wav", "wav")}  # lossless, lossy
NAMES = {"image": "{:012d}", "video": "video{}", "audio": "sound{:06d}"}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima export-data", description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a choice of conf/data, as in train.py data=...")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where to; new or empty")
    parser.add_argument("--lossy", action="store_true", help="jpg, 4:2:0 video and 16 bit sound instead of lossless")
    parser.add_argument("--splits", nargs="+", help="only these")
    options, overrides = parser.parse_known_args(argv)
    from omegaconf import OmegaConf

    from ima.config.compose import compose
    from ima.config.instantiation import build

    try:
        config = OmegaConf.to_container(compose([f"data={options.data}", *overrides]))
        assert isinstance(config, dict)
        num = export(build(config, "data"), options.out, options.lossy, options.splits)  # type: ignore[arg-type]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {num} media; read it with data=exported data.folder={options.out}")
    print("Media carry the licences of what they were made from: look there before you pass them on.")
    return 0


def export(source: Source, folder: Path, lossy: bool = False, only: Sequence[str] | None = None) -> int:
    """Write all splits that have samples (`only`: these); returns the number of media."""
    for split in only or ():
        if split not in source.splits:
            raise UserError(f"--splits: {source.name} has no {split!r}; it has {', '.join(source.splits)}")
    # an export that was cut short has left media alone: they are written again
    if folder.is_file() or (folder.is_dir() and any(entry.name != "media" for entry in folder.iterdir())):
        raise UserError(f"--out: {folder} is there already and not an empty folder; name another or remove it")
    samples = {split: found for split in only or source.splits if (found := source.samples(split))}
    asks = {bool(sample.question) for found in samples.values() for sample in found}
    if len(asks) != 1:
        raise UserError(f"{source.name}: no samples" if not asks else f"{source.name}: questions and captions mixed")
    kind = source.modality + (" questions" if True in asks else "")
    places: dict[str, tuple[str, int]] = {}  # medium key -> its file and number
    splits: Splits = {}
    num_media = len({(split, sample.medium_key) for split, found in samples.items() for sample in found})
    with progress(num_media, f"export {source.name}", "medium") as advance:
        for split, found in samples.items():
            splits[split] = []
            for sample in found:
                if not sample.references:
                    raise UserError(f"sample {sample.id} has no reference text, which these formats need")
                key = f"{split}/{sample.medium_key}"
                if key not in places:
                    number = len(places)
                    name = NAMES[source.modality].format(number)
                    file = f"media/{split}/{name}.{ENDINGS[source.modality][lossy]}"
                    write_medium(source.medium(sample), folder / file, lossy)
                    places[key] = file, number
                    advance(1)
                splits[split].append((sample, *places[key]))
    files, table = WRITERS[kind](splits)
    clusters = {file: sample.cluster or sample.id for placed in splits.values() for sample, file, _ in placed}
    about = {"kind": kind, "name": source.name, "fingerprint": source.fingerprint, "splits": table,
             "clusters": "clusters.json"}  # fmt: skip
    files |= {"clusters.json": json.dumps(clusters, indent=0), "export.json": json.dumps(about, indent=2)}
    for name, text in files.items():
        write_atomic(folder / name, text)
    return len(places)


def write_medium(medium: Medium, path: Path, lossy: bool) -> None:
    """Whole or not at all."""
    if isinstance(medium, Sound):
        import soundfile

        subtype = "PCM_16" if lossy else "FLOAT"
        replace_atomic(
            path, lambda temporary: soundfile.write(temporary, medium.wave, medium.rate, subtype=subtype, format="WAV")
        )
    elif isinstance(medium, Image.Image):
        form = {"format": "JPEG", "quality": 95} if lossy else {"format": "PNG"}
        replace_atomic(path, lambda temporary: medium.convert("RGB").save(temporary, **form))
    else:
        replace_atomic(path, lambda temporary: write_clip(medium, temporary, lossy))


def write_clip(clip: Clip, path: Path, lossy: bool) -> None:
    """H.264 in mp4, frame by frame: RGB without loss, or 4:2:0 (whose sides are even: an odd edge is cut off)."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for index in range(clip.num_frames):
            frame = np.asarray(clip.frames([index])[0].convert("RGB"))
            if lossy:
                frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if stream is None:
                options = {"crf": "18"} if lossy else {"qp": "0"}
                rate = Fraction(clip.fps).limit_denominator(1001)
                stream = container.add_stream("libx264" if lossy else "libx264rgb", rate=rate, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p" if lossy else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        if stream is not None:
            container.mux(stream.encode(None))
