"""Weight masks as interventions: one from a file, or one that is made (once) from a recipe when the LLM is there.

Entered, the pruned weights are zero; left, also by an exception, every weight is bit for bit what it was. The passes
are ordinary dense ones: zeros that follow no pattern save no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ima.interventions.base import Intervention, Setting
from ima.interventions.prune.apply import masked
from ima.interventions.prune.builder import MaskBuilder
from ima.interventions.prune.mask import Mask
from ima.interventions.prune.recipe import Group, Layers, Matched, Method, Order, Pattern, Percepts, Recipe, RoleSet
from ima.interventions.work import NOTHING, Savings
from ima.models.llm.frozen import FrozenLLM

NOTE = "unstructured zeros save no time"
# What result.json and the figures tell of a mask.
TOLD = ("name", "method", "group", "pattern", "matched", "roles", "answers", "order", "layers",
        "percepts", "percept_share", "seed", "num_examples", "asked",
        "sparsity", "task_ratio", "chance_sparsity", "tasks", "made", "llm")  # fmt: skip


class MaskWeights(Intervention):
    """The mask in the file `path` (python -m ima masks make). any_weights: also on an LLM of the same shapes whose
    weights are others than those that it was made for."""

    saves_time = False

    def __init__(self, path: str, any_weights: bool = False) -> None:
        self.path, self.any_weights = path, any_weights
        self.mask: Mask | None = None
        self.load()  # a file that is not there is refused before anything else is loaded

    def load(self) -> Mask:

        if self.mask is None:
            self.mask = Mask.load(self.path)
        return self.mask

    @property
    def sparsity(self) -> float:
        return 1 - self.load().density

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:

        with masked(llm, self.load(), self.path, self.any_weights):
            yield

    def savings(self, llm: FrozenLLM, roles_1S: Tensor) -> Savings:
        return NOTHING

    def treatment(self, llm: FrozenLLM, block: int, roles_1S: Tensor, savings: Savings | None) -> str:
        return f"{100 * self.sparsity:.1f} % of the weights zero, which saves no time"

    def describe(self) -> dict[str, Any]:
        mask = self.load()
        told = {name: mask.facts[name] for name in TOLD if name in mask.facts}
        densities = {f"sparsity_{key}": 1 - value for key, value in mask.densities("part").items()}
        return {"kind": "mask", "path": self.path} | told | {"sparsity": self.sparsity} | densities | {"note": NOTE}


class Prune(Intervention):
    """A mask that is made here and kept in the cache: see `ima.interventions.prune.recipe.Recipe`. run: whose
    adapter and samples calibrate Wanda; evaluate.py takes the run that it evaluates."""

    RANGES = {"ratio": (0.0, 1.0), "num_examples": (1, None), "percept_share": (0.0, None)}

    def __init__(
        self,
        method: Method = "wanda",
        ratio: float = 0.5,
        group: Group | None = None,
        pattern: Pattern = "unstructured",
        roles: RoleSet = "both",
        answers: bool = True,
        order: Order | None = None,
        num_examples: int = 128,
        seed: int = 0,
        run: str | None = None,
        runs: Sequence[str] = (),
        matched: Matched | None = None,
        layers: Layers = "equal",
        percepts: Percepts = "all",
        percept_share: float = 1.0,
    ) -> None:
        self.recipe = Recipe(
            method, ratio, group, pattern, roles, answers, order, num_examples, seed, run, tuple(runs), matched,
            layers, percepts, percept_share,
        )  # fmt: skip

    @contextmanager
    def apply(self, llm: FrozenLLM) -> Iterator[None]:
        """Nothing yet: what acts is what `resolve` gives."""
        yield

    def resolve(self, llm: FrozenLLM, setting: Setting) -> MaskWeights:
        """The mask of the recipe. Raises UserError where there is nothing to calibrate on."""

        builder = MaskBuilder(llm, setting.calibrate, setting.llm_node)
        return MaskWeights(str(builder.path(self.recipe, setting.run)))

    def describe(self) -> dict[str, Any]:
        return {"kind": "prune"} | self.recipe.settings()
