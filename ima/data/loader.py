"""Which samples come when: a schedule that is a pure function of (seed, epoch), a training loader that can resume in
the middle of an epoch, and an evaluation loader that shows every sample exactly once over all ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ima.core.errors import UserError
from ima.core.types import Batch, Sample
from ima.data.collate import Collate, MixedCollate
from ima.data.mixture import Mixture
from ima.data.workers import num_fed


def schedule(num_samples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Global batches of sample indices for one epoch of one source; the last one may be smaller."""
    return [batch[:, 0] for batch in Mixture([num_samples]).batches(batch_size, seed, epoch)]


class _Items:
    """Dataset view: (sample index, draw) -> (sample, draw)."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int]:
        index, draw = key
        return self.samples[index], draw


class Batches(DataLoader[Batch]):
    """A mistake of the user's that a worker process met comes out as the one line that it is, without the worker's
    traceback in front."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except UserError as error:
            name, _, message = str(error).strip().splitlines()[-1].partition(": ")
            if name.rpartition(".")[2] not in ("UserError", "MediumError"):
                raise
            raise UserError(message) from None


class TrainLoader:
    """Global batches of `batch_size`, of which rank r takes every world-th sample; where a small one has none for it,
    it is given a sample without labels, so that every rank makes every step. Resumable: `state_dict` says how
    many batches of which epoch were handed out; after `load_state_dict` the next one follows. `samples`: of all entries
    of the `mixture`, one after the other."""

    def __init__(
        self,
        samples: Sequence[Sample],
        collate: Collate | MixedCollate,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        if not samples:
            raise UserError("data: the train split is empty")
        if batch_size < world:
            raise UserError(f"loader.batch_size: {batch_size} samples cannot be shared by {world} ranks; raise it")
        self.samples, self.collate = samples, collate
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.num_workers = num_workers
        self.mixture = mixture or Mixture([len(samples)])
        assert self.mixture.num_samples == len(samples)
        self.epoch, self.done = 0, 0
        self._length = len(self.batches(0))  # that of every epoch

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Global batches of (index, draw), the same for any number of ranks."""
        return self.mixture.batches(self.batch_size, self.seed, epoch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        if self.done >= len(self):
            self.epoch, self.done = self.epoch + 1, 0
        whole = [[(int(index), int(draw)) for index, draw in batch] for batch in self.batches(self.epoch)][self.done :]
        shares = [batch[self.rank :: self.world] for batch in whole]
        loader = Batches(
            _Items(self.samples),  # type: ignore[arg-type]
            batch_sampler=[share or batch[:1] for share, batch in zip(shares, whole, strict=True)],
            collate_fn=self.collate,
            num_workers=num_fed(self.num_workers),
        )
        for share, found in zip(shares, loader, strict=True):
            self.done += 1
            yield found if share else unsupervised(found)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "done": self.done, "seed": self.seed, "num_samples": len(self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["seed"], state["num_samples"]) != (self.seed, len(self.samples)):
            raise UserError(
                f"resume: the checkpoint was trained on {state['num_samples']} samples with seed {state['seed']}, "
                f"this run has {len(self.samples)} with seed {self.seed}; use the old config or another name"
            )
        self.epoch, self.done = state["epoch"], state["done"]


def unsupervised(batch: Batch) -> Batch:
    """For a rank that has no share in a small batch: it makes the step with the others and teaches nothing."""
    return dataclasses.replace(batch, labels_BT=torch.full_like(batch.labels_BT, -100))


def eval_loader(
    samples: Sequence[Sample], collate: Collate, batch_size: int, rank: int = 0, world: int = 1, num_workers: int = 0
) -> Batches:
    """Every sample once over all ranks, in order; ranks may have different numbers of batches."""
    keys = [(index, 0) for index in range(rank, len(samples), world)]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    items: Any = _Items(samples)
    return Batches(items, batch_sampler=batches, collate_fn=collate, num_workers=num_fed(num_workers))
