"""Captioning: a prompt that the medium's description continues, and scores of what it names and how it is worded.

Noun accuracy is strict: all that is there must be named, and a caption that also names a noun of the vocabulary that
is not there is wrong. CHAIR counts what is not there. Sources whose facts know no nouns are scored by wording alone:
CIDEr-D, BLEU, ROUGE-L.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ima.core.errors import UserError, nearest
from ima.core.resampling import mean, of_sums, ratio
from ima.core.types import Sample
from ima.tasks.answers import check_generation
from ima.tasks.base import Metric, Prediction, Task
from ima.tasks.metrics.chair import COCO, Chair, chair
from ima.tasks.metrics.cider import MAX_N, Frequencies, cider_d
from ima.tasks.metrics.judge import SLOTS, Judgement, judge
from ima.tasks.metrics.motions import judge_motion
from ima.tasks.metrics.overlap import bleu_of, bleu_parts, rouge_l

LEAD_IN = re.compile(r"^(?:(?:a|the) (?:picture|photo|image) of|an? (?:image|picture) (?:that shows|with)|this is|here "
                     r"(?:is|are)|there (?:is|are)|we can see)\s+")  # fmt: skip
TARGETS = ("first", "any")
HEADLINES = ("noun_accuracy", "cider_d")


class CaptionTask(Task):
    """prompt: what the model continues. targets: "first" trains on the short caption, "any" on a reference that
    is drawn anew every epoch. max_new_tokens, num_beams: how captions are generated. headline: what stands for the
    task; cider_d where the data's facts know no nouns."""

    name = "caption"
    RANGES = {"max_new_tokens": (1, None), "num_beams": (1, None)}

    def __init__(
        self,
        prompt: str = "This is a picture of",
        max_new_tokens: int = 12,
        num_beams: int = 1,
        targets: Literal["first", "any"] = "first",
        headline: Literal["noun_accuracy", "cider_d"] = "noun_accuracy",
    ) -> None:
        check_generation(max_new_tokens, num_beams)
        for key, value, allowed in (("targets", targets, TARGETS), ("headline", headline, HEADLINES)):
            if value not in allowed:
                raise UserError(f"{key}: {value!r} is unknown; {nearest(value, allowed)}")
        self.prompt, self.targets, self.headline = prompt, targets, headline
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
        tracks = {p.sample.track for p in predictions}
        out: list[Metric] = []
        judged = [judgement for p in predictions if (judgement := judgement_of(p)) is not None]
        if len(judged) == num:
            out += noun_metrics(judged, clusters, tracks)
        counted = [counts for p in predictions if (counts := chair(p.sample.facts, p.text)) is not None]
        if len(counted) == num and tracks != {"T2"}:
            out += chair_metrics(counted, clusters)
        motions = [judge_motion(p.sample.facts, p.text) for p in predictions]
        if all(motion is not None for motion in motions):
            rights = [motion is not None and motion[1] for motion in motions]
            out.append(Metric.of("motion_accuracy", mean(rights, clusters), num))
        if is_worded(predictions, idf_references):
            out += [cider_metric(predictions, idf_references, clusters), *wording_metrics(predictions, clusters)]
        return out

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]:
        """One plain dictionary a prediction: what was said, what was true, what was right, every score it has."""
        out = []
        for prediction, cider in zip(predictions, cider_of(predictions, idf_references), strict=True):
            sample = prediction.sample
            row: dict[str, Any] = {
                "id": sample.id,
                "split": sample.split,
                "track": sample.track,
                "cluster": sample.cluster,
                "text": prediction.text,
                "references": list(sample.references),
            }
            judged = judgement_of(prediction)
            if judged is not None:
                row |= {
                    "nouns": list(sample.facts["nouns"]),
                    "named": sorted(judged.named),
                    "absent": list(judged.absent),
                    "right": judged.right,
                    "category_right": judged.category_right,
                }
                if judged.order_right is not None:
                    row["order_right"] = judged.order_right
            if (counts := chair(sample.facts, prediction.text)) is not None:
                row |= {"chair_s": counts.num_absent > 0, **shares_of(counts)}
            motion = judge_motion(sample.facts, prediction.text)
            if motion is not None:
                row |= {"motion": sample.facts["objects"][0]["motion"], "motion_said": motion[0]}
                row |= {"motion_right": motion[1]}
            if not np.isnan(cider):
                row["cider_d"] = float(cider)
            if sample.references:
                parts = bleu_parts(prediction.text, sample.references)
                row |= {f"bleu_{n}": float(bleu_of(parts, n)) for n in range(1, MAX_N + 1)}
                row["rouge_l"] = rouge_l(prediction.text, sample.references)
            if self.headline == "cider_d":
                row["right"] = row.get("cider_d")
            out.append(row)
        return out


