"""What a model says and scores about a sample does not depend on its neighbours: batch size, order, padding, ranks.

Every intervention meets every task, and every pair of the other choices (phase, family, media) comes up: a table of
pairs, drawn once. Tiny models in fp32: texts are equal, scores agree to 1e-5.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from ima.config.settings import Alignment
from ima.core.types import MEDIUM, Sample
from ima.data.collate import NoiseMediaInputs
from ima.data.source import Source
from ima.interventions.back_patch import BackPatch
from ima.interventions.base import Intervention
from ima.interventions.drop import Drop
from ima.interventions.isolate import Isolate
from ima.interventions.knock_out import KnockOut
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.prune.intervention import MaskWeights
from ima.interventions.prune.mask import Mask
from ima.interventions.prune.scores import linears_of
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.exit import Exit
from ima.interventions.skip.plan import Phase, Skip
from ima.interventions.stack import stack
from ima.interventions.steer import Steer
from ima.models.adapters.linear import LinearAdapter
from ima.models.encoders.controls import NoiseEncoder
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.multimodal import MultimodalModel
from ima.pipeline.evaluator import Evaluator
from ima.tasks.caption import CaptionTask
from ima.tasks.choice import ChoiceTask
from ima.tasks.conversation import ConversationTask
from ima.tasks.qa import QaTask

Make = Callable[[Phase, Path], list[Intervention]]
SKIPPED: dict[Phase, tuple[str, ...]] = {"prefill": ("percept",), "decode": ("answer",), "both": ("all",)}


def skip(part: Any, **options: Any) -> Make:
    return lambda phase, _: [Skip(part, SKIPPED[phase], start=1, phase=phase, **options)]


def ranked(part: Any, select: Any) -> Make:
    """By the states of tokens that are there together: of the prompt alone."""
    return lambda phase, _: [Skip(part, ("percept", "prompt"), start=1, ratio=0.5, select=select, phase="prefill")]


WIDTH, SURE = 32, 5.405  # of the tiny LLMs; an entropy in nats that about half of their tokens stay below


def steered(_phase: Phase, _folder: Path) -> list[Intervention]:
    steer = Steer(0.5, layer=1)
    steer._shift_D = torch.linspace(-1, 1, WIDTH)  # of the means, which are taken before any batch
    return [steer]


INTERVENTIONS: dict[str, Make] = {
    "none": lambda phase, _: [],
    "ffn, half": skip("ffn", ratio=0.5, redraw_per_block=True),
    "attention, hidden": skip("attn", visibility="hidden", ratio=0.6),
    "block": skip("block"),
    "heads": skip("heads", heads=[0, 2]),
    "smallest norms": ranked("block", "norm"),
    "most similar": ranked("ffn", "similar"),
    "exit": lambda phase, _: [Exit(0, {"prefill": "percept", "decode": "last", "both": "context"}[phase])],  # type: ignore[arg-type]
    "drop": lambda phase, _: [Drop(2)],
    "isolate": lambda phase, _: [Isolate(1)],
    "merge": lambda phase, _: [Merge(start=0, every=2, phase=phase)],
    "parallel": lambda phase, _: [Parallel("own", start=1, phase=phase)],
    "pruned": lambda phase, folder: [MaskWeights(str(folder / "mask.safetensors"))],
    "knock-out": lambda phase, _: [KnockOut("percept", "answer", start=1, width=2)],
    "back-patch": lambda phase, _: [BackPatch(0, 2)],
    "where sure": lambda phase, _: [Entropy(SURE, start=1, phase=phase)],
    "steered": steered,
    "two": lambda phase, folder: [
        MaskWeights(str(folder / "mask.safetensors")),
        *skip("ffn", ratio=0.5)(phase, folder),
    ],
}
TASKS: dict[str, Any] = {
    "caption": CaptionTask(max_new_tokens=3),
    "question, beams": QaTask(max_new_tokens=3, num_beams=2),
    "likelihood": ChoiceTask(by="likelihood"),
    "conversation": ConversationTask(max_new_tokens=3),
}
PHASES: tuple[Phase, ...] = ("prefill", "decode", "both")
FAMILIES = ("llama", "opt", "gemma3")
MEDIA = ("one", "several")
FACTORS: tuple[tuple[str, ...], ...] = (tuple(INTERVENTIONS), tuple(TASKS), PHASES, FAMILIES, MEDIA)


def pairs_in(case: tuple[str, ...]) -> set[tuple[int, int, str, str]]:
    return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def pairwise() -> list[tuple[str, ...]]:
    """Cases in which every two values of any two factors come together, each case adding as many as it can."""
    open_pairs = set().union(*(pairs_in(case) for case in itertools.product(*FACTORS)))
    draw, cases = random.Random(0), list[tuple[str, ...]]()
    for first, second in itertools.product(FACTORS[0], FACTORS[1]):
        offered = [(first, second, *(draw.choice(factor) for factor in FACTORS[2:])) for _ in range(12)]
        cases.append(max(offered, key=lambda case: len(pairs_in(case) & open_pairs)))
        open_pairs -= pairs_in(cases[-1])
    assert not open_pairs
    return cases


# -- what is measured ------------------------------------------------------------------------------------------------


WORDS = ("a dog", "an old house by the sea at night", "sea")
MANY = (2, 0, 3)  # media of a sample that shows several


class Given(Source):
    """Three samples of very different lengths, which show one medium or two, none and three."""

    modality, name, splits = "image", "given", ("T0",)

    def __init__(self, media: str) -> None:
        self.media = media

    def samples(self, split: str) -> list[Sample]:
        found = []
        for index, words in enumerate(WORDS):
            choices = (words, "a horse", words[::-1] + "!")
            turns = (("user", f"{MEDIUM}\n{words}?"), ("assistant", words), ("user", words[-3:]), ("assistant", "yes"))
            if self.media == "several":  # a conversation says itself where its media stand
                turns = (("user", f"{MEDIUM}\n" * MANY[index] + f"{words}?"), *turns[1:])
            found.append(
                Sample(str(index), "T0", "T0", "image", (words, f"{words} indeed"), f"is it {words}", f"c{index % 3}",
                       {"choices": choices}, turns=turns)
            )  # fmt: skip
        if self.media == "one":
            return found
        shown = [tuple(found[(index + more) % 3] for more in range(MANY[index])) for index in range(3)]
        return [Sample(**{**vars(each), "media": media}) for each, media in zip(found, shown, strict=True)]


@cache
def llm_of(family: str, chat: bool) -> FrozenLLM:
    return tiny(family, num_blocks=3, chat="chatml" if chat else None)


def evaluator_of(case: tuple[str, ...], batch_size: int) -> Evaluator:
    _, task, _, family, media = case
    torch.manual_seed(0)
    llm, encoder = llm_of(family, task == "conversation"), NoiseEncoder(dim=6, num_tokens=3)
    module = MultimodalModel(LinearAdapter(6, llm.width), llm)
    return Evaluator(module, TASKS[task], Given(media), NoiseMediaInputs(encoder), batch_size)


def measured(case: tuple[str, ...], folder: Path, batch_size: int, order: int = 1) -> tuple[list[Any], dict[str, Any]]:
    """(texts with the media and blind, numbers by name)."""
    evaluator = evaluator_of(case, batch_size)
    write_mask(evaluator.module.llm, folder)
    samples = evaluator.source.samples("T0")[::order]
    with stack(evaluator.module.llm, INTERVENTIONS[case[0]](case[2], folder)):  # type: ignore[arg-type]
        loss, suite = evaluator.teacher_forced(samples, Alignment())
        predictions = evaluator.predict(samples)
        blind = evaluator.predict(samples, blind=True)
    assert suite is not None
    numbers: dict[str, Any] = {"loss": loss}
    for row in suite.rows({"run": "r"}, {})[0]:
        numbers[f"{row.score} {row.site} {row.variant} {row.role_a} {row.role_b} {row.layer_a} {row.layer_b}"] = (
            row.value
        )
    return sorted((each.sample.id, each.text) for each in (*predictions, *blind)), numbers


def write_mask(llm: FrozenLLM, folder: Path) -> None:
    draw = np.random.default_rng(0)
    kept = {path: draw.random(tuple(linear.weight.shape)) < 0.6 for path, linear in linears_of(llm).items()}
    Mask.of(kept, {"llm": llm.name}).save(folder / "mask.safetensors")


def assert_equal(found: tuple[list[Any], dict[str, Any]], expected: tuple[list[Any], dict[str, Any]]) -> None:
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-5, rel=1e-5, nan_ok=True)
    assert sum(np.isfinite(list(expected[1].values()))) > 10


@pytest.mark.parametrize("case", pairwise(), ids=" | ".join)
def test_neighbours_change_nothing(case: tuple[str, ...], tmp_path: Path) -> None:
    alone = measured(case, tmp_path, 1)
    assert_equal(measured(case, tmp_path, 3, order=-1), alone)


def test_a_table_of_pairs_holds_every_pair_and_the_check_notices_a_neighbour(tmp_path: Path) -> None:
    cases = pairwise()
    assert len(cases) == len(INTERVENTIONS) * len(TASKS)
    case = ("none", "caption", "both", "llama", "one")
    found, (texts, numbers) = measured(case, tmp_path, 1), measured(case, tmp_path, 3)
    with pytest.raises(AssertionError):
        assert_equal(found, (texts, numbers | {"loss": numbers["loss"] + 1e-4}))


# -- ranks ----------------------------------------------------------------------------------------------------------

ON_RANKS = [case for index, case in enumerate(pairwise()) if index % 7 == 0]


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = Path(folder) / str(rank)
    own.mkdir()
    found = [measured(case, own, batch_size) for case in ON_RANKS for batch_size in (1, 2)]
    (own / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_say_and_score_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(on_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in "01":
        found = json.loads((tmp_path / rank / "found.json").read_text())
        for case, (texts, numbers) in zip(np.repeat(ON_RANKS, 2, axis=0).tolist(), found, strict=True):
            assert_equal(([tuple(each) for each in texts], numbers), measured(tuple(case), tmp_path, 2))
