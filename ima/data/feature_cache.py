"""Encoder features, computed once: safetensors shards read through memory maps.

A store is keyed by what its numbers depend on (encoder fingerprint with its preprocessing, source fingerprint, dtype)
and holds one row per medium (`Sample.medium_key`), however many samples ask about it. Shards are written whole
(temporary file, rename) and named by their content's ids, so that a kill leaves complete shards only and several
processes or ranks may fill one store. Hides the file format.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ima.core.errors import UserError
from ima.core.files import make_folder, remove_temporaries
from ima.core.progress import progress
from ima.core.tensor_file import write_tensors
from ima.core.types import Sample
from ima.data.source import MediumError, Source
from ima.data.workers import num_fed
from ima.models.encoders.base import Encoder

SHARD_SIZE = 256
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
NUMPY = {"float16": np.float16, "float32": np.float32, "bfloat16": np.uint16}


class Media(Dataset[Tensor | str]):
    """Samples as preprocessed media, for worker processes; a medium that cannot be read is the reason why not (an
    exception would come out of a worker as a page of text)."""

    def __init__(self, source: Source, samples: Sequence[Sample], preprocess: Callable[[Any], Tensor]) -> None:
        self.source, self.samples, self.preprocess = source, samples, preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.preprocess(self.source.medium(self.samples[index]))
        except MediumError as error:
            return str(error)


def stacked(items: list[Tensor | str]) -> tuple[Tensor | None, list[str]]:
    """The readable media of a batch, and for each item why it is not readable ("" where it is)."""
    good = [item for item in items if not isinstance(item, str)]
    return torch.stack(good) if good else None, [item if isinstance(item, str) else "" for item in items]


def read_media(
    source: Source,
    samples: Sequence[Sample],
    preprocess: Callable[[Any], Tensor],
    batch_size: int,
    num_workers: int,
    bad: dict[str, str],
) -> Iterator[tuple[int, list[Sample], Tensor | None]]:
    """Batches in order: how many samples were looked at, which of them are readable, their media. What cannot be read
    goes into `bad` (medium key -> reason), or raises MediumError where the source's policy is to stop."""
    media = Media(source, samples, preprocess)
    place = 0
    for batch, reasons in DataLoader(
        media, batch_size=batch_size, num_workers=num_fed(num_workers), collate_fn=stacked
    ):
        part = samples[place : place + len(reasons)]
        place += len(reasons)
        good = []
        for sample, reason in zip(part, reasons, strict=True):
            if reason:
                note_unreadable(source, sample, reason, bad)
            else:
                good.append(sample)
                bad.pop(sample.medium_key, None)
        yield len(part), good, batch


def note_unreadable(source: Source, sample: Sample, reason: str, bad: dict[str, str]) -> None:
    """Into `bad`, or raises MediumError where the source's policy is to stop."""
    policy = getattr(source, "on_bad_medium", None)
    if policy != "skip":
        raise MediumError(reason + ("; data.on_bad_medium=skip leaves such samples out" if policy else ""))
    bad[sample.medium_key] = reason


def checksum(rows: np.ndarray) -> str:
    return str(zlib.crc32(rows.reshape(-1).view(np.uint8).data))


