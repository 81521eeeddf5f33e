"""Which samples come when: a schedule that is a pure function of (seed, epoch), a training loader that can resume in
the middle of an epoch, and an evaluation loader that shows every sample exactly once over all ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ima.core.errors import UserError
from ima.core.types import Batch, Sample, Step
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
    """Global batches of `batch_size`, each in `num_passes` parts, of which rank r takes every world-th sample; where a
    small one has none for it, it is given a sample without labels, so that every rank makes every pass. Resumable:
    `state_dict` says how many passes of which epoch were handed out; after `load_state_dict` the next one follows.
    `samples`: of all entries of the `mixture`, one after the other. fixed: every epoch is as the first."""

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
        num_passes: int = 1,
        fixed: bool = False,
    ) -> None:
        if not samples:
            raise UserError("data: the train split is empty")
        check_passes(batch_size, num_passes, world)
        self.samples, self.collate = samples, collate
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.num_workers, self.num_passes, self.fixed = num_workers, num_passes, fixed
        self.mixture = mixture or Mixture([len(samples)])
        assert self.mixture.num_samples == len(samples)
        self.epoch, self.done = 0, 0
        self.begun = False  # whether the epoch is one that was handed out from here
        self._length = self.limit = len(self.batches(0)) * num_passes  # of every epoch; fewer may be asked for

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Global batches of (index, draw), the same for any number of ranks and passes."""
        return self.mixture.batches(self.batch_size, self.seed, 0 if self.fixed else epoch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        if self.begun or self.done >= self.limit:
            self.epoch, self.done = self.epoch + 1, 0
        self.begun = True
        num_steps, skipped = divmod(self.done, self.num_passes)
        whole = [[(int(index), int(draw)) for index, draw in batch] for batch in self.batches(self.epoch)][num_steps:]
        shares = [part[self.rank :: self.world] for batch in whole for part in parted(batch, self.num_passes)]
        fillers = [batch[:1] for batch in whole for _ in range(self.num_passes)]
        loader = Batches(
            _Items(self.samples),  # type: ignore[arg-type]
            batch_sampler=[share or filler for share, filler in zip(shares, fillers, strict=True)],
            collate_fn=self.collate,
            num_workers=num_fed(self.num_workers),
        )
        found = (batch if share else unsupervised(batch) for share, batch in zip(shares, iter(loader), strict=True))
        while passes := list(itertools.islice(found, self.num_passes)):
            step = step_of(passes)
            for batch in passes[skipped:]:
                self.done += 1
                yield batch if step is None else dataclasses.replace(batch, step=step)
            skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "done": self.done, "seed": self.seed, "num_samples": len(self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["seed"], state["num_samples"]) != (self.seed, len(self.samples)):
            raise UserError(
                f"resume: the checkpoint was trained on {state['num_samples']} samples with seed {state['seed']}, "
                f"this run has {len(self.samples)} with seed {self.seed}; use the old config or another name"
            )
        self.epoch, self.done, self.begun = state["epoch"], state["done"], False


def step_of(passes: Sequence[Any]) -> Step | None:
    """What all passes of a step hold together; None for what a collate of another kind has made."""
    if not all(isinstance(batch, Batch) for batch in passes):
        return None
    labels = sum(int((batch.labels_BT != -100).sum()) for batch in passes)
    return Step(labels, frozenset(group.channel for batch in passes for group in batch.media_groups()))


def check_passes(batch_size: int, num_passes: int, world: int) -> None:
    """Raises UserError where a step's samples cannot be shared out."""
    if batch_size < world:
        raise UserError(f"loader.batch_size: {batch_size} samples cannot be shared by {world} ranks; raise it")
    if batch_size % num_passes:
        raise UserError(
            f"trainer.accumulate_grad_batches: {num_passes} passes do not divide the {batch_size} samples of a step"
            " (loader.batch_size); change one of them"
        )


def parted(batch: list[tuple[int, int]], num_parts: int) -> list[list[tuple[int, int]]]:
    """`num_parts` parts of nearly equal size, in order; some are empty where there are fewer samples."""
    borders = [len(batch) * number // num_parts for number in range(num_parts + 1)]
    return [batch[start:stop] for start, stop in itertools.pairwise(borders)]


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
