"""Multi-task training against stock LLaVA: LlavaForConditionalGeneration in a transformers Trainer, paired in one run.

Both sides have the same LLM (SmolLM2, frozen), encoder, adapter, pictures, texts, batches and dtype and train the
adapter alone. Two pairs of parts, each as a run has them:

stampworld_  what `experiment=mt_stampworld_2` trains for pictures (EfficientNet-Lite0, `pool`: 10 tokens; chatml; a
             homogeneous batch of 8 captions and one of 8 questions a step). What `make bench-mt` is judged by: sizes
             are not chosen here, the experiment is read.
llava_       LLaVA-1.5's own adapter (`mlp` on all 257 tokens of the ViT-S/14), captions, batch 4: pictures are nine
             tenths of the sequence, the encoder is a small part of the step, and so is what a cache can save.

Theirs gets pixels, token ids and labels ready; ours lays the texts out in the step. Neither has a loop around it: what
Lightning adds to ours is in the table ("loop"), what Trainer's adds to theirs is left out. The LLM's key-value cache,
which nobody needs here, is off in theirs.

vs_trainer_uncached  Trainer's step over ours with the encoder in the step
vs_trainer_cached    Trainer's step over ours on cached features
step_vs_bare         our step on cached features over the stock LLM's forward and backward to its embeddings, no head
step_vs_gemm         the same over the time of the LLM's matrix products at the speed of one large product
memory_vs_trainer    peak resident memory of a process that takes our steps (with the encoder) over one of Trainer's
"""

from __future__ import annotations

import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ima.cli.bench.memory import forget_peak, peak_so_far
from ima.cli.bench.pairs import report
from ima.cli.bench.phases import phases, show
from ima.cli.bench.train import IMAGE_TOKEN, bare_step, our_step, stock_model
from ima.config.compose import compose
from ima.core.timing import Ratio, ratio, rounds
from ima.core.types import Role, Sample
from ima.data.collate import LiveMediaInputs
from ima.models.llm.acceleration.blocks import accelerate
from ima.pipeline.assemble import assemble
from ima.pipeline.parts import Parts, TaskStream

GOALS = {
    "vs_trainer_uncached": "goal >= 1.1",
    "vs_trainer_cached": "goal >= 1.5",
    "step_vs_bare": "goal <= 1.05",
    "step_vs_gemm": "",
    "memory_vs_trainer": "goal <= 1",
}
STAMPWORLD = ["experiment=mt_stampworld_2", "logger=none"]
LLAVA = ["experiment=demo", "encoder=focus_vit", "adapter=mlp", "llm.chat=chatml", "data.limit=16", "logger=none"]
SETUPS = {"stampworld": (STAMPWORLD, None), "llava": (LLAVA, 4)}
NUM_STEPS = 3  # of the processes whose memory is taken

Step = Callable[[], object]


@dataclasses.dataclass
class Setup:
    """Parts and a batch of each of their entries."""

    parts: Parts
    batches: list[list[Sample]]

    @property
    def sizes(self) -> dict[str, object]:
        parts = self.parts
        laid = [stream.collate(parts.llm)([(s, 0) for s in batch]) for stream, batch in self.pairs()]
        return {
            "dtype": str(parts.llm.dtype),
            "batch_sizes": [len(batch) for batch in self.batches],
            "text_tokens": [int((batch.roles_BT != Role.PAD).sum()) for batch in laid],
            "labels": [int((batch.labels_BT != -100).sum()) for batch in laid],
            "percept_tokens": num_percept(parts.streams[0]),
        }

    def pairs(self) -> list[tuple[TaskStream, list[Sample]]]:
        return list(zip(self.parts.streams, self.batches, strict=True))


def setup_of(name: str) -> Setup:
    from omegaconf import OmegaConf

    overrides, batch_size = SETUPS[name]
    config: Any = OmegaConf.to_container(compose(overrides, "train"))
    if config["mixture"]:  # LLaVA takes pictures
        config["mixture"] = {key: node for key, node in config["mixture"].items() if key.startswith("image_")}
    parts = assemble(config)
    size = batch_size or parts.loader.batch_size
    batches = [stream.samples("train")[:size] for stream in parts.streams]
    for stream, batch in zip(parts.streams, batches, strict=True):
        assert stream.store is not None
        stream.store.ensure(batch)
    return Setup(parts, batches)


def num_percept(stream: TaskStream) -> int:
    return stream.channel.adapter.num_tokens or stream.channel.encoder.num_tokens


def main(num_rounds: int) -> None:
    ratios: dict[str, Ratio] = {}
    facts: dict[str, object] = {"rounds": num_rounds, "num_threads": torch.get_num_threads()}
    for name in SETUPS:
        found, known = measure(name, num_rounds)
        ratios |= {f"{name}_{key}": value for key, value in found.items()}
        facts[name] = known
    report("mt", ratios, {f"{name}_{key}": goal for name in SETUPS for key, goal in GOALS.items()}, facts)