class FeatureStore:
    """Features of one encoder on one source. `dtype` is that of storage; `read` returns fp32."""

    def __init__(self, folder: Path, source: Source, encoder: Encoder, dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise UserError(f"loader.cache_dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
        key = hashlib.sha256(f"1|{source.fingerprint}|{encoder.fingerprint}|{dtype}".encode()).hexdigest()[:20]
        self.folder = folder / "features" / f"{source.name.replace(chr(47), chr(45))}-{key}"
        self.source, self.encoder, self.dtype = source, encoder, dtype
        self.shape = (encoder.num_tokens, encoder.dim)
        self._rows: dict[str, tuple[Path, int]] = {}
        self._maps: dict[Path, np.ndarray] = {}
        self._known: set[Path] = set()
        self._checksums: dict[Path, str | None] = {}
        self.bad: dict[str, str] = {}  # medium key -> why it has no features, where the source's policy is to skip

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # maps are opened anew in each worker

    def scan(self) -> None:
        """Learn about shards on disk. A damaged one is put aside and computed again."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._known:
                continue
            try:
                ids, _ = self._open(path)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError) as error:
                print(f"warning: {path}: damaged feature shard ({error}); it is computed again", file=sys.stderr)
                path.unlink(missing_ok=True)
                continue
            self._known.add(path)
            self._rows |= {key: (path, index) for index, key in enumerate(ids)}

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """One sample for each medium that has no row yet."""
        self.scan()
        first: dict[str, Sample] = {}
        for sample in samples:
            first.setdefault(sample.medium_key, sample)
        return [sample for key, sample in first.items() if key not in self._rows]

    def ensure(
        self, samples: Sequence[Sample], device: torch.device | str = "cpu", batch_size: int = 32, num_workers: int = 0
    ) -> int:
        """Compute what is missing; returns how many media that were. Memory does not grow with their number. Media
        that cannot be read are kept in `bad` and tried again by the next call."""
        if not self.missing(samples):
            return 0
        make_folder(self.folder, "set IMA_CACHE to a folder that can be written")
        with FileLock(self.folder / "lock"):
            todo = self.missing(samples)
            remove_temporaries(self.folder)  # of a writer that was killed; who holds the lock is the only one
            encoder, num = self.encoder.to(device), 0
            preprocess = self.encoder.preprocess
            keys: list[str] = []
            features: list[Tensor] = []
            with progress(len(todo), f"encode {self.source.name}", "medium") as advance:
                for seen, good, media in read_media(self.source, todo, preprocess, batch_size, num_workers, self.bad):
                    if media is not None:
                        f_BNE = encoder(media.to(device)).cpu()
                        good, f_BNE = self._finite(good, f_BNE)
                        keys += [sample.medium_key for sample in good]
                        features.append(f_BNE.to(DTYPES[self.dtype]))
                        num += len(good)
                    advance(seen)
                    while len(keys) >= SHARD_SIZE:
                        f_BNE = torch.cat(features)
                        self._write(keys[:SHARD_SIZE], f_BNE[:SHARD_SIZE])
                        keys, features = keys[SHARD_SIZE:], [f_BNE[SHARD_SIZE:].clone()]
            if keys:
                self._write(keys, torch.cat(features))
            self.scan()
        return num

    def read(self, samples: Sequence[Sample]) -> Tensor:
        """f_BNE in fp32. Samples must have been ensured."""
        out = np.empty((len(samples), *self.shape), dtype=NUMPY[self.dtype])
        for index, sample in enumerate(samples):
            path, row = self._rows[sample.medium_key]
            if path not in self._maps:
                self._maps[path] = self._verified(path)
            out[index] = self._maps[path][row]
        tensor = torch.from_numpy(out)
        return (tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor).float()

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._known)

    def _finite(self, samples: list[Sample], f_BNE: Tensor) -> tuple[list[Sample], Tensor]:
        """Without the media whose features are not finite: those are damaged, whatever they decode to."""
        finite = f_BNE.flatten(1).isfinite().all(1).tolist()
        for sample, is_finite in zip(samples, finite, strict=True):
            if not is_finite:
                reason = f"{sample.facts.get('file', sample.medium_key)}: features of it are not finite"
                note_unreadable(self.source, sample, reason, self.bad)
        good = [sample for sample, is_finite in zip(samples, finite, strict=True) if is_finite]
        return good, f_BNE if len(good) == len(samples) else f_BNE[torch.tensor(finite)]

    def _write(self, ids: list[str], features: Tensor) -> None:
        finite = torch.isfinite(features).flatten(1).all(1)
        if not finite.all():
            raise UserError(
                f"loader.cache_dtype: features of {type(self.encoder).__name__} overflow {self.dtype}; use float32 "
                f"(the first: of {ids[int(finite.int().argmin())]})"
            )
        assert tuple(features.shape[1:]) == self.shape, (features.shape, self.shape)
        name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
        features = features.contiguous()
        metadata = {"ids": json.dumps(ids), "encoder": self.encoder.fingerprint, "source": self.source.fingerprint}
        metadata["crc32"] = checksum(features.flatten().view(torch.uint8).numpy())
        write_tensors(self.folder / f"{name}.safetensors", {"features": features}, metadata)

    def _verified(self, path: Path) -> np.ndarray:
        """The rows of a shard, looked through once when a process first reads it (it is about to read them anyway).
        Raises UserError where they are not what was written; the shard is removed."""
        rows = self._open(path)[1]
        written = self._checksums.get(path)
        if written is not None and checksum(rows) != written:
            path.unlink(missing_ok=True)
            raise UserError(
                f"{path}: its numbers are not those that were written (checksum); it was removed, the same command"
                " computes them again"
            )
        return rows

    def _open(self, path: Path) -> tuple[list[str], np.ndarray]:
        """Ids and a memory map of the rows. Raises ValueError where the file is not what its header says."""
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > path.stat().st_size:
                raise ValueError("no safetensors file, or the beginning of one")
            header = json.loads(file.read(length))
        ids: list[str] = json.loads(header["__metadata__"]["ids"])
        self._checksums[path] = header["__metadata__"].get("crc32")
        start, end = header["features"]["data_offsets"]
        shape = (len(ids), *self.shape)
        size = int(np.prod(shape)) * np.dtype(NUMPY[self.dtype]).itemsize
        if end - start != size or path.stat().st_size != 8 + length + end:
            raise ValueError(f"{path.stat().st_size} bytes where its header says {8 + length + end}")
        return ids, np.memmap(path, dtype=NUMPY[self.dtype], mode="r", offset=8 + length + start, shape=shape)
