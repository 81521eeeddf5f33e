"""Synthetic run folders for the report's tests: realistic in shape and size, made without any model."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ima.core.csv_text import csv_text
from ima.core.files import write_atomic, write_json
from ima.core.types import Row
from ima.report.build import write_report
from ima.report.figures.drawing import Figure
from ima.runs.results import RowWriter

NUM_LAYERS, NUM_EPOCHS, NUM_STEPS = 30, 6, 190
NOUNS = ("cow", "frog", "fire truck", "orange", "guitar", "rocket")


def write_page(paths: Iterable[str | Path], out: Path | None = None, drawn: bool = True) -> Path:
    """As `write_report`, with the tables of the figures and without their pictures beside the page, which are drawn
    twice more. drawn: the page's own pictures too; without, each is an empty <svg>."""

    def save(figure: Figure, folder: Path) -> None:
        if figure.draw is not None:
            write_atomic(folder / f"{figure.name}.csv", csv_text(*figure.table))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "save", save)
        if not drawn:
            patch.setattr(Figure, "inline", lambda figure: "<svg ></svg>")
        return write_report(paths, out)


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    encoder: str = "efficientnet-lite0",
    layers: int = NUM_LAYERS,
    epochs: int = NUM_EPOCHS,
    samples: int = 12,
    skill: float = 0.8,
    **result: Any,
) -> Path:
    """A finished run; keywords override fields of result.json."""
    rng = random.Random(seed)
    name = folder.name
    rows: list[Row] = []
    for step in range(NUM_STEPS):
        epoch = 1 + step * epochs // NUM_STEPS if epochs else 1
        loss = 0.5 + 4.2 * math.exp(-step / 45) + rng.gauss(0, 0.12)
        rows.append(Row(name, "train_loss", loss, step=step, epoch=epoch, split="train"))
        rows.append(Row(name, "lr", 2e-3, step=step, epoch=epoch, split="train"))
    for epoch in range(epochs + 1):
        rows.append(Row(name, "val_loss", 0.7 + 4.1 * math.exp(-epoch / 1.4), epoch=epoch, split="val"))
        rows += alignment(name, epoch, layers, rng, skill)
        if epoch:
            gain = 1 - math.exp(-epoch / 2.2)
            for track, best in (("T0", skill), ("T1", 0.55 * skill), ("blind", 0.03)):
                rows.append(
                    Row(
                        name,
                        "noun_accuracy",
                        best * gain if track != "blind" else best,
                        epoch=epoch,
                        split="test",
                        track=track,
                        task="caption",
                        se=0.035,
                        n=210,
                    )
                )
                rows.append(
                    Row(name, "cider", 3 * best * gain, epoch=epoch, split="test", track=track, task="caption", n=210)
                )
    RowWriter(folder / "rows.jsonl").write(rows)
    metrics = {"T0/noun_accuracy": skill, "T0/noun_accuracy/low": skill - 0.07, "T0/noun_accuracy/high": skill + 0.06,
               "T1/noun_accuracy": 0.55 * skill, "T1/noun_accuracy/low": 0.55 * skill - 0.1,
               "T1/noun_accuracy/high": 0.55 * skill + 0.1, "blind/noun_accuracy": 0.03, "T0/cider": 2.41,
               "ima/mean": 0.35 + 0.3 * skill + rng.gauss(0, 0.01), "ima/mean/low": 0.55, "ima/mean/high": 0.61,
               "train/loss": 0.52, "val/loss": 0.75}  # fmt: skip
    config = {
        "encoder": {"_target_": "ima.models.encoders.embedded.EfficientNetLite0", "name": encoder, "layer": -1},
        "adapter": {"_target_": "ima.models.adapters.base.Pool", "_partial_": True, "hidden": 1024},
        "llm": {"name": "smollm2-135m"},
        "trainer": {"max_epochs": epochs, "seed": seed},
        "name": name,
    }
    facts = {
        "llm": "SmolLM2-135M-Instruct",
        "encoder": encoder,
        "adapter": "pool",
        "device": "cpu (2 cores)",
        "dtype": "float32",
        "num_trainable_parameters": 1_904_832,
        "num_frozen_parameters": 134_515_008,
        "num_train_samples": 500,
        "seconds": {"cache features": 11.2, "train": 151.3, "evaluate": 60.1},
    }
    write_json(folder / "result.json", {
        "status": "ok", "config": config, "overrides": [f"encoder={encoder}", f"trainer.seed={seed}"],
        "command": f"python train.py encoder={encoder} trainer.seed={seed}", "metrics": metrics,
        "versions": {"python": "3.11.2", "torch": "2.11.0", "transformers": "5.23.0", "ima": "0.1.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False}, "seeds": {"run": seed},
        "wall_seconds": 223.4, "facts": facts, **result})  # fmt: skip
    write_samples(folder, rng, samples, epochs)
    return folder


def alignment(run: str, epoch: int, layers: int, rng: random.Random, skill: float) -> list[Row]:
    """Rows like those of the alignment callback for one epoch."""
    rows: list[Row] = []
    common: dict[str, Any] = {"run": run, "epoch": epoch, "split": "val", "site": "resid_post", "task": "caption",
                              "dataset_a": "stampworld", "dataset_b": "stampworld", "modality_a": "image",
                              "modality_b": "text", "n": 240}  # fmt: skip
    grown = skill * (1 - math.exp(-epoch / 1.8))
    pooled = 0.0
    for layer in range(layers + 1):
        depth = layer / max(layers, 1)
        base = 0.08 + 0.55 * math.sin(math.pi * min(depth * 1.3, 1)) * (0.55 + 0.45 * grown) + rng.gauss(0, 0.004)
        gap = 0.06 * grown * math.exp(-(((depth - 0.75) / 0.2) ** 2))
        pooled += base / (layers + 1)
        for variant, shift in (("raw", 0.0), ("nosink", -0.12)):
            for score, value in (("sim", base), ("sim_matched", base + gap), ("gap_read", gap)):
                for role in ("T", "T.answer"):
                    rows.append(
                        Row(
                            score=score,
                            value=value + (shift if score != "gap_read" else 0),
                            role_a="P",
                            role_b=role,
                            layer_a=layer,
                            layer_b=layer,
                            variant=variant,
                            se=0.008,
                            **common,
                        )
                    )
        rows.append(
            Row(
                score="sim_p0",
                value=0.6 * base,
                role_a="P",
                role_b="T",
                layer_a=0,
                layer_b=layer,
                variant="raw",
                se=0.006,
                **common,
            )
        )
        for role, scale in (("P", 1.3), ("T", 1.0)):
            for quartile, factor in (("q25", 0.8), ("q50", 1.0), ("q75", 1.3)):
                value = scale * factor * 3 * math.exp(4 * depth) * (1 + 0.1 * epoch * (role == "P"))
                rows.append(Row(score=f"norm_{quartile}", value=value, role_a=role, layer_a=layer, **common))
            for step in (1, 8):
                if layer + step <= layers:
                    value = (0.93 if role == "P" else 0.86) ** math.sqrt(step) - 0.25 * (depth < 0.05)
                    rows.append(
                        Row(
                            score="consecutive",
                            value=value,
                            role_a=role,
                            role_b=role,
                            layer_a=layer,
                            layer_b=layer + step,
                            **common,
                        )
                    )
    for score, variant, factor in (("ima", "raw", 1.0), ("ima", "nosink", 0.8), ("ima_p0", "raw", 0.6)):
        rows.append(
            Row(score=score, value=factor * pooled, role_a="P", role_b="T", variant=variant, se=0.006, **common)
        )
    return rows


def write_samples(folder: Path, rng: random.Random, count: int, epochs: int) -> None:
    lines = []
    for index in range(count):
        noun = NOUNS[index % len(NOUNS)]
        media = folder / "media" / f"{index}.png"
        media.parent.mkdir(parents=True, exist_ok=True)
        media.write_bytes(png(96, 96, (40 * index % 256, 120, 255 - 20 * index % 256)))
        for epoch in sorted({1, max(1, epochs // 2), max(1, epochs)}):
            right = rng.random() < 0.25 * epoch
            lines.append(
                {
                    "id": f"{'T0' if index % 3 else 'T1'}-{index}",
                    "track": "T0" if index % 3 else "T1",
                    "references": [f"A {noun}.", f"This is a {noun}."],
                    "prediction": f"A {noun}." if right else f"A {rng.choice(NOUNS)} on a blue background.",
                    "correct": right,
                    "epoch": epoch,
                    "image": f"media/{index}.png",
                }
            )
    if lines:
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A small picture with a diagonal, without any imaging package."""
    raw = b"".join(
        b"\0" + b"".join(bytes(colour if abs(x - y) > 9 else (250, 240, 90)) for x in range(width))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


ENTRIES = {  # name: (modality, headline)
    "image_caption": ("image", "noun_accuracy"),
    "image_pope": ("image", "accuracy"),
    "sounds": ("audio", "noun_accuracy"),
}


def make_mixture(folder: Path, *, seed: int = 0, layers: int = 6, epochs: int = 2, vocabulary: bool = True) -> Path:
    """A finished run of a mixture of three entries; each has other numbers, so that a mix-up shows."""
    rng = random.Random(seed)
    name, rows = folder.name, [Row(folder.name, "train_loss", 4.0 - 0.1 * step, step=step, epoch=1 + step // 10,
                                   split="train", task="caption") for step in range(10 * epochs)]  # fmt: skip
    metrics: dict[str, float] = {"train/loss": 2.0, "val/loss": 1.5}
    for place, (entry, (modality, headline)) in enumerate(ENTRIES.items()):
        facts: dict[str, Any] = {"task": entry, "dataset_a": f"data {place}", "modality_a": modality}
        skill = 0.3 + 0.2 * place + 0.05 * seed
        for epoch in range(epochs + 1):
            rows.append(
                Row(name, "val_loss", 2.0 + place - 0.2 * epoch, step=10 * epoch, epoch=epoch, split="val", **facts)
            )
            measured = alignment(name, epoch, layers, rng, skill)
            if vocabulary and epoch == epochs:
                measured += lens_rows(name, epoch, layers)
            rows += [dataclasses.replace(row, dataset_b=facts["dataset_a"], **facts) for row in measured]
        pooled = next(row.value for row in reversed(rows) if (row.score, row.variant) == ("ima", "raw"))
        metrics |= {f"{entry}/ima/mean": pooled, f"{entry}/ima/mean/se": 0.01, f"{entry}/val/loss": 1.0 + place}
        for track, value in (("T0", skill), ("T1", 0.6 * skill), ("blind", 0.1)):
            for ending, value_of in (("", value), ("_low", value - 0.05), ("_high", value + 0.05)):
                rows.append(Row(name, headline + ending, value_of, epoch=epochs, split="test", track=f"{entry}/{track}",
                                n=50, **facts))  # fmt: skip
            metrics[f"{entry}/{track}/{headline}"] = value
        metrics |= {f"{entry}/T0/{headline}/low": skill - 0.05, f"{entry}/T0/{headline}/high": skill + 0.05}
        if entry == "image_pope":
            metrics |= {f"{entry}/T0/f1": 0.61, f"{entry}/T0/yes_ratio": 0.72}
    RowWriter(folder / "rows.jsonl").write(rows)
    entries = {entry: {"modality": modality, "headline": headline} for entry, (modality, headline) in ENTRIES.items()}
    write_json(folder / "result.json", {
        "status": "ok", "config": {"name": name, "llm": {"train": "none"}, "stage": seed}, "overrides": [],
        "command": f"python train.py mixture=[a,b,c] seed={seed}", "metrics": metrics, "versions": {}, "git": {},
        "seeds": {"seed": seed}, "wall_seconds": 60.0, "facts": {"entries": entries}})  # fmt: skip
    return folder


def lens_rows(run: str, epoch: int, layers: int) -> list[Row]:
    """What the logit lens of a reservoir gives, at every second layer."""
    common: dict[str, Any] = {"run": run, "epoch": epoch, "split": "val", "site": "resid_post", "modality_b": "text",
                              "variant": "raw", "n": 24}  # fmt: skip
    rows = []
    for layer in range(2, layers + 1, 2):
        rows.append(Row(score="kl", value=3.0 / layer, role_a="P", role_b="T", layer_a=layer, layer_b=layer, **common))
        for role, value in (("P", 0.4), ("T", 0.7)):
            rows.append(Row(score="vocabulary_cosine", value=value, role_a=role, role_b=role, layer_a=layer - 2,
                            layer_b=layer, **common))  # fmt: skip
    return rows
