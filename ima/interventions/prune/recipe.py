"""What mask is wanted: the settings of `intervention=prune` and of `python -m ima masks make`.

Checked by themselves and together before any work begins. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ima.core.errors import UserError, nearest

Method = Literal["wanda", "sparsegpt", "magnitude", "random", "subnet", "union"]
RoleSet = Literal["percept", "text", "both"]
Group = Literal["row", "matrix", "global"]
Pattern = Literal["unstructured", "2:4", "4:8"]
Order = Literal["one_shot", "sequential"]
Matched = Literal["overall", "matrix"]
Layers = Literal["equal", "diversity"]
Percepts = Literal["all", "changed"]
OF_A_SET = ("subnet", "union")
OF_A_RUN = ("wanda", "sparsegpt")
CALIBRATED = (*OF_A_RUN, *OF_A_SET)
GROUPS = {
    "wanda": "row",
    "sparsegpt": "matrix",
    "magnitude": "matrix",
    "random": "matrix",
    "subnet": "row",
    "union": "row",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Prune `ratio` of the weights by `method`.

    wanda: calibrated on the adapter and training samples of `run`; sparsegpt: the same, and the weights that stay are
    changed too; subnet (union): what the Wanda masks of all `runs` keep in common (together), `ratio` then being its
    own final sparsity. group: where weights compete (None: row for Wanda, matrix else; SparseGPT: 128 columns of a
    matrix). order: None is sequential for SparseGPT, else one_shot. matched: with the achieved sparsity of the subnet
    of `runs`, overall or in every matrix. answers: whether ANSWER tokens count among text. layers: `diversity` prunes
    blocks less whose output tokens are more diverse (TAMP). percepts: `changed` calibrates, in every block, on the
    percepts that it changes most, `percept_share` times their mean change times the number of text tokens (ATV).
    """

    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = {
        "ratio": (0.0, 1.0),
        "num_examples": (1, None),
        "percept_share": (0.0, None),
    }

    method: Method = "wanda"
    ratio: float = 0.5
    group: Group | None = None
    pattern: Pattern = "unstructured"
    roles: RoleSet = "both"
    answers: bool = True
    order: Order | None = None
    num_examples: int = 128
    seed: int = 0
    run: str | None = None
    runs: Sequence[str] = ()
    matched: Matched | None = None
    layers: Layers = "equal"
    percepts: Percepts = "all"
    percept_share: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(str(run) for run in self.runs))
        for name, allowed in (
            ("method", tuple(GROUPS)),
            ("group", ("row", "matrix", "global", None)), ("matched", ("overall", "matrix", None)),
            ("pattern", ("unstructured", "2:4", "4:8")), ("roles", ("percept", "text", "both")),
            ("order", ("one_shot", "sequential", None)), ("layers", ("equal", "diversity")),
            ("percepts", ("all", "changed")),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(
                    f"{name}: {value!r} is none; {nearest(str(value), [str(each) for each in allowed if each])}"
                )
        if not 0 <= self.ratio <= 1:
            raise UserError(f"ratio: {self.ratio} is outside 0 to 1 (the share of weights that is pruned)")
        if self.order is None:
            order = "sequential" if self.method == "sparsegpt" or self.percepts == "changed" else "one_shot"
            object.__setattr__(self, "order", order)
        if self.percept_share < 0:
            raise UserError(f"percept_share: {self.percept_share}; 0 or more is needed")
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
            if needs_set or self.group not in (None, "row", *(["matrix"] if self.method == "sparsegpt" else [])):
                raise UserError(
                    f"pattern: {self.pattern} is for wanda, magnitude or random by row, or sparsegpt, not matched"
                )
        if self.method == "sparsegpt" and (self.order != "sequential" or self.group not in (None, "matrix")):
            raise UserError(
                "method: sparsegpt decides block by block, in 128 columns of a matrix; leave order and group"
            )
        if self.percepts == "changed" and (self.order != "sequential" or self.roles != "both"):
            raise UserError("percepts: changed is for order=sequential and roles=both, method wanda or sparsegpt")
        if self.layers == "diversity":
            if self.method not in OF_A_RUN or self.matched is not None or self.group == "global":
                raise UserError("layers: diversity is for methods wanda and sparsegpt, not matched, not group=global")
            if self.pattern != "unstructured":
                raise UserError(
                    f"layers: diversity needs pattern=unstructured; {self.pattern} prunes half of every row"
                )
        if self.order == "sequential":
            if self.method not in OF_A_RUN:
                raise UserError(
                    f"order: sequential is for methods wanda and sparsegpt; {self.method} has one_shot only"
                )
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
        if self.layers != "equal":
            out["layers"] = self.layers
        if self.percepts != "all":
            out |= {"percepts": self.percepts, "percept_share": self.percept_share}
        return out
