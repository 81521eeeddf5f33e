"""Overlaps and densities of several masks as rows, and as a folder that the report reads like a run's. Numpy only.

dataset_a, dataset_b: names of the masks; layer_a: a block; variant: a kind of matrix (self_attn.q_proj), a part (attn,
ffn) or both empty for the whole. Scores: mask_iou and mask_iou_pruned, each with _chance and _corrected; mask_density.
With `without`, score names begin with mask_rest instead of mask: weights of that mask are left out.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.provenance import provenance
from ima.core.types import Row
from ima.interventions.prune.compare import Overlap, density_by_chance, overlaps
from ima.interventions.prune.mask import By, Mask, intersection, union
from ima.runs.record import RunRecord, read_record
from ima.runs.results import RowWriter

GROUPINGS: tuple[By, ...] = ("whole", "part", "kind", "block", "matrix")

MAX_IN_FULL = 10  # masks; of more, single matrices are not compared


def group_fields(by: By, key: str) -> dict[str, Any]:
    if by in ("block", "matrix"):
        block, _, kind = key.partition(".")
        return {"layer_a": int(block), "layer_b": int(block), "variant": kind or None}
    return {"variant": key or None}


def overlap_rows(
    masks: Mapping[str, Mask], run: str, by: Sequence[By] = GROUPINGS, without: Mask | None = None
) -> Iterator[Row]:
    prefix = "mask" if without is None else "mask_rest"
    for name, mask in masks.items():
        facts: dict[str, Any] = {"dataset_a": name, "role_a": mask.facts.get("roles"), "run": run}
        for grouping in by:
            for key, value in mask.densities(grouping).items():
                yield Row(score="mask_density", value=value, **facts, **group_fields(grouping, key))
    for (name_a, a), (name_b, b) in pairs_of(masks):
        base: dict[str, Any] = {"run": run, "dataset_a": name_a, "dataset_b": name_b}
        base |= {"role_a": a.facts.get("roles"), "role_b": b.facts.get("roles")}
        for grouping, found in overlaps(a, b, by, without).items():
            for key, overlap in found.items():
                for score, value in values_of(overlap).items():
                    fields = base | group_fields(grouping, key)
                    yield Row(score=f"{prefix}_{score}", value=value, n=overlap.num, **fields)


def pairs_of(masks: Mapping[str, Mask]) -> Iterator[tuple[tuple[str, Mask], tuple[str, Mask]]]:
    """All pairs, without those that were asked for at different sparsities."""
    for one, other in itertools.combinations(masks.items(), 2):
        if one[1].facts.get("asked") == other[1].facts.get("asked"):
            yield one, other


def values_of(overlap: Overlap) -> dict[str, float]:
    return {
        "iou": overlap.iou, "iou_chance": overlap.chance, "iou_corrected": overlap.corrected,
        "iou_pruned": overlap.iou_pruned, "iou_pruned_chance": overlap.chance_pruned,
        "iou_pruned_corrected": overlap.corrected_pruned,
    }  # fmt: skip


def write_comparison(masks: Mapping[str, Mask], folder: Path, command: str = "", without: Mask | None = None) -> Path:
    """rows.jsonl and result.json of a comparison. Raises UserError where there are not two masks of one model."""
    if len(masks) < 2:
        raise UserError(f"{len(masks)} mask(s) given; a comparison needs two")
    by = GROUPINGS if len(masks) <= MAX_IN_FULL else tuple(each for each in GROUPINGS if each != "matrix")
    rows = list(overlap_rows(masks, folder.name, by))
    if without is not None:
        rows += overlap_rows(masks, folder.name, ("whole", "block"), without)
    together = list(masks.values())
    metrics: dict[str, float | None] = {
        "masks/intersection_density": intersection(together).density,
        "masks/intersection_density_by_chance": density_by_chance(together),
        "masks/union_density": union(together).density,
    }
    for row in rows:
        if (
            row.score in ("mask_iou", "mask_iou_chance", "mask_iou_corrected")
            and row.layer_a is None
            and not row.variant
        ):
            metrics[f"{row.score}/{row.dataset_a}/{row.dataset_b}"] = row.value
    (folder / "rows.jsonl").unlink(missing_ok=True)
    RowWriter(folder / "rows.jsonl").write(rows)
    facts = {"kind": "masks", "masks": {name: mask.facts for name, mask in masks.items()}}
    RunRecord("ok", command=command, metrics=dict(metrics), facts=facts, **provenance()).write(folder)
    return folder


def compare_runs(folders: Sequence[Path], target: Path) -> Path | None:
    """Comparison of the masks that these runs were evaluated under, in `target`; None where there are not two. Masks of
    different sparsities are not compared. A magnitude mask among them also serves as what is left out."""
    paths = list(dict.fromkeys(path for folder in folders for path in mask_paths(folder)))
    masks = named([path for path in paths if Path(path).is_file()])
    asked = collections.Counter(mask.facts.get("asked") for mask in masks.values())
    if not asked or max(asked.values()) < 2:
        return None
    magnitude = next((mask for mask in masks.values() if mask.facts.get("method") == "magnitude"), None)
    return write_comparison(masks, target, without=magnitude)


def mask_paths(folder: Path) -> list[str]:
    """Of the masks that acted in a run, from its result."""
    try:
        facts = read_record(folder).facts
    except UserError:
        return []
    acting = (facts.get("plan") or {}).get("interventions") or []
    return [str(each["path"]) for each in acting if each.get("kind") == "mask" and each.get("path")]


def named(paths: Sequence[Path | str]) -> dict[str, Mask]:
    """Masks under short names that tell them apart: what their facts call them, else the file."""
    masks = [(Path(path), Mask.load(path)) for path in paths]
    names = [label(mask, path) for path, mask in masks]
    out: dict[str, Mask] = {}
    for (path, mask), name in zip(masks, names, strict=True):
        unique = (
            name if names.count(name) == 1 else f"{name} ({path.stem if path.stem != 'mask' else path.parent.name})"
        )
        if unique not in out:
            out[unique] = mask
        elif mask != out[unique]:
            raise UserError(f"{path}: a second mask of the name {unique!r}; give files of different names")
    return out


def label(mask: Mask, path: Path) -> str:
    name = mask.facts.get("name")
    return str(name) if name else path.stem


def matrix_text(masks: Mapping[str, Mask]) -> list[str]:
    """IoU of the kept sets with (chance, corrected), one line a pair."""
    lines = [f"{'masks':60s}  {'IoU':>6s}  {'chance':>6s}  {'corrected':>9s}"]
    for (name_a, a), (name_b, b) in pairs_of(masks):
        found = overlaps(a, b)["whole"][""]
        corrected = "nan" if math.isnan(found.corrected) else f"{found.corrected:.3f}"
        lines.append(f"{f'{name_a} | {name_b}':60s}  {found.iou:6.3f}  {found.chance:6.3f}  {corrected:>9s}")
    return lines
