"""Names of metrics: the only place that makes one from a row, for result.json, W&B, correlations and the report.

`T0/noun_accuracy` (track/score) with `/low` and `/high` of its interval, `ima/mean` and `ima/mean/nosink` (alignment
pooled over layers, at the block outputs), `val/loss`, `train/loss`. In a mixture an entry's name comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ima.core.types import Row

IMA_MEAN, VAL_LOSS, TRAIN_LOSS = "ima/mean", "val/loss", "train/loss"
LIMITS = ("low", "high")  # of a 95 % interval
BLOCK_OUTPUTS = (None, "resid_post")  # sites of what is said of the residual stream
# What stands next to a track to say what its number is worth: the same samples without media (blind) or not asked at
# all (prior), and media that were damaged. The first are of another track's samples and have no media of their own.
TRACKS_WITHOUT_MEDIA = ("blind", "prior")
CONTROL_TRACKS = ("single_frame", "shuffled_frames", "shuffled", *TRACKS_WITHOUT_MEDIA)

AnyRow = Row | Mapping[str, Any]


def fields(row: AnyRow) -> Mapping[str, Any]:
    return row if isinstance(row, Mapping) else vars(row)


def metric_name(row: AnyRow, mixture: bool = False) -> str | None:
    """The metric that a row holds a value of; None for a row that is a point of a curve, such as one layer's.

    mixture: put the entry's name first (tracks of an entry begin with it already, training is of all entries)."""
    found = fields(row)
    score, variant = found["score"], found["variant"]
    if found["split"] == "train":
        return f"train/{score.removeprefix('train_')}"
    if found["track"] is not None:
        return f"{found['track']}/{of_interval(score)}"
    entry = f"{found['task']}/" if mixture else ""
    if score == "val_loss":
        return entry + VAL_LOSS
    if found["layer_a"] is not None or found["role_b"] != "T" or found["site"] not in BLOCK_OUTPUTS:
        return None
    pooled = f"{score}/mean" if score.startswith("ima") else score
    return entry + pooled + ("" if variant in (None, "raw") else f"/{variant}")


def layer_name(row: AnyRow, mixture: bool = False) -> str | None:
    """The name of one layer's similarity of media and text, ima_layer/L07; None for other rows."""
    found = fields(row)
    if found["track"] is not None or found["split"] == "train" or found["site"] not in BLOCK_OUTPUTS:
        return None
    if (found["score"], found["variant"], found["role_b"]) != ("sim", "raw", "T"):
        return None
    return (f"{found['task']}/" if mixture else "") + f"ima_layer/L{found['layer_a']:02d}"


def limit_score(score: str, limit: str) -> str:
    """The score of the row that holds a limit of a metric's interval; `limit`: one of LIMITS."""
    return f"{score}_{limit}"


def of_interval(score: str) -> str:
    """The other way round: accuracy_low -> `accuracy/low`; a score that is no limit is given back as it is."""
    name, _, end = score.rpartition("_")
    return f"{name}/{end}" if name and end in LIMITS else score


def limits_of(metric: str) -> tuple[str, str]:
    """Names of the lower and the upper limit of a metric's 95 % interval."""
    return f"{metric}/low", f"{metric}/high"


def is_limit(metric: str) -> bool:
    return metric.rpartition("/")[2] in LIMITS


def error_of(metric: str) -> str:
    """Name of a metric's standard error."""
    return f"{metric}/se"