def judgement_of(prediction: Prediction) -> Judgement | None:
    """None where the facts know no nouns, or only COCO's classes: those are far from all that a picture shows."""
    facts = prediction.sample.facts
    return None if facts.get("vocabulary") == COCO else judge(facts, prediction.text)


def is_worded(predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> bool:
    """Whether there are texts to compare with."""
    return bool(idf_references) and all(p.sample.references for p in predictions)


def cider_metric(
    predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]], clusters: Sequence[str]
) -> Metric:
    """NaN with the reason where it is undefined (one picture, references that are all equal): no caption scores 0."""
    reason, num = Frequencies.of(idf_references).undefined, len(predictions)
    if reason is None:
        return Metric.of("cider_d", mean(cider_of(predictions, idf_references), clusters), num)
    return Metric("cider_d", math.nan, math.nan, math.nan, num, len(set(clusters)), reason)


def cider_of(predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) CIDEr-D; NaN everywhere where there is no reference split to weigh words by."""
    if not is_worded(predictions, idf_references):
        return np.full(len(predictions), np.nan)
    references = [p.sample.references for p in predictions]
    return cider_d([p.text for p in predictions], references, Frequencies.of(idf_references))


def wording_metrics(predictions: Sequence[Prediction], clusters: Sequence[str]) -> list[Metric]:
    """BLEU of the corpus, with the interval of its sums over resampled clusters; mean ROUGE-L."""
    num = len(predictions)
    parts = np.stack([bleu_parts(p.text, p.sample.references) for p in predictions])
    out = []
    for n in range(1, MAX_N + 1):
        out.append(Metric.of(f"bleu_{n}", of_sums(parts, functools.partial(bleu_of, n=n), clusters), num))
    rouge = [rouge_l(p.text, p.sample.references) for p in predictions]
    return [*out, Metric.of("rouge_l", mean(rouge, clusters), num)]


def chair_metrics(counted: Sequence[Chair], clusters: Sequence[str]) -> list[Metric]:
    """chair_s: captions with something that is not there; chair_i: such mentions of all mentions. Beside them what an
    empty caption would not have: recall of the objects, and length in words."""
    said, absent, found, true, length = np.array([dataclasses.astuple(one) for one in counted], dtype=np.float64).T
    metrics = {
        "chair_s": mean(absent > 0, clusters),
        "chair_i": ratio(absent, said, clusters),
        "object_recall": ratio(found, true, clusters),
        "caption_length": mean(length, clusters),
    }
    return [Metric.of(name, interval, len(counted)) for name, interval in metrics.items()]


def shares_of(counted: Chair) -> dict[str, float | None]:
    """CHAIR-i and recall of one caption; None where it names nothing, or nothing is there."""
    return {
        "chair_i": counted.num_absent / counted.num_said if counted.num_said else None,
        "object_recall": counted.num_found / counted.num_true if counted.num_true else None,
    }


def noun_metrics(judged: Sequence[Judgement], clusters: Sequence[str], tracks: set[str]) -> list[Metric]:
    """Nouns that no training picture shows (track T2) cannot be named: there, only categories are scored."""
    num = len(judged)
    out = []
    if tracks != {"T2"}:
        out.append(Metric.of("noun_accuracy", mean([j.right for j in judged], clusters), num))
    if all(j.category_right is not None for j in judged):
        out.append(Metric.of("category_accuracy", mean([float(j.category_right or 0) for j in judged], clusters), num))
    out += order_metrics(judged, clusters, "category_order" if tracks == {"T2"} else "order")
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


def order_metrics(judged: Sequence[Judgement], clusters: Sequence[str], name: str) -> list[Metric]:
    """Over what comes one after the other: everything named in its order (or, for unknown nouns, every category)."""
    known = [(getattr(j, f"{name}_right"), cluster) for j, cluster in zip(judged, clusters, strict=True)]
    rows = [(float(right), cluster) for right, cluster in known if right is not None]
    if not rows:
        return []
    return [Metric.of(f"{name}_accuracy", mean([right for right, _ in rows], [c for _, c in rows]), len(rows))]
