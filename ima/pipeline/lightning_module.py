"""The Lightning module: how a `MultimodalModel` is trained.

Hides micro-batches, the normalisation of the loss over the global batch, what ranks exchange, the optimizer and what a
checkpoint holds. One batch of the loader is one optimiser step on every rank.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ima.config.instantiation import made
from ima.config.settings import OptimizerKeys, SchedulerKeys
from ima.core.distributed import num_ranks
from ima.core.errors import UserError, prefix_errors
from ima.core.types import Batch
from ima.models.adapters.base import Adapter, AdapterSet
from ima.models.llm.frozen import FrozenLLM
from ima.models.multimodal import MultimodalModel
from ima.pipeline.schedule import with_total

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 2e-3, "weight_decay": 0.02}
Keys = TypeVar("Keys", OptimizerKeys, SchedulerKeys)


def taken_apart(node: Mapping[str, Any], kind: type[Keys]) -> tuple[Keys, Callable[..., Any]]:
    """The keys of a group that are not its class's, and a factory that knows the others."""
    names = {field.name for field in dataclasses.fields(kind)}
    keys = kind(**{name: value for name, value in node.items() if name in names})
    rest = {name: value for name, value in node.items() if name not in names}
    return keys, made({**rest, "_partial_": True}, _convert_="all")


def make_optimizer(node: Mapping[str, Any], model: MultimodalModel) -> torch.optim.Optimizer:
    """Matrices with weight decay, other parameters without, and what is trained of the LLM with its own rate."""
    keys, make = taken_apart(node, OptimizerKeys)
    parameters = inspect.signature(make).parameters
    without = {"weight_decay": 0.0} if "weight_decay" in parameters else {}
    mine = list(model.adapter.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in mine if p.dim() > 1]},
        {"params": [p for p in mine if p.dim() <= 1], **without},
    ]
    if learning := model.llm_parameters():
        groups.append({"params": learning, "lr": keys.llm_lr, **without})
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = {"fused": True} if "fused" in parameters and "fused" not in node and devices <= {"cpu", "cuda"} else {}
    optimizer = make(groups, **fused)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


class MappingModule(pl.LightningModule):
    """optimizer, scheduler: nodes of the config (`conf/optimizer`, `conf/scheduler`). num_passes: forward passes that
    make one step. clip_norm: largest gradient norm, 0 for no clipping."""

    def __init__(
        self,
        model: MultimodalModel,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        num_steps: int = 1,
        num_passes: int = 1,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.optimizer, self.scheduler = optimizer or ADAMW, scheduler
        self.num_steps, self.num_passes, self.clip_norm = num_steps, num_passes, clip_norm
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
        parts = batch.split(math.ceil(len(batch) / self.num_passes))
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
                "lower optimizer.lr or use llm.dtype=float32"
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
        if scheduler is not None:
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
        with prefix_errors("optimizer"):
            optimizer = make_optimizer(self.optimizer, self.model)
        if not self.scheduler:
            return optimizer
        with prefix_errors("scheduler"):
            keys, make = taken_apart(self.scheduler, SchedulerKeys)
            scheduler = with_total(make, self.num_steps)(optimizer)
        found = {name: value for name, value in dataclasses.asdict(keys).items() if value is not None}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **found}}

    # -- checkpoints hold what is trained ----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.model.trained_state()
        checkpoint["last_loss"] = self.last_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {key: value for key, value in self.model.state_dict().items() if not key.startswith("adapter.")}
        whole = frozen | checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"model.{key}": value for key, value in whole.items()}
        self.last_loss = checkpoint["last_loss"]
