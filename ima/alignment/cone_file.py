"""The sums of an evaluation as a file, so that cones across datasets and modalities need no model.

`alignment.safetensors` holds, at the block outputs, the sum of unit mean tokens per layer, jackknife group and view,
and the number of examples in it. Its header names the LLM, dataset and modality. Only views that mean the same in
every run are written, so none that are measured against the run's own reference pass.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ima.alignment.scores import Curve, Side, positive, products, with_leave_outs
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import split_view
from ima.core.errors import UserError
from ima.core.tensor_file import check_sum, checksum_of, write_tensors
from ima.core.types import Site

NAME = "alignment.safetensors"
FORMAT = "ima-alignment-1"
KEPT_VARIANTS = ("raw", "nosink", "nomassive")


@dataclasses.dataclass(frozen=True)
class ConeSums:
    """The sums of one evaluation: sum_LGD, count_LG, nonzero_LG by view. facts: run, dataset, modality, llm, split,
    epoch."""

    sum_LGD: dict[str, Tensor]
    count_LG: dict[str, Tensor]
    nonzero_LG: dict[str, Tensor]
    facts: dict[str, Any]


def kept_views(views: tuple[str, ...]) -> list[str]:
    split = ((view, *split_view(view)) for view in views)
    return [view for view, role, variant in split if role in ("P", "T") and variant in KEPT_VARIANTS]


def write_sums(folder: Path, stats: AlignmentStats, facts: dict[str, Any]) -> Path | None:
    """Returns None where the block outputs were not measured."""
    site = stats.sites.get(Site.RESID_POST)
    if site is None:
        return None
    tensors = {}
    for view in kept_views(site.plan.views):
        r = site.plan.views.index(view)
        tensors[f"sum/{view}"] = site.unit_sum_LGRD[:, :, r].float().cpu().contiguous()
        tensors[f"count/{view}"] = site.count_LGR[..., r].float().cpu().contiguous()
        tensors[f"nonzero/{view}"] = site.nonzero_LGR[..., r].float().cpu().contiguous()
    path = folder / NAME
    metadata = {"format": FORMAT, "facts": json.dumps(facts)}
    write_tensors(path, tensors, metadata | {"checksum": checksum_of(tensors, metadata)})
    return path


def read_sums(path: Path) -> ConeSums:
    """`path`: the file or the folder that has it. Raises UserError where it is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: not found; python evaluate.py checkpoint=RUN alignment=full writes it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        check_sum(path, stored, metadata)
        tensors = {key: value.double() for key, value in stored.items()}
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path}: format {metadata.get('format')!r}, expected {FORMAT}; measure again")
        facts = json.loads(metadata["facts"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable file of alignment sums ({error}); measure again") from error

    def part(kind: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{kind}/"): value for key, value in tensors.items() if key.startswith(f"{kind}/")}

    return ConeSums(part("sum"), part("count"), part("nonzero"), facts)


def across(a: ConeSums, view_a: str, b: ConeSums, view_b: str) -> Curve:
    """Mean cosine over all pairs of an example of `a` and one of `b`. Groups are left out of both."""
    count_a_LG, count_b_LG = a.count_LG[view_a], b.count_LG[view_b]
    counts = with_leave_outs(count_a_LG) * with_leave_outs(count_b_LG)
    value = products(Side.of(a.sum_LGD[view_a]), Side.of(b.sum_LGD[view_b])) / positive(counts)
    n_L = torch.minimum(count_a_LG.sum(1), count_b_LG.sum(1))
    return Curve.of(value, count_a_LG + count_b_LG > 0, n_L)


def within(a: ConeSums, view: str) -> Curve:
    """Mean cosine over the distinct pairs of one dataset, as `scores.cone`."""
    count, own = with_leave_outs(a.count_LG[view]), with_leave_outs(a.nonzero_LG[view])
    side = Side.of(a.sum_LGD[view])
    value = (products(side, side) - own) / positive(count * (count - 1))
    return Curve.of(value, a.count_LG[view] > 0, count[0])
