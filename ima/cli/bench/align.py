"""What looking inside costs, and what streaming saves.

ima_overhead    a teacher-forced validation pass on cached features, no generation, with IMA per layer, norms and
                consecutive similarity over the same pass without
full_overhead   the same with alignment=full: all sites and variants, the reference pass, the reservoir and
                all its rows; the vocabulary and t-SNE apart, whose seconds are among the facts
pairs_speedup   5,000 examples, all layers, 3 modalities, given their states: writing them to disk, reading them back
                and a vectorised product of all pairs, over streaming them
bytes_ratio     bytes of those files over bytes of the streamed sums
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ima.alignment.scores import similarity
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import Plan
from ima.cli.bench.pairs import FOLDER, report
from ima.config.compose import compose
from ima.config.instantiation import build_settings
from ima.config.settings import Alignment
from ima.core.progress import progress
from ima.core.timing import Ratio, ratio, rounds
from ima.core.types import Role, Site
from ima.models.llm.acceleration.blocks import accelerate
from ima.pipeline.assemble import assemble
from ima.pipeline.evaluator import Evaluator

GOALS = {"ima_overhead": "goal <= 1.05", "full_overhead": "goal <= 2"}
NUM_EXAMPLES, NUM_MODALITIES, BATCH_SIZE = 5000, 3, 50
NUM_LAYERS, NUM_PERCEPTS, NUM_TEXT, WIDTH = 31, 10, 12, 576  # SmolLM2-135M's


def main(num_rounds: int) -> None:
    ratios, facts = passes(num_rounds)
    pairs, more = all_pairs()
    report("align", ratios | pairs, GOALS, facts | more | {"num_threads": torch.get_num_threads()})


def passes(num_rounds: int) -> tuple[dict[str, Ratio], dict[str, Any]]:
    from omegaconf import OmegaConf

    choices = ["experiment=demo", "logger=none", "alignment=full"]
    config: Any = OmegaConf.to_container(compose(choices, "train"))
    parts = assemble(config)
    assert parts.store is not None
    # what is done once (scales, reservoir) must be seen next to a pass of some length
    val = [sample for split in ("val", "T0", "T1") for sample in parts.samples(split)]
    parts.store.ensure(val)
    evaluator = Evaluator(parts.model(), parts.task, parts.source, parts.percepts, parts.loader.eval_batch_size)
    everything = build_settings(Alignment, config["alignment"], "alignment")
    apart: dict[str, Any] = {"num_vocabulary_layers": 0, "num_tsne_layers": 0}
    seconds: dict[str, float] = {}

    def measure(alignment: Alignment) -> Callable[[], object]:
        def run() -> None:
            _, measurement = evaluator.teacher_forced(val, alignment)
            assert measurement is not None
            measurement.rows({"run": "bench"}, seconds)

        return run

    with accelerate(parts.llm.model):
        # A ratio of a few percent wants many short rounds, as the speed of the machine itself changes within seconds;
        # what a pass costs once weighs more in these than in long ones.
        few = val[: parts.loader.eval_batch_size]
        turns: dict[str, Callable[[], object]] = {
            "plain": lambda: evaluator.teacher_forced(few, None),
            "ima": lambda: evaluator.teacher_forced(few, Alignment()),
        }
        found = rounds(turns, 30 * num_rounds, "validation passes")
        turns = {
            "plain_beside_full": lambda: evaluator.teacher_forced(val, None),
            "full": measure(dataclasses.replace(everything, **apart)),
        }
        found |= rounds(turns, max(2, num_rounds // 3), "alignment=full")
        seconds.clear()
        measure(everything)()
    medians = {name: round(statistics.median(values), 4) for name, values in found.items()}
    medians |= {name: round(seconds[name], 4) for name in ("reservoir", "vocabulary", "tsne")}
    for name, value in medians.items():
        print(f"{name:22s} {value:8.3f} s")
    ratios = {"ima_overhead": ratio(found, "ima", "plain"), "full_overhead": ratio(found, "full", "plain_for_full")}
    facts = {"seconds": medians, "num_samples": len(val), "dtype": str(parts.llm.dtype), "rounds": num_rounds}
    return ratios, facts


def all_pairs() -> tuple[dict[str, Ratio], dict[str, Any]]:
    """Both ways once, modality by modality; they must agree."""
    streamed = dumped = 0.0
    state_bytes = file_bytes = 0
    with progress(2 * NUM_MODALITIES, "all pairs", "way") as advance:
        for modality in range(NUM_MODALITIES):
            states_LBSD = given_states(modality)
            start = time.perf_counter()
            stats, one = stream(states_LBSD)
            streamed += time.perf_counter() - start
            state_bytes += stats.num_bytes()
            advance(1)
            start = time.perf_counter()
            size, other = dump(states_LBSD)
            dumped += time.perf_counter() - start
            file_bytes += size
            advance(1)
            assert torch.allclose(one.float(), other, atol=1e-4), "the two ways disagree"
    speedup, bytes_ratio = dumped / streamed, file_bytes / state_bytes
    facts = {"streamed_seconds": round(streamed, 2), "dumped_seconds": round(dumped, 2), "state_bytes": state_bytes,
             "dump_bytes": file_bytes, "num_examples": NUM_EXAMPLES, "num_modalities": NUM_MODALITIES}  # fmt: skip
    return {"pairs_speedup": (speedup,) * 3, "bytes_ratio": (bytes_ratio,) * 3}, facts


def given_states(seed: int) -> Tensor:
    """One batch of states, which is shown again and again: only its size matters to the time."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_LAYERS, BATCH_SIZE, NUM_PERCEPTS + NUM_TEXT, WIDTH)
    return (torch.randn(shape, generator=generator) + torch.randn(WIDTH, generator=generator)).bfloat16()


def stream(states_LBSD: Tensor) -> tuple[AlignmentStats, Tensor]:
    roles_BS = torch.full((BATCH_SIZE, NUM_PERCEPTS + NUM_TEXT), int(Role.ANSWER))
    roles_BS[:, :NUM_PERCEPTS] = Role.PERCEPT
    stats = AlignmentStats(NUM_LAYERS, consecutive=False, plan=Plan(()))  # what the product gives, too: no more
    for start in range(0, NUM_EXAMPLES, BATCH_SIZE):
        stats.begin(roles_BS, [f"example {start + index}" for index in range(BATCH_SIZE)])
        for layer in range(NUM_LAYERS):
            stats.see(layer, Site.RESID_POST, states_LBSD[layer])
        stats.end()
    return stats, similarity(stats.sites[Site.RESID_POST], "P", "T")["sim"].value_L


def dump(states_LBSD: Tensor) -> tuple[int, Tensor]:
    """(bytes on disk, similarity by layer): a file per batch, read back layer by layer."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        paths = [Path(name) / f"{start}.safetensors" for start in range(0, NUM_EXAMPLES, BATCH_SIZE)]
        for path in paths:
            save_file({str(layer): states_BSD for layer, states_BSD in enumerate(states_LBSD)}, path)
        size = sum(path.stat().st_size for path in paths)
        values = []
        for layer in range(NUM_LAYERS):
            units = []
            for path in paths:
                with safe_open(path, framework="pt") as file:
                    x_BSD = file.get_tensor(str(layer)).float()
                sides = (x_BSD[:, :NUM_PERCEPTS], x_BSD[:, NUM_PERCEPTS:])
                units.append([normalize(side.mean(1), dim=-1) for side in sides])
            p_ED, t_ED = (torch.cat(side) for side in zip(*units, strict=True))
            values.append((p_ED @ t_ED.T).mean())
    return size, torch.stack(values)
