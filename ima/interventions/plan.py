"""A plan in words and numbers: which blocks leave out what for whom, and the FLOPs that are left.

`plan_table` is for the terminal, `plan_facts` for result.json; both for an example with so many tokens of each role.
Every intervention says itself what it does and saves; where one does not say, the FLOPs left are unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ima.core.types import Role
from ima.interventions.base import Intervention, Tokens
from ima.interventions.flops import decode_left, prefill_left, sequence
from ima.interventions.work import Flops, Savings
from ima.models.llm.frozen import FrozenLLM

GIGA = 1e9
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Interventions on a prompt of these tokens: what each of them saves (None: it does not say) and, per block with
    the LM head last, the FLOPs left and those without interventions. left: None where they are unknown."""

    tokens: Tokens
    interventions: list[Intervention]
    savings: list[Savings | None]
    left: dict[str, list[Flops] | None]
    whole: dict[str, list[Flops]]

    @property
    def unknown(self) -> list[str]:
        """Kinds of interventions that do not say what they save."""
        pairs = zip(self.interventions, self.savings, strict=True)
        return [str(intervention.describe()["kind"]) for intervention, savings in pairs if savings is None]


def plan_of(llm: FrozenLLM, interventions: Sequence[Intervention], tokens: Tokens) -> Plan:
    """The pass over the prompt (`prefill`) and the first decoded token (`decoded_token`)."""
    roles_1S = sequence(tokens)
    length = roles_1S.shape[1]
    savings = [intervention.savings(llm, roles_1S) for intervention in interventions]
    known = [each for each in savings if each is not None]
    passes = {"prefill": (prefill_left, length), "decoded_token": (decode_left, max(1, length))}
    whole = {name: count(llm, [], num) for name, (count, num) in passes.items()}
    left = {
        name: count(llm, known, num) if len(known) == len(savings) else None for name, (count, num) in passes.items()
    }
    return Plan(tokens, list(interventions), savings, left, whole)


def plan_facts(plan: Plan) -> dict[str, Any]:
    """`flops` in GFLOPs (multiply-add = 2) for one example: the prompt's pass, per token of it, the first decoded
    token; each with the same without interventions, and by part. Unknown numbers are None, `unknown` says why."""
    num = max(1, sum(plan.tokens.values()))
    flops: dict[str, Any] = {"unit": "GFLOPs per example, multiply-add = 2"}
    for name, parts in plan.left.items():
        whole = total(plan.whole[name]).total
        left = None if parts is None else total(parts)
        flops |= {name: None if left is None else left.total / GIGA, f"{name}_unskipped": whole / GIGA}
        flops[f"{name}_left"] = None if left is None else left.total / whole
        by_part = {} if left is None else dataclasses.asdict(left)
        flops[f"{name}_parts"] = {part: value / GIGA for part, value in by_part.items()}
    flops["prefill_per_token"] = None if flops["prefill"] is None else flops["prefill"] / num
    said = [intervention.describe() for intervention in plan.interventions]
    unknown = {"unknown": plan.unknown} if plan.unknown else {}
    return {"interventions": said, "tokens": dict(plan.tokens), "flops": flops | unknown}


def plan_table(llm: FrozenLLM, plan: Plan) -> str:
    """Blocks that are treated alike in one line, GFLOPs of the prompt's pass and what share is left."""
    roles_1S = sequence(plan.tokens)
    alike: dict[str, list[int]] = {}
    for block in range(llm.num_blocks):
        pairs = zip(plan.interventions, plan.savings, strict=True)
        texts = [text for change, savings in pairs if (text := change.treatment(llm, block, roles_1S, savings))]
        alike.setdefault("; ".join(texts) or "as it is", []).append(block)
    left, whole = plan.left["prefill"], plan.whole["prefill"]
    lines = [("blocks", "what is done", "GFLOPs", "left")]
    for text, blocks in sorted(alike.items(), key=lambda item: item[1][0]):
        lines.append((spans(blocks), text, *amounts(left, whole, blocks)))
    lines.append(("head", "one row", *amounts(left, whole, [len(whole) - 1])))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rows = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in lines]
    asked = ", ".join(f"{num} {name}" for name, num in plan.tokens.items() if num)
    flops = plan_facts(plan)["flops"]
    for name, words in (("prefill", f"an example ({asked})"), ("decoded_token", "its first decoded token")):
        before = f"{flops[f'{name}_unskipped']:.4g} GFLOPs"
        if flops[name] is None:
            rows.append(f"{words}: {UNKNOWN} of {before} ({', '.join(plan.unknown)} does not say what it saves)")
        else:
            rows.append(f"{words}: {flops[name]:.4g} of {before}, {100 * flops[f'{name}_left']:.1f} % left")
    return "\n".join(rows)


def amounts(left: Sequence[Flops] | None, whole: Sequence[Flops], blocks: Sequence[int]) -> tuple[str, str]:
    """(GFLOPs left of these blocks, the share that this is)."""
    if left is None:
        return UNKNOWN, UNKNOWN
    part, full = (total([passed[block] for block in blocks]).total for passed in (left, whole))
    return f"{part / GIGA:.4g}", f"{100 * part / full:.1f} %"


def total(parts: Sequence[Flops]) -> Flops:
    return sum(parts, Flops())


def spans(blocks: Sequence[int]) -> str:
    """0-3,5 ; with a constant step 4-28 by 2."""
    steps = {b - a for a, b in zip(blocks, blocks[1:], strict=False)}
    if len(blocks) > 2 and len(steps) == 1 and steps != {1}:
        return f"{blocks[0]}-{blocks[-1]} by {steps.pop()}"
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def mean_tokens(roles: Sequence[Sequence[int]], num_percepts: int) -> dict[str, int]:
    """Tokens of a typical example: the perceptual ones, and of each role of the text the rounded mean."""
    names = [Role(role).name.lower() for role in sorted({role for row in roles for role in row})]
    counts = {name: sum(row.count(Role[name.upper()]) for row in map(list, roles)) for name in names}
    return {"percept": num_percepts} | {name: round(num / max(1, len(roles))) for name, num in counts.items()}
