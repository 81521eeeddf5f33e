"""Multi-task training against stock LLaVA: LlavaForConditionalGeneration in a transformers Trainer, paired in one run.

Same LLM (SmolLM2), encoder (ViT-S/14, layer 10: 257 tokens), mlp adapter, pictures, texts and dtype; both train the
projector alone. Pixels are ready in both.

vs_trainer_uncached  Trainer's step over ours with the encoder in the step
vs_trainer_cached    Trainer's step over ours on cached features
step_vs_bare         our step on cached features over the stock LLM's forward and backward to its embeddings, no head
step_vs_gemm         the same over the time of the LLM's matrix products at the speed of one large product
memory_vs_trainer    peak resident memory of a process that takes our steps (with the encoder) over one of Trainer's
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ima.bench.pairs import report
from ima.bench.train import bare_step, our_step
from ima.compose import compose
from ima.data.collate import LivePercepts
from ima.llava import IMAGE_TOKEN, llava_of
from ima.parts import Parts, assemble
from ima.turns import ratio, rounds
from ima.types import Role, Sample

GOALS = {
    "vs_trainer_uncached": "goal >= 1.1",
    "vs_trainer_cached": "goal >= 1.5",
    "step_vs_bare": "goal <= 1.05",
    "step_vs_gemm": "",
    "memory_vs_trainer": "goal <= 1",
}
BATCH_SIZE = 4
CONFIG = ["experiment=demo", "encoder=focus_vit", "adapter=mlp", "llm.chat=chatml", "data.limit=16", "logger=none"]
NUM_STEPS = 3  # of the processes whose memory is taken


def parts_of() -> tuple[Parts, list[Sample]]:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(compose(CONFIG, "train"))
    parts = assemble(config)
    assert parts.store is not None
    samples = parts.samples("train")[:BATCH_SIZE]
    parts.store.ensure(samples)
    return parts, samples


def main(num_rounds: int) -> None:
    parts, samples = parts_of()
    module = parts.module(num_steps=1000)
    steps = {
        "ours": our_step(parts, module, samples, live=False),
        "ours_uncached": our_step(parts, module, samples, live=True),
        "trainer": trainer_step(parts, samples),
        "bare": bare_step(parts, module, samples),
        "gemm": gemm(parts, samples),
    }
    seconds = rounds(steps, num_rounds, "training steps")
    ratios = {
        "vs_trainer_uncached": ratio(seconds, "trainer", "ours_uncached"),
        "vs_trainer_cached": ratio(seconds, "trainer", "ours"),
        "step_vs_bare": ratio(seconds, "ours", "bare"),
        "step_vs_gemm": ratio(seconds, "ours", "gemm"),
    }
    memory = {name: peak_bytes(name) for name in ("ours", "trainer")}
    over = memory["ours"] / memory["trainer"]
    ratios["memory_vs_trainer"] = (over, over, over)
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:22s} {value:8.3f} s")
    facts = {"seconds": medians, "dtype": str(parts.llm.dtype), "batch_size": BATCH_SIZE, "rounds": num_rounds}
    report("mt", ratios, GOALS, facts | {"peak_bytes": memory, "num_threads": torch.get_num_threads()})


def texts(parts: Parts, samples: list[Sample], image_id: int) -> dict[str, Tensor]:
    """Our batch as LLaVA's Trainer takes it: image tokens in the text, labels over all positions."""
    batch = parts.streams[0].collate(parts.llm, training=True)([(sample, 0) for sample in samples])
    num_tokens, place = parts.encoder.num_tokens, parts.streams[0].collate(parts.llm).lay(samples[0], 0).places[0]

    def put(text_BT: Tensor, fill: int) -> Tensor:
        return torch.cat([text_BT[:, :place], torch.full((len(samples), num_tokens), fill), text_BT[:, place:]], 1)

    mask = (batch.roles_BT != Role.PAD).long()
    return {
        "input_ids": put(batch.ids_BT, image_id),
        "labels": put(batch.labels_BT, -100),
        "attention_mask": put(mask, 1),
        "pixel_values": LivePercepts(parts.source, parts.encoder)(samples, 0)["media"],
    }


def trainer_step(parts: Parts, samples: list[Sample]) -> Callable[[], None]:
    """`Trainer.training_step`, clipping, AdamW; the projector in fp32 as in ours, the rest in the run's dtype."""
    from transformers import Trainer, TrainingArguments

    adapter = parts.streams[0].channel.adapter
    model, tokenizer = llava_of(copy.deepcopy(parts.encoder), adapter, copy.deepcopy(parts.llm))
    projector = model.model.multi_modal_projector.float().requires_grad_(True)
    projector.register_forward_pre_hook(lambda _module, args: (args[0].float(),))
    inputs = texts(parts, samples, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), report_to=[], use_cpu=True, per_device_train_batch_size=len(samples)
    )
    trainer: Any = Trainer(model=model, args=arguments)
    trainer.current_gradient_accumulation_steps = 1  # what its own loop sets
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-5)

    def step() -> None:
        trainer.training_step(model, inputs)
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gemm(parts: Parts, samples: list[Sample]) -> Callable[[], None]:
    """Every product of the blocks' weights with all positions, forward and backward to the inputs, and nothing else."""
    batch = parts.streams[0].collate(parts.llm)([(sample, 0) for sample in samples])
    num = len(samples) * (batch.ids_BT.shape[1] + parts.encoder.num_tokens)
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


def peak_bytes(name: str) -> int:
    done = subprocess.run([sys.executable, "-m", "ima.bench.mt", name], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def measure_memory(name: str) -> None:
    parts, samples = parts_of()
    if name == "ours":
        step = our_step(parts, parts.module(num_steps=1000), samples, live=True)
    else:
        step = trainer_step(parts, samples)
    step()
    forget_peak()
    for _ in range(NUM_STEPS):
        step()
    print(json.dumps({"peak_bytes": peak_so_far()}))


def forget_peak() -> None:
    """Loading weights takes more than steps do; its peak must not stand for theirs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_so_far() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    measure_memory(Path(sys.argv[1]).name)
