"""A skip that chooses its blocks itself: where perceptual tokens change least, as many as the FLOPs budget asks for.

The measure is the consecutive similarity of an earlier, unskipped measurement (rows.jsonl of a run: cosine of the same
token before and after a block). `resolve` turns it into an ordinary Skip before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ima.core.errors import UserError
from ima.interventions.base import Intervention, Setting
from ima.interventions.flops import prefill
from ima.interventions.skip.plan import Skip
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.runs.results import read_rows


class SkipAuto(Intervention):
    """Skip `part` for `roles` in the blocks from `start` on where perceptual tokens change least, until the prompt's
    pass costs at most `budget` of the unskipped one.

    run: the run folder whose rows say how much each block changes them; evaluate.py takes the run that it evaluates.
    """

    RANGES = {"budget": (0.0, 1.0), "start": (0, None)}

    def __init__(
        self,
        budget: float = 0.6,
        part: Literal["ffn", "attn", "block"] = "block",
        roles: Sequence[str] = ("percept",),
        start: int = 1,
        run: str | None = None,
    ) -> None:
        if not 0 <= budget <= 1:
            raise UserError(f"budget: {budget} is outside 0 to 1 (the share of FLOPs left)")
        self.budget, self.start, self.run = budget, start, run
        self.part: Literal["ffn", "attn", "block"] = part
        self.roles = tuple(roles)
        Skip(part, roles)  # its refusals

    def check(self, llm: LlmFacts) -> None:
        if not self.start < llm.num_blocks:
            raise UserError(f"start: {self.start} is no block of 0 to {llm.num_blocks - 1}")

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        """Nothing yet: what acts is what `resolve` gives."""
        self.check(llm.facts)
        yield

    def resolve(self, llm: FrozenLLM, setting: Setting) -> Skip:
        """The Skip for an example with so many tokens of each role as the setting says. Raises UserError where the
        budget is out of reach or there is nothing to choose by."""
        tokens = setting.tokens
        folder = Path(self.run) if self.run is not None else setting.run
        if folder is None:
            raise UserError("run: name the run folder whose rows.jsonl says where tokens change")
        found = changes(folder, llm.num_blocks)
        order = sorted((block for block in found if block >= self.start), key=lambda block: (-found[block], block))
        whole = sum(flops.total for flops in prefill(llm, [], tokens) or ())
        share = 1.0
        for num in range(1, len(order) + 1):
            skip = Skip(self.part, self.roles, blocks=sorted(order[:num]))
            share = sum(flops.total for flops in prefill(llm, [skip], tokens) or ()) / whole
            if share <= self.budget:
                return skip
        raise UserError(
            f"budget: {self.budget} is out of reach, skipping {self.part} for "
            f"{', '.join(self.roles)} in all blocks from {self.start} on leaves {share:.3f}; raise it or add roles"
        )


def changes(folder: Path, num_blocks: int) -> dict[int, float]:
    """Block -> consecutive similarity of the perceptual tokens across it, of the run's last measured epoch."""
    rows = [
        row
        for row in (read_rows(folder / "rows.jsonl") if (folder / "rows.jsonl").is_file() else [])
        if row["score"] == "consecutive" and row["role_a"] == "P" and row["site"] == "resid_post"
        if row["layer_b"] == (row["layer_a"] or 0) + 1 and row["value"] is not None
    ]
    if not rows:
        raise UserError(f"{folder / 'rows.jsonl'}: no consecutive similarity of perceptual tokens; alignment=default")
    last = max(row["epoch"] or 0 for row in rows)
    found = {row["layer_a"]: row["value"] for row in rows if (row["epoch"] or 0) == last}
    if sorted(found) != list(range(num_blocks)):
        raise UserError(f"{folder / 'rows.jsonl'}: {len(found)} blocks measured, this LLM has {num_blocks}; same LLM?")
    return found
