"""A skip that chooses its blocks itself, as many as the FLOPs budget asks for, by a rank of the blocks.

cosine: where perceptual tokens change least, by the consecutive similarity of an earlier, unskipped measurement
(rows.jsonl of a run: cosine of the same token before and after a block). lc, loss: where the answer changes least when
the block is left out for these tokens alone, on training samples of the run: by KL(p || p without it) over the labelled
positions (layer contribution, arXiv 2504.00502), or by how much the loss rises there; the mean over samples of each
one's mean. late: the last blocks, the baseline that needs no measurement. `resolve` turns the choice into an ordinary
Skip before anything runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.interventions.base import CalibrationSource, Intervention, Setting
from ima.interventions.flops import prefill
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.facts import LlmFacts
from ima.models.llm.frozen import FrozenLLM
from ima.runs.results import read_rows

RANKS = ("cosine", "lc", "loss", "late")


class SkipAuto(Intervention):
    """Skip `part` for `roles` in the blocks from `start` on that come first by `rank`, until the prompt's pass costs at
    most `budget` of the unskipped one.

    run: the run folder whose rows say how much each block changes them, or whose training samples are looked at (lc
    and loss: `num_examples` of them); evaluate.py takes the run that it evaluates.
    """

    RANGES = {"budget": (0.0, 1.0), "start": (0, None), "num_examples": (1, None)}

    def __init__(
        self,
        budget: float = 0.6,
        part: Literal["ffn", "attn", "block"] = "block",
        roles: Sequence[str] = ("percept",),
        start: int = 1,
        run: str | None = None,
        rank: Literal["cosine", "lc", "loss", "late"] = "cosine",
        num_examples: int = 32,
        seed: int = 0,
        keep_sinks: bool = False,
    ) -> None:
        if rank not in RANKS:
            raise UserError(f"rank: {rank!r} is not one of {', '.join(RANKS)}")
        if not 0 <= budget <= 1:
            raise UserError(f"budget: {budget} is outside 0 to 1 (the share of FLOPs left)")
        self.budget, self.start, self.run = budget, start, run
        self.part: Literal["ffn", "attn", "block"] = part
        self.roles = tuple(roles)
        self.rank, self.num_examples, self.seed, self.keep_sinks = rank, num_examples, seed, keep_sinks
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
        self.check(llm.facts)
        found = self.ranked(llm, setting)
        order = sorted((block for block in found if block >= self.start), key=lambda block: (-found[block], block))
        whole = sum(flops.total for flops in prefill(llm, [], tokens) or ())
        share = 1.0
        for num in range(1, len(order) + 1):
            skip = Skip(self.part, self.roles, blocks=sorted(order[:num]), keep_sinks=self.keep_sinks)
            share = sum(flops.total for flops in prefill(llm, [skip], tokens) or ()) / whole
            if share <= self.budget:
                return skip
        raise UserError(
            f"budget: {self.budget} is out of reach, skipping {self.part} for "
            f"{', '.join(self.roles)} in all blocks from {self.start} on leaves {share:.3f}; raise it or add roles"
        )

    def ranked(self, llm: FrozenLLM, setting: Setting) -> dict[int, float]:
        """Block -> how early it is chosen, the largest first."""
        if self.rank == "late":
            return {block: float(block) for block in range(llm.num_blocks)}
        folder = Path(self.run) if self.run is not None else setting.run
        if folder is None:
            raise UserError("run: name the run folder whose rows.jsonl says where tokens change")
        if self.rank == "cosine":
            return changes(folder, llm.num_blocks)
        if setting.calibrate is None:
            raise UserError(f"rank: {self.rank} looks at training samples of a run, and there is none here; use late")
        source = setting.calibrate(folder, self.num_examples, self.seed)
        blocks = range(self.start, llm.num_blocks)
        found = contributions(llm, source, self.part, self.roles, blocks, self.keep_sinks)
        return {block: -(one.kl if self.rank == "lc" else one.loss) for block, one in found.items()}


@dataclasses.dataclass(frozen=True)
class Contribution:
    """What an answer loses without a block's part: kl in nats, loss in nats a labelled token."""

    kl: float
    loss: float


@torch.no_grad()
def contributions(
    llm: FrozenLLM,
    source: CalibrationSource,
    part: Literal["ffn", "attn", "block"],
    roles: Sequence[str],
    blocks: Sequence[int],
    keep_sinks: bool = False,
) -> dict[int, Contribution]:
    """Of each block, for the tokens of these roles alone."""
    sums, count = torch.zeros(len(blocks), 2, dtype=torch.float64), 0
    for x_BSD, roles_BS, labels_BS in source.labelled(llm):
        chosen_BS = labels_BS[:, 1:] != -100
        ids_N1 = labels_BS[:, 1:][chosen_BS][:, None]
        weight_N = (1 / chosen_BS.sum(1).double())[chosen_BS.nonzero()[:, 0]]
        count += int(chosen_BS.any(1).sum())

        def log_p(x_BSD: Tensor = x_BSD, roles_BS: Tensor = roles_BS, chosen_BS: Tensor = chosen_BS) -> Tensor:
            return llm.logits(llm(x_BSD, roles_BS)[:, :-1][chosen_BS]).log_softmax(-1)

        whole_NV = log_p()
        for index, block in enumerate(blocks):
            with stack(llm, [Skip(part, roles, blocks=[block], keep_sinks=keep_sinks)]):
                lost_NV = whole_NV - log_p()
            pair = (whole_NV.exp() * lost_NV).sum(1), lost_NV.gather(1, ids_N1)[:, 0]
            sums[index] += torch.stack([(one_N.double() * weight_N).sum() for one_N in pair]).cpu()
    means = (sums / max(count, 1)).tolist()
    return {block: Contribution(*mean) for block, mean in zip(blocks, means, strict=True)}


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
