"""The claims of arXiv 2405.16700 (IMA) and 2410.09454 (SKIP), and what has been asked since, each with the quantities
that test it and the command whose runs it is computed from."""

from __future__ import annotations

import dataclasses
import math

from ima.core.metric_names import IMA_MEAN
from ima.report.claims.measures import (
    NAN,
    Measure,
    Value,
    against_twin,
    mean_of,
    metric_value,
    minus,
    of_values,
    rows_of,
    since_untrained,
)
from ima.report.claims.paired import headline_of, recovered, relation, shared_weights, subnet_against, under_skips
from ima.report.run import Run

PT, PP, TT, READ = ("P", "T"), ("P", "P"), ("T", "T"), ("P", "T.text")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """name: what is positive when the claim is right. smallest: an effect within this of `bar` is called none. absent:
    the claim is that there is no effect."""

    name: str
    measure: Measure
    smallest: float | None = None
    bar: float = 0.0
    absent: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    key: str
    title: str
    command: str
    quantities: tuple[Quantity, ...] = ()


def cone_gap(run: Run) -> Value | None:
    inside = [mean_of(rows_of(run, "cone", "raw", roles)) for roles in (PP, TT)]
    across = mean_of(rows_of(run, "sim", "raw", PT))
    gaps = [gap for each in inside if (gap := minus(each, across)) is not None]
    return min(gaps, key=lambda gap: gap.value) if len(gaps) == 2 else None


def norm_ratio(run: Run) -> Value | None:
    middle = (0.13, 0.87)
    p, t = (mean_of(rows_of(run, "norm_q50", "raw", (role, None)), middle) for role in ("P", "T"))
    return None if p is None or t is None or min(p.value, t.value) <= 0 else Value(math.log10(p.value / t.value), NAN)


def slow_change(run: Run) -> Value | None:
    middle = (0.13, 0.87)
    sides = [mean_of(rows_of(run, "consecutive", "raw", roles), middle) for roles in (PP, TT)]
    return minus(*sides)


def inside_over_outside(run: Run) -> Value | None:
    return minus(mean_of(rows_of(run, "ima_inside", "raw", PT)), mean_of(rows_of(run, "ima_outside", "raw", PT)))


def lens_over_chance(run: Run) -> Value | None:
    value, limits = mean_of(rows_of(run, "lens_over_chance_mean", "centred", READ)), []
    for end in ("low", "high"):
        if (limit := mean_of(rows_of(run, f"lens_over_chance_mean_{end}", "centred", READ))) is not None:
            limits.append(limit.value)
    return None if value is None or len(limits) < 2 else Value(value.value, (limits[1] - limits[0]) / 3.92)


def over_chance(variant: str) -> Measure:
    """Share of perceptual tokens whose nearest word is a noun of the medium, minus chance, which is exact."""

    def value_of(run: Run) -> Value | None:
        share, chance = (
            mean_of(rows_of(run, name, variant, READ)) for name in ("lens_one_token", "lens_one_token_chance")
        )
        return None if share is None or chance is None else Value(share.value - chance.value, share.se)

    return of_values(value_of)


def at_layer_0(run: Run) -> Value | None:
    rows = [row for row in rows_of(run, "retrieval", "centred", READ) if row.get("layer_a") == 0]
    chance = rows_of(run, "retrieval_chance", None, READ) or rows_of(run, "retrieval_chance", "centred", READ)
    if not rows or not chance or rows[0].get("se") is None:
        return None
    return Value(rows[0]["value"] - chance[0]["value"], rows[0]["se"])


def growth(run: Run) -> Value | None:
    over_null = mean_of(rows_of(run, "retrieval_growth_over_null", "centred", READ))
    whole = mean_of(rows_of(run, "retrieval_growth", "centred", READ))
    return None if over_null is None or whole is None else Value(over_null.value, whole.se)


def chair_of(run: Run) -> str | None:
    return next((name for name in ("T0/chair_i", "test/chair_i", "val/chair_i") if name in run.metrics), None)


ALIGNMENT = ("evaluate.py checkpoint=RUN alignment=full", "evaluate.py checkpoint=RUN alignment=all")
RISES = (
    ("raw IMA", "ima", "raw", PT),
    ("IMA without sinks", "ima", "nosink", PT),
    ("gap to other texts", "gap_mean", "raw", READ),
    ("retrieval", "retrieval_mean", "centred", READ),
)
SCORES = (("raw IMA", IMA_MEAN), ("gap", "gap/mean"), ("retrieval", "retrieval/mean"))

