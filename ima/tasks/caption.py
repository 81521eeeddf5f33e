"""Captioning: a prompt that the picture's description continues, and scores of what it names.

Noun accuracy is strict: all that is there must be named, and a caption that also names a noun of the vocabulary that
is not there is wrong. Sources whose facts know no nouns (COCO) are scored by CIDEr-D alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ima.errors import UserError, nearest
from ima.tasks.base import Metric, Prediction, Task
from ima.tasks.metrics.cider import Frequencies, cider_d
from ima.tasks.metrics.intervals import mean, ratio
from ima.tasks.metrics.judge import SLOTS, Judgement, judge
from ima.tasks.metrics.motions import judge_motion
from ima.types import Sample

LEAD_IN = re.compile(r"^(?:(?:a|the) (?:picture|photo|image) of|an? (?:image|picture) (?:that shows|with)|this is|here "
                     r"(?:is|are)|there (?:is|are)|we can see)\s+")  # fmt: skip
TARGETS = ("first", "any")


class CaptionTask(Task):
    """prompt: what the model continues. targets: "first" trains on the short caption, "any" on a reference that
    is drawn anew every epoch. max_new_tokens, num_beams: how captions are generated."""

    name = "caption"
    headline = "noun_accuracy"
    RANGES = {"max_new_tokens": (1, None), "num_beams": (1, None)}

    def __init__(
        self,
        prompt: str = "This is a picture of",
        max_new_tokens: int = 12,
        num_beams: int = 1,
        targets: Literal["first", "any"] = "first",
    ) -> None:
        for key, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
            if value < 1:
                raise UserError(f"{key}: {value} is too small; at least 1")
        if targets not in TARGETS:
            raise UserError(f"targets: {targets!r} is unknown; {nearest(targets, TARGETS)}")
        self.prompt, self.targets = prompt, targets
        self.max_new_tokens, self.num_beams = max_new_tokens, num_beams

    def prompt_for(self, sample: Sample) -> str:
        return self.prompt

    def target_for(self, sample: Sample, draw: int) -> str:
        """The text to learn, a function of (sample, draw); begins with a space where it continues the prompt."""
        if not sample.references:
            raise UserError(f"sample {sample.id} has no caption to learn; use it for generation only")
        index = 0
        if self.targets == "any":
            digest = hashlib.sha256(f"{sample.id}|{draw}".encode()).digest()
            index = int.from_bytes(digest[:8], "big") % len(sample.references)
        text = sample.references[index]
        if not self.prompt:
            return text
        return ("" if self.prompt[-1].isspace() else " ") + LEAD_IN.sub("", text)

    def clean(self, text: str) -> str:
        """The first sentence of the first line that says anything, without the final full stop."""
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        line = re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]
        return re.sub(r"\s+", " ", line).strip().rstrip(".!?,;: ")

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]:
        """Metrics of one track. `idf_references`: references of the full split that CIDEr-D's weights come from."""
        if not predictions:
            return []
        clusters = [p.sample.cluster or p.sample.id for p in predictions]
        num = len(predictions)
        out: list[Metric] = []
        judged = [judge(p.sample.facts, p.text) for p in predictions]
        known = [(j, cluster) for j, cluster in zip(judged, clusters, strict=True) if j is not None]
        if len(known) == num:
            out += noun_metrics([j for j, _ in known], clusters, tracks={p.sample.track for p in predictions})
        motions = [judge_motion(p.sample.facts, p.text) for p in predictions]
        if all(motion is not None for motion in motions):
            rights = [motion is not None and motion[1] for motion in motions]
            out.append(Metric.of("motion_accuracy", mean(rights, clusters), num))
        cider = cider_of(predictions, idf_references)
        if not np.isnan(cider).all():
            out.append(Metric.of("cider_d", mean(cider, clusters), num))
        return out

    def per_example(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """One plain dictionary a prediction: what was said, what was true, what was right."""
        out = []
        for prediction in predictions:
            sample = prediction.sample
            row: dict[str, Any] = {
                "id": sample.id,
                "split": sample.split,
                "track": sample.track,
                "cluster": sample.cluster,
                "text": prediction.text,
                "references": list(sample.references),
            }
            judged = judge(sample.facts, prediction.text)
            if judged is not None:
                row |= {
                    "nouns": list(sample.facts["nouns"]),
                    "named": sorted(judged.named),
                    "absent": list(judged.absent),
                    "right": judged.right,
                    "category_right": judged.category_right,
                }
            motion = judge_motion(sample.facts, prediction.text)
            if motion is not None:
                row |= {"motion": sample.facts["objects"][0]["motion"], "motion_said": motion[0]}
                row |= {"motion_right": motion[1]}
            out.append(row)
        return out


def cider_of(predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) CIDEr-D; NaN everywhere where there is no reference split to weigh words by."""
    if not idf_references or not all(p.sample.references for p in predictions):
        return np.full(len(predictions), np.nan)
    references = [p.sample.references for p in predictions]
    return cider_d([p.text for p in predictions], references, Frequencies.of(idf_references))


def noun_metrics(judged: Sequence[Judgement], clusters: Sequence[str], tracks: set[str]) -> list[Metric]:
    """Nouns that no training picture shows (track T2) cannot be named: there, only categories are scored."""
    num = len(judged)
    out = []
    if tracks != {"T2"}:
        out.append(Metric.of("noun_accuracy", mean([j.right for j in judged], clusters), num))
        out.append(Metric.of("hallucination", mean([bool(j.absent) for j in judged], clusters), num))
    if all(j.category_right is not None for j in judged):
        out.append(Metric.of("category_accuracy", mean([float(j.category_right or 0) for j in judged], clusters), num))
    if tracks == {"T2"}:
        return out
    for slot in SLOTS:
        rows = [j.slots[slot] for j in judged if slot in j.slots]
        if len(rows) == num:
            hits, said, true = np.array(rows, dtype=np.float64).T
            out.append(Metric.of(f"{slot}_precision", ratio(hits, said, clusters), num))
            out.append(Metric.of(f"{slot}_recall", ratio(hits, true, clusters), num))
            out.append(Metric.of(f"{slot}_f1", ratio(2 * hits, said + true, clusters), num))
    return out
