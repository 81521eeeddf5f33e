"""What mask is wanted: the settings of `intervention=prune` and of `python -m ima masks make`.

Checked by themselves and together before any work begins. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ima.core.errors import UserError, nearest

Method = Literal["wanda", "magnitude", "random", "subnet", "union"]
RoleSet = Literal["percept", "text", "both"]
Group = Literal["row", "matrix", "global"]
Pattern = Literal["unstructured", "2:4", "4:8"]
Order = Literal["one_shot", "sequential"]
Matched = Literal["overall", "matrix"]
OF_A_SET = ("subnet", "union")
CALIBRATED = ("wanda", *OF_A_SET)
GROUPS = {"wanda": "row", "magnitude": "matrix", "random": "matrix", "subnet": "row", "union": "row"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Prune `ratio` of the weights by `method`.

    wanda: calibrated on the adapter and training samples of `run`; subnet (union): what the Wanda masks of all `runs`
    keep in common (together), `ratio` then being its own final sparsity. group: where weights compete (None: row for
    Wanda, matrix else). matched: with the achieved sparsity of the subnet of `runs`, overall or in every matrix.
    answers: whether ANSWER tokens count among text.
    """

    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = {"ratio": (0.0, 1.0), "num_examples": (1, None)}

    method: Method = "wanda"
    ratio: float = 0.5
    group: Group | None = None
    pattern: Pattern = "unstructured"
    roles: RoleSet = "both"
    answers: bool = True
    order: Order = "one_shot"
    num_examples: int = 128
    seed: int = 0
    run: str | None = None
    runs: Sequence[str] = ()
    matched: Matched | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(str(run) for run in self.runs))
        for name, allowed in (
            ("method", tuple(GROUPS)),
            ("group", ("row", "matrix", "global", None)), ("matched", ("overall", "matrix", None)),
            ("pattern", ("unstructured", "2:4", "4:8")), ("roles", ("percept", "text", "both")),
            ("order", ("one_shot", "sequential")),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(
                    f"{name}: {value!r} is none; {nearest(str(value), [str(each) for each in allowed if each])}"
                )
        if not 0 <= self.ratio <= 1:
            raise UserError(f"ratio: {self.ratio} is outside 0 to 1 (the share of weights that is pruned)")
        if self.num_examples < 1:
            raise UserError(f"num_examples: {self.num_examples}; at least 1 is needed")
        self._check_combination()

    def _check_combination(self) -> None:
        needs_set = self.method in OF_A_SET or self.matched is not None
        if needs_set and not self.runs:
            what = f"matched: {self.matched}" if self.matched else f"method: {self.method}"
            raise UserError(
                f"{what} needs runs: the run folders whose masks make the subnet, runs=[outputs/a,outputs/b]"
            )
        if self.pattern != "unstructured":
            if self.ratio != 0.5:
                raise UserError(f"ratio: {self.ratio} with pattern {self.pattern}, which prunes half; use ratio=0.5")
            if needs_set or self.group not in (None, "row"):
                raise UserError(f"pattern: {self.pattern} is for wanda, magnitude or random by row, not matched")
        if self.order == "sequential":
            if self.method != "wanda":
                raise UserError(f"order: sequential is for method wanda; {self.method} has one_shot only")
            if self.group == "global":
                raise UserError("order: sequential decides block by block; group=global needs order=one_shot")
            if self.matched is not None:
                raise UserError("matched: needs order=one_shot")
        if self.method in OF_A_SET and self.group not in (None, "row"):
            raise UserError(f"group: {self.group}; method {self.method} is made of masks by row")
        if self.matched is not None and self.group == "global":
            raise UserError("group: global has no number per matrix; with matched use row or matrix")

    @property
    def grouped(self) -> str:
        """The group that is in force."""
        return self.group or GROUPS[self.method]

    @property
    def uses_runs(self) -> bool:
        return self.method in OF_A_SET or self.matched is not None

    def settings(self) -> dict[str, Any]:
        """What decides the outcome; not what does not matter for the method."""
        out: dict[str, Any] = {"method": self.method, "ratio": self.ratio, "group": self.grouped}
        out |= {"pattern": self.pattern, "matched": self.matched}
        if self.method == "random":
            out["seed"] = self.seed
        if self.method in CALIBRATED or self.matched is not None:
            out |= {"roles": self.roles, "answers": self.answers, "num_examples": self.num_examples, "seed": self.seed}
            out["order"] = self.order
        return out
