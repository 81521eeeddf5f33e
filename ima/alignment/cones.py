"""`python -m ima cones DIR DIR...`: how near the cones of datasets and modalities are, layer by layer.

Reads the `alignment.safetensors` of evaluations of ONE LLM and needs no model. Rows of score `cone`: P with P and T
with T within each dataset (distinct pairs) and across datasets, P with T of every two; `cone_mean` is the mean over
layers 1..L, `note` names the runs. The rows go to a file that the report reads; the table shows the means.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from ima.alignment.cone_file import ConeSums, across, within
from ima.alignment.rows import layer_rows, make
from ima.alignment.scores import Curve
from ima.core.errors import UserError
from ima.core.types import Row, Site

ALIKE = ("llm", "llm_width", "llm_blocks")


def cone_rows(sums: Sequence[ConeSums], run: str = "cones") -> Iterator[Row]:
    """Rows of every pair. Raises UserError where they are not of one LLM."""
    for one in sums[1:]:
        for fact in ALIKE:
            mine, first = one.facts.get(fact), sums[0].facts.get(fact)
            if mine != first:
                raise UserError(
                    f"cones: {sums[0].facts['run']} has {fact} {first}, {one.facts['run']} has {mine}; "
                    "states of different LLMs have no common space"
                )
    for index, one in enumerate(sums):
        for other in sums[index:]:
            for role in ("P", "T"):
                for variant in shared(one, other):
                    view = role if variant == "raw" else f"{role}.{variant}"
                    curve = within(one, view) if one is other else across(one, view, other, view)
                    yield from both(curve, one, other, role, role, variant, run)
    for one, other in itertools.product(sums, sums):
        for variant in shared(one, other):
            tail = "" if variant == "raw" else f".{variant}"
            curve = across(one, f"P{tail}", other, f"T{tail}")
            yield from both(curve, one, other, "P", "T", variant, run)


def shared(one: ConeSums, other: ConeSums) -> list[str]:
    views = one.sum_LGD.keys() & other.sum_LGD.keys()
    return ["raw", *sorted(view.removeprefix("P.") for view in views if view.startswith("P."))]


def both(
    curve: Curve, one: ConeSums, other: ConeSums, role_a: str, role_b: str, variant: str, run: str
) -> Iterator[Row]:
    base = {"run": run, "site": Site.RESID_POST.value, "role_a": role_a, "role_b": role_b, "variant": variant}
    for side, sums, role in (("a", one, role_a), ("b", other, role_b)):
        base[f"dataset_{side}"] = sums.facts["dataset"]
        base[f"modality_{side}"] = "text" if role == "T" else sums.facts["modality"]
    value, se = curve.mean(1)
    pooled = make("cone_mean", value, base, se=se, n=curve.n)
    who = f"{one.facts['run']} ~ {other.facts['run']}"  # two runs may be of one dataset
    for row in (*layer_rows("cone", curve, 0, base), pooled):
        yield dataclasses.replace(row, note=who if row.note is None else f"{who}: {row.note}")
