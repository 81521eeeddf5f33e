"""Memory of a training step by what it is for, from dimensions: weights, gradients, optimizer, activations.

Activations that a block keeps for the backward pass are counted in widths of a token: what attention and norms keep,
and what the FFN keeps of its inner width. The numbers of a block whose weights learn nothing are those of a profile:
Vicuna-7B's shapes, 16 x 624 tokens, bf16, one H100 (torch 2.11): peaks of 53.3 GiB for stock blocks, 41.6 compiled,
27.7 and 23.7 with `llm.activation_budget` of .5 and .3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GIB = 2**30
VOCABULARY = 32_000  # where nothing is known
# Widths and inner widths that a block keeps of a token: stock, compiled.
KEPT = {False: (8.6, 3.0), True: (6.5, 2.0)}
LEARNING = (2.0, 1.0)  # more where weights learn: the inputs of its linear maps
# The share of a compiled block's activations that is kept under a budget.
BUDGETS = ((0.0, 0.2), (0.3, 0.384), (0.5, 0.52), (1.0, 1.0))
BUDGET_STEPS = (1.0, 0.5, 0.3)


@dataclasses.dataclass(frozen=True)
class Size:
    """A language model's dimensions."""

    blocks: int
    width: int
    inner: int
    vocabulary: int
    narrow: float = 1.0  # width of keys and values over that of queries

    @property
    def block_weights(self) -> float:
        return (2 + 2 * self.narrow) * self.width**2 + 3 * self.width * self.inner

    @property
    def num_weights(self) -> float:
        return self.blocks * self.block_weights + self.vocabulary * self.width

    def lora_weights(self, rank: int) -> float:
        """Of two thin matrices beside each linear map of the blocks."""
        attention = 4 * self.width + 2 * (1 + self.narrow) * self.width
        return self.blocks * rank * (attention + 3 * (self.width + self.inner))


@dataclasses.dataclass(frozen=True)
class Training:
    """What decides a step's memory. rows, tokens: of a pass on one device; labels: supervised tokens of it; each: bytes
    of a number; train: none, lora or all; shards: devices that share weights, gradients and optimizer."""

    rows: int
    tokens: int
    labels: int
    each: int
    train: str = "none"
    lora_rank: int = 16
    compiled: bool = False
    budget: float = 1.0
    shards: int = 1


def kept_share(budget: float) -> float:
    for (low, there), (high, here) in zip(BUDGETS, BUDGETS[1:], strict=False):
        if budget <= high:
            return there + (here - there) * (budget - low) / (high - low)
    return 1.0


def training_memory(size: Size, how: Training) -> dict[str, float]:
    """Bytes on one device by what they are for; the adapter is not worth a line."""
    learning = {"none": 0.0, "lora": size.lora_weights(how.lora_rank), "all": size.num_weights}[how.train]
    of_width, of_inner = KEPT[how.compiled]
    if how.train != "none":
        of_width, of_inner = of_width + LEARNING[0], of_inner + LEARNING[1]
    block = (of_width * size.width + of_inner * size.inner) * how.each
    share = kept_share(how.budget) if how.compiled else 1.0
    logits = 3 * 4 * how.rows * how.labels * size.vocabulary  # fp32, their softmax, their gradient
    more = 4 * learning if how.train == "lora" else 0.0
    return {
        "LLM weights": (size.num_weights * how.each + more) / how.shards,
        "gradients": 4 * learning / how.shards,
        "optimizer": 8 * learning / how.shards,
        "activations": how.rows * how.tokens * size.blocks * block * share + logits,
    }


def fitting_budget(size: Size, how: Training, room: float) -> float | None:
    """The largest share of activations with which the step fits; None where none of them does."""
    for budget in BUDGET_STEPS:
        tried = dataclasses.replace(how, compiled=True, budget=budget)
        if sum(training_memory(size, tried).values()) <= room:
            return budget
    return None


def from_config(config: Mapping[str, object]) -> Size:
    """Of a Hugging Face config.json."""

    def number(*names: str, default: int = 0) -> int:
        found = next((config[name] for name in names if config.get(name)), default)
        return int(found) if isinstance(found, int | float) else default

    width, heads = number("hidden_size", "n_embd"), number("num_attention_heads", default=1)
    return Size(
        number("num_hidden_layers", "n_layer"),
        width,
        number("intermediate_size", "ffn_dim", default=4 * width),
        number("vocab_size", default=VOCABULARY),
        number("num_key_value_heads", default=heads) / heads,
    )
