"""Recipes to mask files: each is made once, under a lock, and found again by what it depends on.

The key holds the model's weights and dtype, the settings that matter for the method, and the tasks (adapter, data,
examples, seed). Statistics are shared: every role set, sparsity and combination of tasks comes from one pass per task.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ima.core.cache import build_folder, cache_dir
from ima.core.errors import UserError
from ima.core.provenance import provenance
from ima.interventions.base import Calibrate, CalibrationSource
from ima.interventions.prune import subnet
from ima.interventions.prune.calibration import one_shot, sequential
from ima.interventions.prune.diversity import diversities, ratios_of
from ima.interventions.prune.mask import Bits, Mask, place_of
from ima.interventions.prune.recipe import OF_A_RUN, OF_A_SET, Recipe
from ima.interventions.prune.scores import chance, linears_of, magnitude, model_facts, wanda, weights_id
from ima.interventions.prune.select import (
    keep_by,
    keep_global,
    keep_number,
    keep_pattern,
    num_pruned,
    pack,
    shares,
    unpack,
)
from ima.interventions.prune.sparsegpt import prune_matrix
from ima.interventions.prune.sums import GramWatch, Sums, chosen_roles
from ima.models.llm.frozen import FrozenLLM

FILE = "mask.safetensors"
VERSION = 1  # raise it when masks of the same recipe change


class MaskBuilder:
    """Makes masks for one LLM. calibrate: examples of a run, where a method needs some. node: the config that loads the
    LLM, so that a mask can be exported later."""

    def __init__(self, llm: FrozenLLM, calibrate: Calibrate | None = None, node: dict[str, Any] | None = None) -> None:
        self.llm, self.calibrate, self.node = llm, calibrate, node
        self.linears = linears_of(llm)
        self.shapes = {path: (linear.out_features, linear.in_features) for path, linear in self.linears.items()}
        self._sums: dict[str, Sums] = {}

    @cached_property
    def model(self) -> dict[str, Any]:
        return model_facts(self.llm, self.node)

    # -- what is asked for -------------------------------------------------------------------------------------------

    def path(self, recipe: Recipe, run: Path | str | None = None) -> Path:
        """The file of the mask; made where it is not there yet. run: calibrates where the recipe names none."""
        own, tasks = self.tasks_of(recipe, run)
        depends: dict[str, Any] = {"model": [self.model["weights"], self.model["dtype"]], "recipe": recipe.settings()}
        depends |= {"own": own.key if own else None, "tasks": [task.key for task in tasks]}
        text = json.dumps(depends, sort_keys=True)
        key = hashlib.sha256(f"{VERSION}|{text}".encode()).hexdigest()[:16]

        def build(folder: Path) -> None:
            self.make(recipe, own, tasks).save(folder / FILE)

        return build_folder(cache_dir() / "masks" / f"{recipe.method}-{key}", build) / FILE

    def tasks_of(
        self, recipe: Recipe, run: Path | str | None
    ) -> tuple[CalibrationSource | None, list[CalibrationSource]]:
        """(the task of a Wanda mask, those of the set)."""

        def task(folder: Path | str) -> CalibrationSource:
            assert self.calibrate is not None, "nobody says how examples of a run are had"
            return self.calibrate(folder, recipe.num_examples, recipe.seed)

        own = None
        if recipe.method in OF_A_RUN:
            folder = recipe.run or run
            if folder is None:
                raise UserError("run: name the run folder whose adapter and samples calibrate, run=outputs/<run>")
            own = task(folder)
        return own, [task(each) for each in recipe.runs] if recipe.uses_runs else []

    def make(self, recipe: Recipe, own: CalibrationSource | None, tasks: list[CalibrationSource]) -> Mask:
        facts: dict[str, Any] = {}
        values: dict[str, np.ndarray] = {}
        ratios = self.ratios(recipe, own)
        if recipe.method in OF_A_SET:
            bits, facts = self.of_a_set(recipe, tasks)
        elif recipe.order == "sequential":
            assert own is not None
            bits, values = self.sequential(recipe, own, ratios)
        else:
            bits = self.decided(recipe, self.scores(recipe, own), self.wanted(recipe), ratios)
        described = {"name": self.name(recipe, own, tasks)} | recipe.settings()
        described |= {"tasks": [each.facts() for each in ([own] if own else tasks)], "kind": "mask"}
        described |= facts | self.model | {"versions": provenance()["versions"]}
        mask = Mask(bits, self.shapes, described, values)
        mask.facts |= {"asked": recipe.ratio, "sparsity": 1 - mask.density}
        return mask

    def name(self, recipe: Recipe, own: CalibrationSource | None, tasks: list[CalibrationSource]) -> str:
        words = [recipe.method, *([own.name, recipe.roles] if own else []), f"{recipe.ratio:g}"]
        if recipe.method in OF_A_SET:
            words.insert(1, f"{len(tasks)} tasks {recipe.roles}")
        if recipe.pattern != "unstructured":
            words.append(recipe.pattern)
        if recipe.order == "sequential" and recipe.method != "sparsegpt":
            words.append("sequential")
        words += ["by diversity"] if recipe.layers == "diversity" else []
        words += ["changed percepts"] if recipe.percepts == "changed" else []
        return " ".join([*words, *([f"matched {recipe.matched}"] if recipe.matched else [])])

    # -- scores ------------------------------------------------------------------------------------------------------

    def sums(self, task: CalibrationSource) -> Sums:
        if task.key not in self._sums:
            self._sums[task.key] = sums_of(task, self.llm)
        return self._sums[task.key]

    def wanda(self, task: CalibrationSource, recipe: Recipe) -> Callable[[str], Tensor]:
        sums, roles = self.sums(task), chosen_roles(recipe.roles, recipe.answers)
        return lambda path: wanda(self.linears[path], sums.norm(path, roles))

    def scores(self, recipe: Recipe, own: CalibrationSource | None) -> Callable[[str], Tensor]:
        if recipe.method == "magnitude":
            return lambda path: magnitude(self.linears[path])
        if recipe.method == "random":
            return lambda path: chance(self.linears[path], path, recipe.seed)
        assert own is not None
        return self.wanda(own, recipe)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def wanted(self, recipe: Recipe) -> dict[str, int] | None:
        """How many weights of each matrix are pruned, where that is matched to a subnet."""
        if recipe.matched is None:
            return None
        like = Recipe("subnet", recipe.ratio, roles=recipe.roles, answers=recipe.answers, seed=recipe.seed,
                      num_examples=recipe.num_examples, runs=recipe.runs)  # fmt: skip
        mask = Mask.load(self.path(like))
        pruned = {path: int((~mask.kept(path)).sum()) for path in self.shapes}
        return pruned if recipe.matched == "matrix" else shares(self.shapes, sum(pruned.values()))

    def ratios(self, recipe: Recipe, own: CalibrationSource | None) -> dict[str, float]:
        """Share of pruned weights of every matrix."""
        if recipe.layers == "equal":
            return dict.fromkeys(self.shapes, recipe.ratio)
        assert own is not None
        blocks = {path: place_of(path).block for path in self.shapes}
        sizes = [0] * self.llm.num_blocks
        for path, shape in self.shapes.items():
            sizes[blocks[path]] += math.prod(shape)
        by_block = ratios_of(diversities(self.llm, own.inputs(self.llm)), sizes, recipe.ratio)
        return {path: by_block[block] for path, block in blocks.items()}

    def decided(
        self,
        recipe: Recipe,
        scores: Callable[[str], Tensor],
        wanted: dict[str, int] | None,
        ratios: Mapping[str, float],
    ) -> dict[str, Bits]:
        group: Any = recipe.grouped
        if recipe.pattern != "unstructured":
            return {path: pack(keep_pattern(scores(path), recipe.pattern)) for path in self.shapes}
        if wanted is not None:
            return {path: pack(keep_number(group, scores(path), wanted[path])) for path in self.shapes}
        if group == "global":
            total = sum(math.prod(shape) for shape in self.shapes.values())
            found = keep_global(scores, self.shapes, num_pruned(total, recipe.ratio))
            return {path: pack(kept) for path, kept in found}
        return {path: pack(keep_by(group, scores(path), ratios[path])) for path in self.shapes}

    def sequential(
        self, recipe: Recipe, task: CalibrationSource, ratios: Mapping[str, float]
    ) -> tuple[dict[str, Bits], dict[str, np.ndarray]]:
        """(bits, new values of what is kept: of SparseGPT only)."""
        roles = chosen_roles(recipe.roles, recipe.answers)
        share = recipe.percept_share if recipe.percepts == "changed" else None
        inputs = task.inputs(self.llm)
        new: dict[str, Tensor] = {}

        def by_score(path: str, sums: Sums) -> Tensor:
            score = wanda(self.linears[path], sums.norm(path, roles))
            if recipe.pattern != "unstructured":
                return keep_pattern(score, recipe.pattern)
            return keep_by(recipe.grouped, score, ratios[path])  # type: ignore[arg-type]

        def by_error(path: str, sums: Sums) -> Tensor:
            gram_II = sums.gram(path, roles)
            kept_OI, new[path] = prune_matrix(self.linears[path].weight, gram_II, ratios[path], recipe.pattern)
            return kept_OI

        if recipe.method != "sparsegpt":
            return sequential(self.llm, inputs, by_score, percept_share=share), {}
        watching = functools.partial(GramWatch, roles=roles)
        bits = sequential(self.llm, inputs, by_error, watching, new, share)
        return bits, {path: raw_values(new[path], bits[path]) for path in bits}

    def of_a_set(self, recipe: Recipe, tasks: list[CalibrationSource]) -> tuple[dict[str, Bits], dict[str, Any]]:
        reduce: subnet.Reduce = "intersection" if recipe.method == "subnet" else "union"
        each = [self.wanda(task, recipe) for task in tasks]

        def scores(path: str) -> list[Tensor]:
            return [of_task(path) for of_task in each]

        target = recipe.ratio
        if (wanted := self.wanted(recipe)) is not None:
            if recipe.method == "union" and recipe.matched == "matrix":  # lowest of the largest ranks, so many
                ranked = {path: subnet.reduced_ranks(scores(path), reduce).float() for path in self.shapes}
                bits = {path: pack(keep_number("matrix", ranked[path], wanted[path])) for path in self.shapes}
                return bits, {"chance_sparsity": None}
            target = sum(wanted.values()) / sum(math.prod(shape) for shape in self.shapes.values())
        found = subnet.search(subnet.curve(scores, self.shapes, reduce), target)
        bits = {path: pack(subnet.combined(scores(path), found.task_ratio, reduce)) for path in self.shapes}
        num, density = len(tasks), 1 - found.task_ratio
        by_chance = density**num if reduce == "intersection" else 1 - (1 - density) ** num
        return bits, {"task_ratio": found.task_ratio, "chance_sparsity": 1 - by_chance}


def sums_of(task: CalibrationSource, llm: FrozenLLM) -> Sums:
    """One-shot statistics of all roles: from the cache, or made once under a lock."""
    key = hashlib.sha256(f"{task.key}|{weights_id(llm)}|{llm.dtype}".encode()).hexdigest()[:16]
    target = cache_dir() / "calibration" / f"{task.name}-{key}"

    def build(folder: Path) -> None:
        one_shot(llm, task.inputs(llm)).save(folder / "sums.safetensors", task.facts() | {"llm": llm.name})

    return Sums.load(build_folder(target, build) / "sums.safetensors")[0]


def raw_values(weight_OI: Tensor, bits: Bits) -> np.ndarray:
    """The bytes of the kept weights, row by row."""
    kept_OI = unpack(bits, (weight_OI.shape[0], weight_OI.shape[1]), weight_OI.device)
    raw: np.ndarray = weight_OI[kept_OI].cpu().contiguous().view(torch.uint8).numpy()
    return raw
