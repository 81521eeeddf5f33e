"""What a training step costs: against the bare LLM, against stock LLaVA parts in a plain loop, and with the tap on.

step_vs_bare       our whole step (collate, adapter, LLM, head on the labelled rows, both backwards, optimiser) over the
                   stock LLM's forward and backward to its input embeddings, same shapes and dtype, no head
vs_stock_uncached  a plain loop on LlavaForConditionalGeneration with the same LLM, encoder and adapter (encoder in the
                   loop, full logits) over our step with the encoder in the loop, same dtype
vs_stock_fp32      the same loop in its default dtype over our step
vs_stock_cached    the same loop (same dtype) over our step on cached features
ima_overhead       a teacher-forced validation pass on cached features with IMA per layer, norms and consecutive
                   similarity over the same pass without; _stock: both passes on stock blocks
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ima.cli.bench.pairs import report
from ima.config.compose import compose
from ima.config.settings import Alignment
from ima.core.timing import ratio, rounds
from ima.core.types import Role, Sample
from ima.data.collate import Collate, LiveMediaInputs
from ima.models.llm.acceleration.blocks import Acceleration, accelerate
from ima.models.multimodal import MultimodalModel
from ima.pipeline.assemble import assemble
from ima.pipeline.evaluator import Evaluator
from ima.pipeline.parts import Parts

GOALS = {
    "step_vs_bare": "goal <= 1.05, ambition 0.7",
    "vs_stock_uncached": "goal >= 1.1",
    "vs_stock_fp32": "goal >= 2",
    "vs_stock_cached": "",
    "ima_overhead": "goal <= 1.05",
    "ima_overhead_stock": "the same on stock blocks",
}
IMAGE_TOKEN = 7
BATCH_SIZE = 16


def main(num_rounds: int) -> None:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(compose(["experiment=demo", "logger=none"], "train"))
    parts = assemble(config)
    assert parts.store is not None
    train, val = parts.samples("train")[: 4 * BATCH_SIZE], parts.samples("val")
    parts.store.ensure([*train, *val])
    model = parts.model()

    steps = {
        "ours": our_step(parts, model, train[:BATCH_SIZE], live=False),
        "bare": bare_step(parts, model, train[:BATCH_SIZE]),
        "ours_uncached": our_step(parts, model, train[:BATCH_SIZE], live=True),
        "stock": stock_step(parts, train[:BATCH_SIZE], parts.llm.dtype),
        "stock_fp32": stock_step(parts, train[:BATCH_SIZE], torch.float32),
    }
    seconds = rounds(steps, num_rounds, "training steps")

    evaluator = Evaluator(model, parts.task, parts.source, parts.percepts, parts.loader.eval_batch_size)
    passes = {
        "plain": lambda: evaluator.teacher_forced(val, None),
        "ima": lambda: evaluator.teacher_forced(val, Alignment()),
    }
    with accelerate(parts.llm.model):
        seconds |= rounds(passes, num_rounds, "validation passes")
    stock = {f"{name}_stock": run for name, run in passes.items()}
    seconds |= rounds(stock, max(3, num_rounds // 2), "validation passes on stock blocks")
    ratios = {
        "step_vs_bare": ratio(seconds, "ours", "bare"),
        "vs_stock_uncached": ratio(seconds, "stock", "ours_uncached"),
        "vs_stock_fp32": ratio(seconds, "stock_fp32", "ours_uncached"),
        "vs_stock_cached": ratio(seconds, "stock", "ours"),
        "ima_overhead": ratio(seconds, "ima", "plain"),
        "ima_overhead_stock": ratio(seconds, "ima_stock", "plain_stock"),
    }
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:22s} {value:8.3f} s")
    facts = {"seconds": medians, "dtype": str(parts.llm.dtype), "batch_size": BATCH_SIZE, "rounds": num_rounds}
    report("train", ratios, GOALS, facts | {"num_threads": torch.get_num_threads()})


def our_step(
    parts: Parts,
    model: MultimodalModel,
    samples: list[Sample],
    live: bool,
    entry: int = 0,
    fast: Acceleration | None = None,
) -> Callable[[], None]:
    """One optimiser step as `ima.pipeline.lightning_module` does it, on samples of the mixture's `entry`. Pixels are
    ready in the uncached one, as in the stock loop, so that both time the models. fast: packed already."""
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-5)
    stream = parts.streams[entry]
    collate = stream.collate(parts.llm, training=True)
    items = [(sample, 0) for sample in samples]
    pixels = LiveMediaInputs(stream.source, stream.channel.encoder)(samples, 0) if live else {}
    runner = MultimodalModel(model.adapter, parts.llm, parts.encoder)
    faster = fast or accelerate(parts.llm.model)  # packed once, as in a run

    def step() -> None:
        batch = collate(items)
        if live and batch.groups:  # with a chat template the picture stands inside the text
            batch.groups = [dataclasses.replace(batch.groups[0], features_MNE=None, media=pixels["media"])]
        elif live:
            batch.features_BNE, batch.media = None, pixels["media"]
        with faster:
            num_labels = (batch.labels_BT != -100).sum()
            (runner.loss_sum(batch) / num_labels).backward()
        torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare_step(parts: Parts, model: MultimodalModel, samples: list[Sample], entry: int = 0) -> Callable[[], None]:
    """Stock forward and backward to the embeddings."""
    batch = parts.streams[entry].collate(parts.llm, training=True)([(sample, 0) for sample in samples])
    with torch.no_grad():
        x_BSD, roles_BS, _ = model.splice(batch)
    mask_BS = (roles_BS != Role.PAD).long()
    positions_BS = (mask_BS.cumsum(1) - 1).clamp_min(0)
    gradient = torch.randn_like(x_BSD)

    def step() -> None:
        x = x_BSD.detach().requires_grad_(True)
        h_BSD = parts.llm.model.base_model(
            inputs_embeds=x, attention_mask=mask_BS, position_ids=positions_BS, use_cache=False
        ).last_hidden_state
        h_BSD.backward(gradient)

    return step


class Tower(nn.Module):
    """Our encoder behind the interface that LLaVA expects of a vision tower."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        return SimpleNamespace(hidden_states=[self.encoder(pixel_values)], pooler_output=None)


