"""The Lightning module: how a `MultimodalModel` is trained.

Hides micro-batches, the normalisation of the loss over the global batch, what ranks exchange, the schedule and what a
checkpoint holds. One batch of the loader is one optimiser step on every rank.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ima.core.distributed import num_ranks
from ima.core.errors import UserError
from ima.core.types import Batch
from ima.models.adapters.base import Adapter, AdapterSet
from ima.models.llm.frozen import FrozenLLM
from ima.models.multimodal import MultimodalModel


class MappingModule(pl.LightningModule):
    """lr is the peak; it rises from `warmup_from * lr` over `warmup_ratio` of the steps and falls along a cosine to
    `final_ratio * lr`. micro_batch_size: samples per forward pass, None for all of a rank's share at once. clip_norm:
    largest gradient norm, 0 for no clipping. llm_lr: the peak of what is trained of the LLM."""

    def __init__(
        self,
        model: MultimodalModel,
        lr: float = 2e-3,
        weight_decay: float = 0.02,
        warmup_ratio: float = 0.05,
        warmup_from: float = 0.1,
        final_ratio: float = 0.05,
        num_steps: int = 1,
        micro_batch_size: int | None = None,
        clip_norm: float = 1.0,
        llm_lr: float = 2e-5,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_ratio, self.warmup_from, self.final_ratio = warmup_ratio, warmup_from, final_ratio
        self.num_steps, self.micro_batch_size, self.clip_norm = num_steps, micro_batch_size, clip_norm
        self.llm_lr = llm_lr
        self.last_loss, self.last_lr = math.nan, math.nan

    @property
    def adapter(self) -> Adapter | AdapterSet:
        return self.model.adapter

    @property
    def llm(self) -> FrozenLLM:
        return self.model.llm

    # -- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        world = self.trainer.world_size
        num_labels = self._sum_over_ranks((batch.labels_BT != -100).sum().float())
        if num_labels == 0:
            raise UserError(
                f"data: no token of the batch is supervised (sample {batch.samples[0].id}); check the task's targets"
            )
        parts = batch.split(self.micro_batch_size or len(batch))
        total = torch.zeros((), device=self.device)
        absent = self._absent(batch)
        for index, part in enumerate(parts):
            loss_sum = self.model.loss_sum(part) + self._untouched(part)
            with self._synchronised(last=index == len(parts) - 1):
                # DDP averages gradients over ranks; the loss is a sum over them divided by the global count.
                if loss_sum.requires_grad:  # text alone teaches a frozen LLM nothing
                    self.manual_backward(loss_sum * (world / num_labels))
            total += loss_sum.detach()
        loss = self._sum_over_ranks(total) / num_labels
        self.last_loss = float(loss)
        if not math.isfinite(self.last_loss):
            raise UserError(
                f"training: the loss is {self.last_loss} at step {self.trainer.global_step}; "
                "lower trainer.lr or use llm.dtype=float32"
            )
        for adapter in absent:  # its channel is nowhere in the global batch: not even its momentum moves it
            adapter.zero_grad(set_to_none=True)
        if batch_idx == 0:
            self._check_gradients()
        if self.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.trained_parameters(), self.clip_norm)
        self.last_lr = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()  # type: ignore[union-attr]

    def _absent(self, batch: Batch) -> list[Adapter]:
        """Adapters of channels that no rank's share of the batch has media for."""
        adapters = self.model.adapters
        here = {group.channel for group in batch.media_groups()}
        seen = self._sum_over_ranks(torch.tensor([float(name in here) for name in adapters]))
        return [adapter for adapter, num in zip(adapters.values(), seen.tolist(), strict=True) if num == 0]

    def _untouched(self, part: Batch) -> Tensor | float:
        """Zero, by way of what this rank's micro-batch has no media for: DDP waits for a gradient of everything."""
        if not isinstance(self.trainer.strategy.model, DistributedDataParallel):
            return 0.0
        here = {group.channel for group in part.media_groups()}
        missing = [adapter for name, adapter in self.model.adapters.items() if name not in here]
        zeros = [p.sum() * 0.0 for adapter in missing for p in adapter.parameters()]
        return torch.stack(zeros).sum() if zeros else 0.0

    def _check_gradients(self) -> None:
        learning = {id(parameter) for parameter in self.model.trained_parameters()}
        wrong = [
            name
            for name, parameter in self.named_parameters()
            if parameter.grad is not None and id(parameter) not in learning
        ]
        assert not wrong, f"gradients outside of what is trained: {wrong[:3]}"
        for channel, adapter in self.model.adapters.items():
            got = {name: parameter.grad is not None for name, parameter in adapter.named_parameters()}
            missing = [name for name, has in got.items() if not has]
            assert not missing or not any(got.values()), f"adapter {channel}: no gradient of {missing[:3]}"

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        value = value.to(self.device).clone()
        if num_ranks() > 1:
            dist.all_reduce(value)
        return value

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks talk in the last micro-batch of a step only: they may have different numbers of them."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss_sum(batch)

    def configure_optimizers(self) -> Any:
        decay = [p for p in self.adapter.parameters() if p.dim() > 1]
        plain = [p for p in self.adapter.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if learning := self.model.llm_parameters():
            groups.append({"params": learning, "weight_decay": 0.0, "lr": self.llm_lr})
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=fused)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)}

    def lr_factor(self, step: int) -> float:
        warmup = max(1, round(self.warmup_ratio * self.num_steps))
        if step < warmup:
            return self.warmup_from + (1 - self.warmup_from) * step / warmup
        done = min(1.0, (step - warmup) / max(1, self.num_steps - warmup))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))

    # -- checkpoints hold what is trained ----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.model.trained_state()
        checkpoint["last_loss"] = self.last_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {key: value for key, value in self.model.state_dict().items() if not key.startswith("adapter.")}
        whole = frozen | checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"model.{key}": value for key, value in whole.items()}
        self.last_loss = checkpoint["last_loss"]
