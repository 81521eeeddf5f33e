"""What `python -m ima bench gpu` measures on: an LLM of a family's shapes with random weights, made on the device, and
batches of the two shapes that trainings have. Arithmetic does not care for values."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ima.cli.bench.pairs import synchronise
from ima.core.trust import STOCK
from ima.core.types import Batch, Role, Sample
from ima.models.adapters.linear import MlpAdapter
from ima.models.adapters.query import QueryAdapter
from ima.models.llm.compiled import CompiledBlocks
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.tiny import tiny_tokenizer
from ima.models.multimodal import MultimodalModel


@dataclasses.dataclass(frozen=True)
class Layout:
    """A batch: num samples of `percepts` perceptual tokens, made from `tokens` of an encoder, and `text` tokens, the
    last `labels` of them supervised."""

    num: int
    tokens: int
    percepts: int
    text: int
    labels: int


@dataclasses.dataclass(frozen=True)
class Size:
    """The LLM's shapes, the batches (`llava`: an MLP over all tokens, `single`: queries) and how much is decoded."""

    width: int
    inner: int
    heads: int
    blocks: int
    vocabulary: int
    encoder: int
    llava: Layout
    single: Layout
    new_tokens: int
    product: int


SIZES = {
    "7b": Size(4096, 11008, 32, 32, 32000, 1024, Layout(16, 576, 576, 48, 32), Layout(64, 256, 10, 24, 12), 32, 8192),
    "1b": Size(2048, 5632, 16, 16, 32000, 1024, Layout(16, 576, 576, 48, 32), Layout(64, 256, 10, 24, 12), 32, 8192),
    "tiny": Size(32, 64, 4, 6, 259, 16, Layout(2, 24, 24, 8, 4), Layout(4, 16, 4, 8, 4), 4, 64),
}


def make_llm(size: Size, device: torch.device) -> FrozenLLM:
    """Of Llama's shapes, in bf16 on a GPU and fp32 on a CPU."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.blocks,
        num_attention_heads=size.heads, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=4096,
    )  # fmt: skip
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa", **STOCK)
    return FrozenLLM(model, tiny_tokenizer(), name="random", compile=True, fast=False)


@dataclasses.dataclass
class Bench:
    """The parts of all measurements. backend: of torch.compile; on a CPU the code generator is left out, which takes a
    minute and is not what is asked there."""

    size: Size
    llm: FrozenLLM
    num_rounds: int

    @classmethod
    def of(cls, size: Size, num_rounds: int) -> Bench:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(size, make_llm(size, device), num_rounds)

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def backend(self) -> str:
        return "aot_eager" if self.device.type == "cpu" else "inductor"

    def compiled(self, budget: float = 1.0) -> CompiledBlocks:
        return CompiledBlocks(self.llm, budget, self.backend)

    def model(self, layout: Layout) -> MultimodalModel:
        """With the adapter of the layout, in fp32 as in a run."""
        one_each = layout.tokens == layout.percepts
        adapter: Any = (
            MlpAdapter(self.size.encoder, self.size.width)
            if one_each
            else QueryAdapter(self.size.encoder, self.size.width, layout.percepts)
        )
        return MultimodalModel(adapter.to(self.device), self.llm)

    def batch(self, layout: Layout) -> Batch:
        generator = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(3, 259, (layout.num, layout.text), generator=generator)
        roles_BT = torch.full_like(ids_BT, int(Role.PROMPT))
        roles_BT[:, -layout.labels :] = int(Role.ANSWER)
        labels_BT = torch.where(roles_BT == Role.ANSWER, ids_BT, -100)
        samples = [Sample(f"bench/{index}", "val", "val", "image", ("a",)) for index in range(layout.num)]
        features_BNE = torch.randn(layout.num, layout.tokens, self.size.encoder, generator=generator)
        return Batch(samples, ids_BT, roles_BT, labels_BT, features_BNE).to(self.device)


def product_rate(size: Size, device: torch.device, dtype: torch.dtype, num: int = 10) -> float:
    """Floating-point operations a second of a large square product of random matrices."""
    import time

    x, y = (torch.randn(size.product, size.product, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(num):
        synchronise()
        start = time.perf_counter()
        x @ y
        synchronise()
        best = max(best, 2 * size.product**3 / (time.perf_counter() - start))
    return best


def num_weights(llm: FrozenLLM) -> int:
    """Of the products of a token's way through the blocks."""
    return sum(m.weight.numel() for block in llm.table.blocks for m in block.modules() if isinstance(m, nn.Linear))


def spliced(bench: Bench, layout: Layout) -> tuple[Tensor, Tensor, list[str]]:
    """x_BSD and roles_BS of a layout without gradients, and the samples' names."""
    batch = bench.batch(layout)
    with torch.no_grad():
        x_BSD, roles_BS, _ = bench.model(layout).splice(batch)
    return x_BSD, roles_BS, [sample.id for sample in batch.samples]