CLAIMS = (
    Claim(
        "C1", "Perceptual and textual tokens live in different narrow cones", ALIGNMENT[0],
        (Quantity("the wider cone's own similarity minus that of P with T", of_values(cone_gap), 0.05),),
    ),
    Claim(
        "C2", "Norms of perceptual tokens are those of text in the middle of the LLM", ALIGNMENT[0],
        (Quantity("log10 of P's median norm over T's, middle blocks", of_values(norm_ratio), 0.1, absent=True),),
    ),
    Claim(
        "C3", "Perceptual tokens change more slowly from block to block than text", ALIGNMENT[0],
        (Quantity("consecutive similarity of P minus that of T, middle blocks", of_values(slow_change), 0.01),),
    ),
    Claim(
        "C4", "Percepts and text activate the same weights, beyond chance", "sweep.py sweep=mask_iou",
        (Quantity("overlap of their masks beyond chance (1: equal)", shared_weights, 0.05),),
    ),
    Claim(
        "C5", "Alignment rises in training", "train.py experiment=demo, and its twin",
        (
            *(Quantity(f"{name}, trained minus untrained", since_untrained(score, variant, roles), 0.02)
              for name, score, variant, roles in RISES),
            *(Quantity(f"{name}, run minus noise twin", against_twin(metric_value(metric), "encoder"), 0.02)
              for name, metric in SCORES),
        ),
    ),
    Claim(
        "C6", "Alignment lives in the residual stream, blocks only steer it", ALIGNMENT[0],
        (Quantity("IMA along the stream minus IMA of what blocks add", of_values(inside_over_outside), 0.05),),
    ),
    Claim(
        "C7", "IMA tracks performance", "sweep.py sweep=encoders",
        tuple(Quantity(f"rank correlation of {name} with the score", relation(x, headline_of)) for name, x in SCORES),
    ),
    Claim(
        "C8", "IMA tracks hallucination inversely", "sweep.py sweep=encoders",
        tuple(Quantity(f"minus rank correlation of {name} with CHAIR_i", relation(x, chair_of, -1.0))
              for name, x in SCORES),
    ),
    Claim(
        "C9", "Computation on perceptual tokens can be skipped (less than 5 points lost)", "sweep.py sweep=skip_ratio",
        tuple(Quantity(f"score with {part} skipped for P minus without", under_skips(part), bar=-0.05)
              for part in ("ffn", "attn", "block")),
    ),
    Claim(
        "C10", "One subnet serves all tasks (within 5 points of each task's own mask)", "sweep.py sweep=subnet",
        (
            Quantity("subnet minus the task's own Wanda mask", subnet_against("wanda"), bar=-0.05),
            Quantity("subnet minus random weights", subnet_against("random")),
            Quantity("subnet minus magnitude", subnet_against("magnitude")),
        ),
    ),
    Claim("C11", "Encoders trained with text align best", "sweep.py sweep=encoders"),
    Claim(
        "C12", "Training under a plan recovers what it costs", "train.py intervention=..., docs/skipping.md",
        (Quantity("trained under the plan minus put under it afterwards", recovered),),
    ),
    Claim(
        "C13", "Alignment is not the architecture's alone", "train.py experiment=demo llm=random_smollm2",
        tuple(Quantity(f"{name}, run minus its twin with a random LLM", against_twin(metric_value(metric), "llm"), 0.02)
              for name, metric in SCORES),
    ),
    Claim(
        "C14", "Perceptual tokens are no translation into words", ALIGNMENT[1],
        (
            Quantity("nearest input embedding, share over chance", over_chance("embedding"), 0.05, absent=True),
            Quantity("logit lens, share over chance", over_chance("logit"), 0.05, absent=True),
            Quantity("contextual lens, share over chance", of_values(lens_over_chance), 0.05, absent=True),
        ),
    ),
    Claim("C15", "Multi-task training aligns as single-task training does", "sweep.py sweep=mt_variants"),
    Claim(
        "C16", "Alignment arises inside the LLM, not in the adapter", "train.py experiment=demo",
        (
            Quantity("retrieval at layer 0 minus chance (absent: the adapter does not translate)",
                     of_values(at_layer_0), 0.05, absent=True),
            Quantity("growth of retrieval over its null", of_values(growth), 0.05),
        ),
    ),
)  # fmt: skip
