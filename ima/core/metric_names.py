"""Names of metrics: the only place that makes one from a row, for result.json, W&B, correlations and the report.

`T0/noun_accuracy` (track/score) with `/low` and `/high` of its interval, `ima/mean` and `ima/mean/nosink` (alignment
pooled over layers, at the block outputs), `val/loss`, `train/loss`. In a mixture an entry's name comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ima.core.types import Row

IMA_MEAN, VAL_LOSS, TRAIN_LOSS = "ima/mean", "val/loss", "train/loss"
RETRIEVAL, RETRIEVAL_CHANCE = "retrieval/mean", "retrieval/chance"
GROWTH, GROWTH_NULL = "retrieval/growth", "retrieval/growth_null"
TEXT_ALONE = "T.text"  # the role of texts in a pass without media
# Scores of media against text that has read them had shorter names once; those are of text alone today.
READ_SCORES = ("cka", "cka_debiased", "mutual_knn", "procrustes", "retrieval")
RENAMED = {"sim_gap": "gap_read", "ima_gap": "ima_gap_read"} | {
    f"{score}{end}": f"{score}_read{end}" for score in READ_SCORES for end in ("", "_mean")
}
LIMITS = ("low", "high")  # of a 95 % interval
BLOCK_OUTPUTS = (None, "resid_post")  # sites of what is said of the residual stream
# What stands next to a track to say what its number is worth: the same samples without media (blind) or not asked at
# all (prior), and media that were damaged. The first are of another track's samples and have no media of their own.
TRACKS_WITHOUT_MEDIA = ("blind", "prior")
CONTROL_TRACKS = ("single_frame", "shuffled_frames", "shuffled", *TRACKS_WITHOUT_MEDIA)

OF_TEXT_ALONE = (None, "raw", "centred", "calibrated")  # variants that go without saying
LAYER_NAMES = {("sim", "raw", "T"): "ima_layer", ("retrieval", "centred", TEXT_ALONE): "retrieval_layer"}

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
    if found["layer_a"] is not None or found["role_b"] not in ("T", TEXT_ALONE) or found["site"] not in BLOCK_OUTPUTS:
        return None
    if found["role_b"] == TEXT_ALONE:
        return entry + pooled_name(score) + ("" if variant in OF_TEXT_ALONE else f"/{variant}")
    pooled = f"{score}/mean" if score.startswith("ima") else score
    return entry + pooled + ("" if variant in (None, "raw") else f"/{variant}")


def pooled_name(score: str) -> str:
    """retrieval_growth_null -> `retrieval/growth_null`, gap_mean -> `gap/mean`, cka_debiased_z_best ->
    `cka_debiased/z_best`, lens_over_chance_mean_low -> `lens_over_chance/mean/low`."""
    value, _, limit = of_interval(score).partition("/")
    if limit:
        return f"{pooled_name(value)}/{limit}"
    if score.startswith("retrieval_"):
        return score.replace("_", "/", 1)
    for end in ("mean", "z_best", "p_best"):
        if score.endswith(f"_{end}"):
            return f"{score.removesuffix(f'_{end}')}/{end}"
    return score


def layer_name(row: AnyRow, mixture: bool = False) -> str | None:
    """The name of one layer's similarity of media and text, ima_layer/L07, or of its retrieval of the text alone,
    retrieval_layer/L07; None for other rows."""
    found = fields(row)
    if found["track"] is not None or found["split"] == "train" or found["site"] not in BLOCK_OUTPUTS:
        return None
    name = LAYER_NAMES.get((found["score"], found["variant"], found["role_b"]))
    if name is None or found["layer_a"] is None:
        return None
    return (f"{found['task']}/" if mixture else "") + f"{name}/L{found['layer_a']:02d}"


def current_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row that was read from a file, with today's name of its score."""
    old = RENAMED.get(row.get("score") or "") if row.get("role_b") != TEXT_ALONE else None
    return row if old is None else {**row, "score": old}


def current_metric(name: str) -> str:
    """Today's name of a metric in a file: ima_gap/mean -> `ima_gap_read/mean`."""
    pooled = ("_gap", "_mean")
    return "/".join(RENAMED.get(part, part) if part.endswith(pooled) else part for part in name.split("/"))


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