def measure(name: str, num_rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    setup = setup_of(name)
    seconds = rounds(steps_of(setup), num_rounds, f"training steps, {name}")
    over = {
        "vs_trainer_uncached": ("trainer", "ours_uncached"),
        "vs_trainer_cached": ("trainer", "ours"),
        "step_vs_bare": ("ours", "bare"),
        "step_vs_gemm": ("ours", "gemm"),
    }
    ratios = {key: ratio(seconds, *pair) for key, pair in over.items()}
    medians = {key: round(statistics.median(values), 4) for key, values in seconds.items()}
    for key, value in medians.items():
        print(f"{name} {key:22s} {value:8.3f} s")
    table = phases(setup.parts, setup.batches, num_rounds)
    show(table, medians["bare"], medians["gemm"])
    facts = setup.sizes | {"seconds": medians, "phases": table}
    del setup
    gc.collect()
    memory = {side: peak_bytes(name, side) for side in ("ours", "trainer")}
    ratios["memory_vs_trainer"] = (memory["ours"] / memory["trainer"],) * 3
    return ratios, facts | {"peak_bytes": memory}


def steps_of(setup: Setup) -> dict[str, Step]:
    parts = setup.parts
    model, fast = parts.model(), accelerate(parts.llm.model)
    each = list(enumerate(setup.batches))
    trainer = Stock(parts)
    return {
        "ours": chain([our_step(parts, model, batch, False, entry, fast) for entry, batch in each]),
        "ours_uncached": chain([our_step(parts, model, batch, True, entry, fast) for entry, batch in each]),
        "trainer": chain([trainer.step(stream, batch) for stream, batch in setup.pairs()]),
        "bare": chain([bare_step(parts, model, batch, entry) for entry, batch in each]),
        "gemm": chain([gemm(parts, stream, batch) for stream, batch in setup.pairs()]),
    }


def chain(steps: list[Step]) -> Step:
    def all_of_them() -> None:
        for step in steps:
            step()

    return all_of_them


class Stock:
    """`Trainer.training_step`, clipping, AdamW; the adapter in fp32 as in ours, the rest in the run's dtype."""

    def __init__(self, parts: Parts, share: bool = False) -> None:
        from transformers import Trainer, TrainingArguments

        self.model, self.adapter = stock_model(parts, parts.llm.dtype, share)
        self.model.config.text_config.use_cache = self.model.model.language_model.config.use_cache = False
        folder = tempfile.mkdtemp()
        arguments = TrainingArguments(output_dir=folder, report_to=[], use_cpu=True)
        self.trainer: Any = Trainer(model=self.model, args=arguments)
        self.trainer.current_gradient_accumulation_steps = 1  # what its own loop sets
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-5)
        self.llm = parts.llm

    def step(self, stream: TaskStream, samples: list[Sample]) -> Step:
        inputs = self.inputs(stream, samples)

        def step() -> None:
            self.trainer.training_step(self.model, inputs)
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step

    def inputs(self, stream: TaskStream, samples: list[Sample]) -> dict[str, Tensor]:
        """Our batch as LLaVA takes it: image tokens in the text, labels over all positions."""
        collate = stream.collate(self.llm, training=True)
        batch = collate([(sample, 0) for sample in samples])
        (place,) = {collate.lay(sample, 0).places[0] for sample in samples}
        num_tokens = num_percept(stream)

        def put(text_BT: Tensor, fill: int) -> Tensor:
            return torch.cat([text_BT[:, :place], torch.full((len(samples), num_tokens), fill), text_BT[:, place:]], 1)

        return {
            "input_ids": put(batch.ids_BT, IMAGE_TOKEN),
            "labels": put(batch.labels_BT, -100),
            "attention_mask": put((batch.roles_BT != Role.PAD).long(), 1),
            "pixel_values": LiveMediaInputs(stream.source, stream.channel.encoder)(samples, 0)["media"],
        }


def gemm(parts: Parts, stream: TaskStream, samples: list[Sample]) -> Step:
    """Every product of the blocks' weights with all positions, forward and backward to the inputs, and nothing else."""
    batch = stream.collate(parts.llm)([(sample, 0) for sample in samples])
    num = len(samples) * (batch.ids_BT.shape[1] + num_percept(stream))
    blocks = parts.llm.table.blocks
    weights = [w for w in blocks[0].parameters() if w.dim() == 2]
    inputs = [(torch.ones(num, w.shape[1], dtype=w.dtype), torch.ones(num, w.shape[0], dtype=w.dtype)) for w in weights]

    @torch.no_grad()
    def step() -> None:
        for _ in range(len(blocks)):
            for weight, (x, gradient) in zip(weights, inputs, strict=True):
                torch.nn.functional.linear(x, weight)
                gradient @ weight

    return step


def peak_bytes(name: str, side: str) -> int:
    command = [sys.executable, "-m", "ima.cli.bench.mt", name, side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def measure_memory(name: str, side: str) -> None:
    """Each process holds what its steps need, one LLM, and nothing of the other side."""
    setup = setup_of(name)
    if side == "ours":
        model, fast = setup.parts.model(), accelerate(setup.parts.llm.model)
        step = chain([our_step(setup.parts, model, b, True, entry, fast) for entry, b in enumerate(setup.batches)])
    else:
        trainer = Stock(setup.parts, share=True)
        step = chain([trainer.step(stream, batch) for stream, batch in setup.pairs()])
        del trainer.llm
    del setup
    gc.collect()
    step()
    forget_peak()
    for _ in range(NUM_STEPS):
        step()
    print(json.dumps({"peak_bytes": peak_so_far()}))


if __name__ == "__main__":
    measure_memory(*sys.argv[1:3])
