"""A plan in words and numbers: which blocks leave out what for whom, and the FLOPs that are left.

`plan_table` is for the terminal, `plan_facts` for result.json; both for an example with so many tokens of each role.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ima.core.types import Role
from ima.interventions import Intervention
from ima.interventions.drop import Drop
from ima.interventions.flops import Flops, Tokens, count, decisions, decode, decoded_share, prefill, sequence
from ima.interventions.isolate import Isolate
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.prune.intervention import MaskWeights
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.plan import Skip
from ima.models.llm.frozen import FrozenLLM

GIGA = 1e9


def plan_facts(llm: FrozenLLM, interventions: Sequence[Intervention], tokens: Tokens) -> dict[str, Any]:
    """`flops` in GFLOPs (multiply-add = 2) for one example: the prompt's pass, per token of it, the first decoded
    token; each beside the same without interventions, and by part."""
    num = max(1, sum(tokens.values()))
    passes = {
        "prefill": (prefill(llm, interventions, tokens), prefill(llm, [], tokens)),
        "decoded_token": (decode(llm, interventions, num), decode(llm, [], num)),
    }
    flops: dict[str, Any] = {"unit": "GFLOPs per example, multiply-add = 2"}
    for name, (left, whole) in passes.items():
        flops |= {name: total(left).total / GIGA, f"{name}_unskipped": total(whole).total / GIGA}
        flops[f"{name}_left"] = total(left).total / total(whole).total
        flops[f"{name}_parts"] = {part: value / GIGA for part, value in dataclasses.asdict(total(left)).items()}
    flops["prefill_per_token"] = flops["prefill"] / num
    said = [intervention.describe() for intervention in interventions]
    return {"interventions": said, "tokens": dict(tokens), "flops": flops}


def plan_table(llm: FrozenLLM, interventions: Sequence[Intervention], tokens: Tokens) -> str:
    """Blocks that are treated alike in one line, GFLOPs of the prompt's pass and what share is left."""
    roles_1S = sequence(tokens)
    left, whole = prefill(llm, interventions, tokens), prefill(llm, [], tokens)
    alike: dict[str, list[int]] = {}
    for block in range(llm.num_blocks):
        texts = [text for change in interventions if (text := treatment(llm, change, block, roles_1S))]
        alike.setdefault("; ".join(texts) or "as it is", []).append(block)
    lines = [("blocks", "what is done", "GFLOPs", "left")]
    for text, blocks in sorted(alike.items(), key=lambda item: item[1][0]):
        part, full = (total([passed[block] for block in blocks]).total for passed in (left, whole))
        lines.append((spans(blocks), text, f"{part / GIGA:.4g}", share(part, full)))
    lines.append(("head", "one row", f"{left[-1].total / GIGA:.4g}", share(left[-1].total, whole[-1].total)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rows = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in lines]
    asked = ", ".join(f"{num} {name}" for name, num in tokens.items() if num)
    flops = plan_facts(llm, interventions, tokens)["flops"]
    for name, words in (("prefill", f"an example ({asked})"), ("decoded_token", "its first decoded token")):
        before = f"{flops[f'{name}_unskipped']:.4g} GFLOPs"
        rows.append(f"{words}: {flops[name]:.4g} of {before}, {100 * flops[f'{name}_left']:.1f} % left")
    return "\n".join(rows)


def total(parts: Sequence[Flops]) -> Flops:
    return sum(parts, Flops())


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def treatment(llm: FrozenLLM, change: Intervention, block: int, roles_1S: Tensor) -> str:
    """What a change does at a block, "" for nothing."""
    if isinstance(change, Entropy):
        named = f"{change.part} of {', '.join(change.roles)} where entropy < {change.threshold:g}"
        return f"{named} (not counted; the lens is)" if block in change.blocks(llm.num_blocks) else ""
    if isinstance(change, Skip):
        return skipped(llm, change, block, roles_1S)
    if isinstance(change, MaskWeights):
        return f"{100 * change.sparsity:.1f} % of the weights zero, which saves no time"
    if isinstance(change, Drop):
        return "dropped" if block in change.blocks(llm.num_blocks) else ""
    if isinstance(change, Merge):
        firsts = change.blocks(llm.num_blocks)
        return "merged in pairs" if block in firsts or block - 1 in firsts else ""
    if isinstance(change, Parallel):
        return f"parallel (norm {change.norm})" if block in change.blocks(llm.num_blocks) else ""
    if isinstance(change, Isolate):
        return "percept and others apart" if block < change.num_blocks else ""
    return str(change.describe()["kind"])


def skipped(llm: FrozenLLM, skip: Skip, block: int, roles_1S: Tensor) -> str:
    if block not in skip.blocks(llm.num_blocks) or skip.ratio == 0:
        return ""
    found = decisions(llm, [skip], roles_1S)[block]
    names = [skip.part] if skip.heads is None else [f"head{head}" for head in skip.heads]
    what = skip.part if skip.heads is None else f"heads {','.join(map(str, skip.heads))}"
    num = count(found, *names)
    asked = int(sum((roles_1S == role).sum() for role in skip.ids))
    texts = [f"{num} of {asked} prompt tokens"] if asked else []
    decoded = decoded_share(llm, skip)
    texts += [f"{100 * decoded:g} % of decoded ones"] if decoded else []
    hidden = ", hidden" if skip.visibility == "hidden" else ""
    return f"no {what} for {', '.join(skip.roles)}: {', '.join(texts) or 'nobody'}{hidden}"


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
