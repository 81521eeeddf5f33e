"""Forward and backward to the input embeddings: accelerated frozen blocks over stock ones, no head, right-padded rows.

Random weights at SmolLM2-135M's sizes, so that nothing has to be fetched; one ratio for each dtype and shape.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ima.cli.bench.pairs import report
from ima.core.timing import Ratio, ratio, rounds
from ima.models.llm.acceleration.blocks import accelerate

SHAPES = ((16, 22), (32, 22), (8, 64))
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(num_rounds: int) -> None:
    ratios: dict[str, Ratio] = {}
    medians: dict[str, float] = {}
    for dtype_name, dtype in DTYPES.items():
        model = stock_model(dtype)
        fast = accelerate(model)
        for num_rows, length in SHAPES:
            name = f"{dtype_name}_{num_rows}x{length}"
            given = padded_batch(model, num_rows, length)
            turns = {"stock": step(model, given, nullcontext()), "fast": step(model, given, fast)}
            seconds = rounds(turns, num_rounds, f"steps {name}")
            ratios[name] = ratio(seconds, "fast", "stock")
            medians |= {f"{name}_{turn}": round(statistics.median(values), 4) for turn, values in seconds.items()}
    report("fast", ratios, {}, {"seconds": medians, "rounds": num_rounds, "num_threads": torch.get_num_threads()})


def stock_model(dtype: torch.dtype) -> Any:
    """SmolLM2-135M's blocks with random weights; the vocabulary is small because no head runs."""
    from transformers import LlamaConfig, LlamaModel

    make_config: Any = LlamaConfig
    config = make_config(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=32, rope_theta=1e5, rms_norm_eps=1e-5, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaModel(config)
    return model.to(dtype).eval().requires_grad_(False)


def padded_batch(model: Any, num_rows: int, length: int) -> dict[str, Tensor]:
    """Lengths spread evenly between two thirds of `length` and all of it."""
    lengths = torch.linspace(2 * length / 3, length, num_rows).round().long()
    mask_BS = (torch.arange(length)[None] < lengths[:, None]).long()
    embeds_BSD = torch.randn(num_rows, length, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    positions_BS = (mask_BS.cumsum(1) - 1).clamp_min(0)
    return {"inputs_embeds": embeds_BSD.to(model.dtype), "attention_mask": mask_BS, "position_ids": positions_BS}


def step(model: Any, given: dict[str, Tensor], context: AbstractContextManager[Any]) -> Callable[[], None]:
    real_BS = given["attention_mask"].bool()

    def run() -> None:
        x_BSD = given["inputs_embeds"].clone().requires_grad_(True)
        with context:
            hidden_BSD = model(**(given | {"inputs_embeds": x_BSD}), use_cache=False).last_hidden_state
            hidden_BSD[real_BS].float().square().mean().backward()

    return run