class InFloat(nn.Module):
    """The adapter as LLaVA's multi_modal_projector: fp32 inside, as in ours."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.adapter(features.float())
        return projected


def stock_model(parts: Parts, dtype: torch.dtype, share: bool = False) -> tuple[Any, nn.Module]:
    """(LlavaForConditionalGeneration with our parts, frozen but for its adapter; the adapter). The LLM is a copy, or
    `share`: the same one."""
    import copy

    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
    config = LlavaConfig(vision_config=vision, text_config=parts.llm.model.config, image_token_index=IMAGE_TOKEN)
    config.vision_feature_layer, config.vision_feature_select_strategy = -1, "full"
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    llm = (
        parts.llm.model if share else copy.deepcopy(parts.llm.model).to(dtype)
    )  # head and embeddings stay one matrix where they are
    model.model.language_model, model.lm_head = llm.base_model, llm.get_output_embeddings()
    model.requires_grad_(False)
    model.model.vision_tower = Tower(parts.encoder)
    adapter = copy.deepcopy(parts.adapter).requires_grad_(True)
    model.model.multi_modal_projector = InFloat(adapter)
    model.model.get_image_features = plain_image_features(model.model)
    return model.train(False), adapter


def stock_step(parts: Parts, samples: list[Sample], dtype: torch.dtype) -> Callable[[], None]:
    """A plain loop around LlavaForConditionalGeneration: image tokens in the text, labels over all logits."""
    model, adapter = stock_model(parts, dtype)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-5)

    batch = Collate(parts.task, parts.llm, parts.percepts, training=True)([(sample, 0) for sample in samples])
    pixels = LiveMediaInputs(parts.source, parts.encoder)(samples, 0)["media"]
    num_tokens = parts.streams[0].channel.adapter.num_tokens or parts.encoder.num_tokens
    images = torch.full((len(samples), num_tokens), IMAGE_TOKEN)
    ids = torch.cat([images, batch.ids_BT], 1)
    labels = torch.cat([torch.full_like(images, -100), batch.labels_BT], 1)
    mask = torch.cat([torch.ones_like(images), (batch.roles_BT != Role.PAD).long()], 1)

    def step() -> None:
        loss = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_image_features(model: Any) -> Callable[..., Any]:
    """LLaVA's own recipe (tower, layer, projector) without the decorators that record a CLIP tower's hidden states."""

    def features(pixel_values: Tensor, **_: Any) -> Any:
        output = model.vision_tower(pixel_values)
        output.pooler_output = list(model.multi_modal_projector(output.hidden_states[-1]))
        return output

    return features
