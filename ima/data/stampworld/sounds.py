"""The sound effects: which recording is of what, in which split, and its wave, verified and brought to one level.

The table `sounds.tsv` is our own annotation (facts, no sound): every effect of Debian's tuxpaint-stamps-default with
its status, and the recordings of Debian's scratch that are second ones of a noun. Only rows of status core are used;
the others say why not (silent, copy of another file, speech, voice, unclear, nonfree). Hides decoding and packages.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ima.core.assets.registry import locate
from ima.core.errors import UserError
from ima.core.files import read_utf8
from ima.data.source import MediumError
from ima.data.stampworld.catalog import read_checked
from ima.tasks.metrics.vocabulary import Noun, load_nouns

SOUND_TABLE = Path(__file__).parent / "sounds.tsv"
SOUND_SPLITS = ("train", "T1", "T2")
PACKAGES = ("stamps", "scratch")
RATE = 44100  # most recordings have it, and the encoder aisfx wants it
LEVEL = 0.1  # root mean square of what is not silence, after normalisation
LOWEST = 30.0  # Hz; what is below is the recorder's offset


@dataclass(frozen=True)
class Recording:
    """One sound effect. `cluster` is shared by copies and overlapping recordings; `verb` completes the noun."""

    package: str
    file: str
    noun: str
    verb: str
    split: str
    cluster: str
    digest: str

    @property
    def key(self) -> str:
        return f"{self.package}/{self.file}"


def read_sounds(path: Path = SOUND_TABLE) -> tuple[Recording, ...]:
    """The usable rows (status core) of a table, sorted by key. Raises UserError naming the row that is wrong."""
    try:
        text = io.StringIO(read_utf8(path), newline="")
        rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a table of sounds is a .tsv like {SOUND_TABLE.name}") from error
    out = []
    for number, row in enumerate(rows, 2):
        try:
            if row["status"] != "core":
                continue
            names = ("package", "file", "noun", "verb", "split", "cluster", "sha256_16")
            recording = Recording(*(row[name] for name in names))
        except KeyError as error:
            raise UserError(f"{path}:{number}: column {error} is missing; {SOUND_TABLE.name} shows all") from error
        if recording.split not in SOUND_SPLITS or recording.package not in PACKAGES or not recording.cluster:
            raise UserError(
                f"{path}:{number}: package {recording.package!r}, split {recording.split!r}, cluster "
                f"{recording.cluster!r}; allowed: package {', '.join(PACKAGES)}; split {', '.join(SOUND_SPLITS)}; any "
                f"cluster but an empty one"
            )
        out.append(recording)
    return tuple(sorted(out, key=lambda recording: recording.key))


class SoundCatalog:
    """Recordings with their waves. Those of scratch are left out where that package is not (a line says so once).

    folders: package -> folder, instead of Debian's; table: one like sounds.tsv.
    """

    def __init__(self, folders: Mapping[str, str] | None = None, table: str | Path | None = None) -> None:
        self._folders = {name: Path(folder) for name, folder in (folders or {}).items()}
        every = read_sounds(SOUND_TABLE if table is None else Path(table))
        self.recordings = tuple(r for r in every if r.package == "stamps" or not self.reason_without_scratch)
        listing = "\n".join(f"{r.key} {r.digest} {r.noun} {r.verb} {r.split}" for r in self.recordings)
        self.manifest = hashlib.sha256(listing.encode()).hexdigest()[:16]
        self.wave = functools.lru_cache(maxsize=512)(self._wave)

    @functools.cached_property
    def reason_without_scratch(self) -> str:
        """Why there are no second recordings; empty where there are."""
        try:
            self.folder("scratch")
        except UserError as error:
            say_once(f"StampWorld's sounds: track T1 is empty, since {error}")
            return str(error)
        return ""

    def folder(self, package: str) -> Path:
        """Raises UserError where the package is not there."""
        return self._folders[package] if package in self._folders else locate(package)

    @functools.cached_property
    def nouns(self) -> dict[str, Noun]:
        """The vocabulary; nouns of an own table that it lacks get the first folder of their file as category."""
        known = load_nouns("sounds")
        own = {r.noun: Noun(r.noun, r.file.split("/")[0]) for r in self.recordings if r.noun not in known}
        return known | own

    def phrase(self, recording: Recording) -> str:
        """'a cow moos'."""
        return f"{self.nouns[recording.noun].single} {recording.verb}"

    def _wave(self, recording: Recording) -> np.ndarray:
        """(num_samples,) float32, mono, RATE, LEVEL where it is not silent.

        Raises UserError for a file that is missing, unreadable, silent or not the one of the table.
        """
        path = self.folder(recording.package) / recording.file
        wave, rate = decode(read_checked(path, recording.digest), str(path))
        wave = levelled(resampled(wave, rate, RATE))
        wave.setflags(write=False)  # shared by all who ask
        return wave


@functools.cache
def say_once(line: str) -> None:
    print(line, file=sys.stderr)


def decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """(mono wave, its rate). Raises MediumError naming the file."""
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise MediumError(f"{name}: not a readable sound ({error})") from error
    mono = wave.mean(1)
    if not len(mono) or np.abs(mono).max() < 1e-3:
        raise MediumError(f"{name}: nothing but silence")
    return mono, int(rate)


def resampled(wave: np.ndarray, rate: int, to: int) -> np.ndarray:
    if rate == to:
        return wave
    import torch
    from torchaudio.functional import resample

    out: np.ndarray = resample(torch.from_numpy(wave.copy()), rate, to).numpy()
    return out


def levelled(wave: np.ndarray) -> np.ndarray:
    """Without what is below LOWEST, and LEVEL loud: clips are recorded forty-fold differently loud."""
    spectrum = np.fft.rfft(wave)
    spectrum[: int(np.ceil(LOWEST * len(wave) / RATE))] = 0
    wave = np.fft.irfft(spectrum, len(wave)).astype(np.float32)
    return wave * np.float32(LEVEL / max(active_rms(wave), 1e-9))


def active_rms(wave: np.ndarray, frame: int = RATE // 50) -> float:
    """Root mean square over the 20 ms frames that are within 30 dB of the loudest one."""
    num = max(1, len(wave) // frame)
    power = np.array([np.mean(part.astype(np.float64) ** 2) for part in np.array_split(wave, num)])
    return float(np.sqrt(power[power >= power.max() * 1e-3].mean()))
