"""Evaluations that follow trainings: which adapters of which training, measured how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.runs.identity import arguments_of
from ima.sweep.job import Job, quoted

KEYS = ("of", "epochs", "overrides")


@dataclass(frozen=True)
class Following:
    """One evaluation of one training's adapter."""

    overrides: list[str]
    varied: dict[str, str]
    training: Job


def following(trainings: Sequence[Job], entries: Iterable[dict[str, Any]], folder: Path) -> list[Following]:
    """Of each training that was not refused. of: an override that the training must have; epochs: whose adapters, the
    last one where none is given. Raises UserError for an entry with other keys."""
    entries = list(entries)
    for number, entry in enumerate(entries):
        if unknown := entry.keys() - set(KEYS):
            raise UserError(f"evaluations.{number}: {nearest(min(unknown), KEYS)}")
        if trainings and trainings[0].script != "train":
            raise UserError("evaluations: they follow trainings; with script=evaluate vary the keys of evaluate.py")
    found = []
    for training in trainings:
        for entry in entries if training.config else ():
            if entry.get("of") is not None and entry["of"] not in training.overrides:
                continue
            last = last_epoch(training.config)
            for epoch in sorted({min(int(epoch), last) for epoch in entry.get("epochs") or [last]}):
                path = training.folder / "checkpoints" / f"epoch-{epoch:03d}.safetensors"
                shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
                overrides = [f"checkpoint={quoted(str(shown))}", *map(str, entry.get("overrides") or [])]
                varied = training.varied | {"epoch": str(epoch)}
                found.append(Following([*overrides, *trusted(training)], varied, training))
    return found


def last_epoch(config: dict[str, Any]) -> int:
    trainer = arguments_of(config["trainer"])
    return max(0, int(trainer.get("max_epochs") or 0))


def trusted(training: Job) -> list[str]:
    """What the person named for the training may be named by the run that it leaves behind."""
    names = training.config.get("trust") or []
    return [f"trust=[{','.join(names)}]"] if names else []
