"""Speed and memory on whatever GPU there is (on a CPU: the same code on a tiny model, numbers without meaning).

Ratios, larger is slower unless said:
step, llava | single        our training step (adapter, blocks compiled, head on labelled rows, backward, AdamW) over
                            bare: the stock LLM's forward and backward to its embeddings
stock over ours, llava      a stock LLaVA step on features (all logits) over ours: how many times faster we are
memory, budget B            peak of our step over the stock step's, with a share B of the activations kept
default alignment, full     a pass without gradients that looks inside over the same pass without (vocabulary apart)
skip ...                    how many times faster with the plan, blocks compiled, beside what its FLOPs say
wanda                       sequential calibration with the choice of weights over a forward pass on its examples
decoding                    Hugging Face's generate with its own cache over ours
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ima.alignment.measurement import Measurement
from ima.cli.bench.gpu_setup import SIZES, Bench, Layout, num_weights, product_rate, spliced
from ima.cli.bench.pairs import FOLDER, synchronise
from ima.cli.bench.prune import made_up, plain_pass, wanda_choice
from ima.cli.bench.skip import num_flops
from ima.config.settings import Alignment
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.core.timing import ratio, rounds
from ima.core.types import Role
from ima.interventions.prune.calibration import sequential
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.pass_context import Generation

GOALS = {
    "step, llava": "<= .72", "step, single": "<= .85", "stock over ours, llava": ">= 1.4",
    "memory, budget 1": "<= .75", "memory, budget 0.3": "<= .5", "default alignment, llava": "<= 1.02",
    "default alignment, single": "<= 1.05", "full alignment, llava": "<= 2", "wanda": "<= 4", "decoding": ">= 1.7",
}  # fmt: skip
BUDGETS = (1.0, 0.5, 0.3)
START = 4  # the first block of the skips' plans; later where the model has so few
Found = dict[str, dict[str, Any]]
Turns = dict[str, Callable[[], object]]


def main(num_rounds: int, size: str = "7b") -> None:
    if size not in SIZES:
        raise UserError(f"--size: {size!r} is not one of {', '.join(SIZES)}")
    bench = Bench.of(SIZES[size], num_rounds)
    found: Found = {}
    rate = product_rate(bench.size, bench.device, bench.llm.dtype)
    for part in (training, alignment, skips, masks, decoding):
        for name, values in part(bench).items():
            found[name] = values | ({"goal": GOALS[name]} if name in GOALS else {})
            print(line(name, found[name]))
    tokens = bench.size.llava.num * (bench.size.llava.percepts + bench.size.llava.text)
    limit = 4 * num_weights(bench.llm) * tokens / rate
    facts = {
        "size": size, "device": name_of(bench.device), "dtype": str(bench.llm.dtype), "torch": torch.__version__,
        "rounds": num_rounds, "backend": bench.backend, "tflops_of_products": rate / 1e12,
        "products_alone_over_bare": limit / found["step, llava"]["seconds"]["bare"],
        "share_of_products": limit / found["step, llava"]["seconds"]["ours"],
        "tokens_per_second": tokens / found["step, llava"]["seconds"]["ours"],
    }  # fmt: skip
    print(
        f"large products: {facts['tflops_of_products']:.1f} TFLOP/s; the step reaches {facts['share_of_products']:.0%}"
    )
    write_json(FOLDER / "gpu.json", {"ratios": found, "facts": facts})
    print(FOLDER / "gpu.json")


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def line(name: str, values: dict[str, Any]) -> str:
    more = [f"{key} {values[key]:.2f}" for key in ("flops", "gib") if values.get(key) is not None]
    return f"{name:28} {values['ratio']:7.3f}  {values.get('goal', ''):8} {'  '.join(more)}"


def compared(bench: Bench, turns: Turns, what: str, pairs: dict[str, tuple[str, str]]) -> Found:
    """Rows of ratios over / under of turns, with the seconds of all."""
    seconds = rounds({name: synchronised(turn) for name, turn in turns.items()}, bench.num_rounds, what)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: dict(zip(("ratio", "low", "high"), ratio(seconds, over, under), strict=True)) | {"seconds": medians}
        for name, (over, under) in pairs.items()
    }


def training(bench: Bench) -> Found:
    found: Found = {}
    for name in ("llava", "single"):
        layout: Layout = getattr(bench.size, name)
        pairs = {f"step, {name}": ("ours", "bare"), f"step without compiling, {name}": ("eager", "bare")}
        turns: Turns = {"bare": bare(bench, layout)}
        turns["ours"] = within(bench.compiled(), our_step(bench, layout))
        turns["eager"] = our_step(bench, layout)
        if name == "llava":
            turns["stock"] = stock_step(bench, layout)
            pairs["stock over ours, llava"] = ("stock", "ours")
        found |= compared(bench, turns, f"training steps, {name}", pairs)
    return found | (memory(bench) if bench.device.type == "cuda" else {})


def synchronised(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()
        synchronise()

    return run


def within(context: Any, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with context:
            call()

    return run


def memory(bench: Bench) -> Found:
    layout = bench.size.llava
    stock, found = peak(bench, stock_step(bench, layout)), Found()
    for budget in BUDGETS:
        torch._dynamo.reset()
        with bench.compiled(budget):
            step = our_step(bench, layout)
            here = peak(bench, step)
            seconds = rounds({"ours": synchronised(step)}, max(2, bench.num_rounds // 2), f"budget {budget}")
        found[f"memory, budget {budget:g}"] = {
            "ratio": here / stock, "gib": here / 2**30, "seconds": {"ours": statistics.median(seconds["ours"])},
        }  # fmt: skip
    torch._dynamo.reset()
    return found


def peak(bench: Bench, step: Callable[[], object]) -> int:
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def our_step(bench: Bench, layout: Layout) -> Callable[[], object]:
    model, batch = bench.model(layout), bench.batch(layout)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        model.loss(batch).backward()
        nn.utils.clip_grad_norm_(model.adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare(bench: Bench, layout: Layout) -> Callable[[], object]:
    x_BSD, roles_BS, _ = spliced(bench, layout)
    mask_BS, x_BSD = (roles_BS != Role.PAD).long(), x_BSD.detach().requires_grad_()

    def step() -> None:
        out = bench.llm.model.base_model(inputs_embeds=x_BSD, attention_mask=mask_BS, use_cache=False)
        torch.autograd.grad(out.last_hidden_state.sum(), x_BSD)

    return step


def stock_step(bench: Bench, layout: Layout) -> Callable[[], object]:
    """LLaVA on features, as its own class does it: projector in the LLM's dtype, logits of all positions."""
    batch, size, llm = bench.batch(layout), bench.size, bench.llm
    projector = nn.Sequential(nn.Linear(size.encoder, size.width), nn.GELU(), nn.Linear(size.width, size.width))
    projector.to(bench.device, llm.dtype)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-5)
    assert batch.features_BNE is not None
    features_BNE = batch.features_BNE.to(llm.dtype)
    labels_BS = F.pad(batch.labels_BT, (layout.percepts, 0), value=-100)

    def step() -> None:
        x_BSD = torch.cat([projector(features_BNE), llm.embed(batch.ids_BT)], 1)
        mask_BS = torch.ones_like(labels_BS)
        llm.model(inputs_embeds=x_BSD, attention_mask=mask_BS, labels=labels_BS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def alignment(bench: Bench) -> Found:
    found: Found = {}
    sites: Any = tuple(site.value for site in bench.llm.table.sites)
    everything = Alignment(
        sites=sites, variants=("nosink", "update"), num_reservoir=16, num_paired=0, examples=True
    )  # scales need a pass of their own, which is no part of this one
    for name in ("llava", "single"):
        layout: Layout = getattr(bench.size, name)
        turns: Turns = {"plain": looks(bench, layout, None), "default": looks(bench, layout, Alignment(num_paired=0))}
        turns["full"] = looks(bench, layout, everything)
        pairs = {f"{key} alignment, {name}": (key, "plain") for key in ("default", "full")}
        found |= compared(bench, turns, f"alignment, {name}", pairs)
    return found


def looks(bench: Bench, layout: Layout, asked: Alignment | None) -> Callable[[], object]:
    x_BSD, roles_BS, ids = spliced(bench, layout)

    @torch.no_grad()
    def run() -> None:
        tap = None if asked is None else Measurement(asked, bench.llm, ids).tap()
        with tap or nullcontext(), tap.batch(roles_BS, ids) if tap else nullcontext():
            bench.llm(x_BSD, roles_BS, ids)

    return run


def skips(bench: Bench) -> Found:
    llm, layout = bench.llm, dataclasses.replace(bench.size.llava, num=max(1, bench.size.llava.num // 2))
    start = min(START, llm.num_blocks // 2)
    percepts = ("percept",)
    plans = {
        "ffn": Skip("ffn", percepts, start), "attn": Skip("attn", percepts, start),
        "block": Skip("block", percepts, start), "block every 2": Skip("block", percepts, start, every=2),
        "block half first": Skip("block", percepts, start, ratio=0.5, select="first"),
        "block half random": Skip("block", percepts, start, ratio=0.5),
    }  # fmt: skip
    x_BSD, roles_BS, ids = spliced(bench, layout)

    def forward(plan: list[Skip]) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> None:
            with stack(llm, plan), bench.compiled():
                llm(x_BSD, roles_BS, ids)

        return run

    found: Found = {}
    whole = num_flops(llm, x_BSD, roles_BS, ids, [])
    for name, plan in plans.items():
        turns = {"plain": forward([]), "skipped": forward([plan])}
        values = compared(bench, turns, f"skip {name}", {f"skip {name}": ("plain", "skipped")})
        values[f"skip {name}"]["flops"] = whole / num_flops(llm, x_BSD, roles_BS, ids, [plan])
        found |= values
    return found


def masks(bench: Bench) -> Found:
    """Once each: it takes long enough."""
    llm, batches = bench.llm, made_up(bench.llm)[: 4 if bench.size.blocks > 8 else 1]
    decide, forward = wanda_choice(llm), plain_pass(llm, batches)
    turns: Turns = {"forward": forward, "sequential": lambda: sequential(llm, batches, decide)}
    once = dataclasses.replace(bench, num_rounds=1)
    return compared(once, turns, "wanda", {"wanda": ("sequential", "forward")})


def decoding(bench: Bench) -> Found:
    llm = bench.llm
    x_BSD, roles_BS, ids = spliced(bench, bench.size.llava)
    settings = Generation(bench.size.new_tokens)

    def generate(compile: bool) -> Callable[[], object]:
        def run() -> None:
            llm.compile_when = compile
            try:
                llm.generate(x_BSD, roles_BS, settings, ids)
            finally:
                llm.compile_when = True

        return run

    turns: Turns = {"usual": generate(False), "ours": generate(True)}
    return compared(bench, turns, "decoding", {"decoding": ("usual", "ours")})
