"""The Lightning module: how a `MultimodalModel` is trained.

Hides how the loss is normalised over the passes and ranks of a step, what ranks exchange, the optimizer and what a
checkpoint holds. A batch of the loader is one pass on every rank; `trainer.accumulate_grad_batches` make a step.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ima.config.instantiation import made
from ima.config.settings import OptimizerKeys, SchedulerKeys
from ima.core.distributed import num_ranks
from ima.core.errors import UserError, prefix_errors
from ima.core.types import Batch, Step
from ima.models.adapters.base import Adapter, AdapterSet
from ima.models.llm.frozen import FrozenLLM
from ima.models.multimodal import MultimodalModel
from ima.pipeline.moments import may_wait
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


@dataclasses.dataclass
class StepSoFar:
    """A step of which some passes are made. num_labels: of all its passes and ranks. absent: adapters that none of them
    has media for. loss_sum: of this rank's passes so far."""

    num_labels: float
    absent: list[str]
    loss_sum: Tensor


class MappingModule(pl.LightningModule):
    """Trains the adapters (and, where `llm.train` says so, the LLM) by automatic optimisation. optimizer, scheduler:
    nodes of the config (`conf/optimizer`, `conf/scheduler`). total_steps: None for what the trainer estimates.

    A step's loss is the mean over all of its labelled tokens, whichever pass and rank they are of."""

    def __init__(
        self,
        model: MultimodalModel,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer, self.scheduler, self.total_steps = optimizer or ADAMW, scheduler, total_steps
        self.last_lr = math.nan
        self.last_loss = torch.tensor(math.nan)  # of the last step, on the device: reading it waits for the step to end
        self.step: StepSoFar | None = None  # of which some passes are made
        self.kept: dict[str, Any] | None = None  # of a checkpoint, until training starts
        self.checked = False

    @property
    def adapter(self) -> Adapter | AdapterSet:
        return self.model.adapter

    @property
    def llm(self) -> FrozenLLM:
        return self.model.llm

    # -- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.step if self.step is not None else self._begin_step(batch)
        loss_sum = self.model.loss_sum(batch) + self._untouched(batch)
        step.loss_sum += loss_sum.detach()
        if not loss_sum.requires_grad:  # text alone teaches a frozen LLM nothing
            loss_sum = loss_sum + torch.stack([p.sum() * 0.0 for p in self.model.trained_parameters()]).sum()
        # Lightning divides by the passes of a step, DDP averages over ranks; the loss is a sum over both.
        parts = float(self.trainer.world_size * self.trainer.accumulate_grad_batches)
        return loss_sum * float(np.float32(parts) / np.float32(step.num_labels))

    def _begin_step(self, batch: Batch) -> StepSoFar:
        """What the passes of this step hold together, on all ranks."""
        num = batch.num_labels if batch.num_labels is not None else int((batch.labels_BT != -100).sum())
        here = batch.step or Step(num, frozenset(group.channel for group in batch.media_groups()))
        counts = [float(here.num_labels), *(float(name in here.channels) for name in self.model.adapters)]
        if num_ranks() > 1:
            counts = self._sum_over_ranks(torch.tensor(counts)).tolist()
        num_labels, *seen = counts
        if num_labels == 0:
            raise UserError(
                f"data: no token of the batch is supervised (sample {batch.samples[0].id}); check the task's targets"
            )
        absent = [name for name, num in zip(self.model.adapters, seen, strict=True) if num == 0]
        self.step = StepSoFar(num_labels, absent, torch.zeros((), device=self.device))
        return self.step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        step, self.step = self.step, None
        assert step is not None
        self.last_loss = self._sum_over_ranks(step.loss_sum) / step.num_labels
        if may_wait(self.device, self.trainer.global_step + 1):
            self._check_loss()
        for name in step.absent:  # its channel is nowhere in the global batch: not even its momentum moves it
            self.model.adapters[name].zero_grad(set_to_none=True)
        if not self.checked:
            self.checked = True
            self._check_gradients()
        self.last_lr = float(optimizer.param_groups[0]["lr"])
        self.log_dict({"train/loss": self.last_loss, "train/lr": self.last_lr}, on_step=True, batch_size=1)

    def _check_loss(self) -> None:
        """Where the loss is read anyway, now and then, and before anything is written."""
        if not math.isfinite(loss := float(self.last_loss)):
            raise UserError(
                f"training: the loss is {loss} at step {self.trainer.global_step}; "
                "lower optimizer.lr or use llm.dtype=float32"
            )

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grad_norm_(self.model.trained_parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: what is measured in the validation loop are callbacks, each over samples of its own."""

    def on_train_epoch_start(self) -> None:
        self.checked = False

    def on_train_start(self) -> None:
        """Gradients of the passes that a resumed step has behind it."""
        if self.kept is not None:
            for name, parameter in self.model.named_parameters():
                if name in self.kept["gradients"]:
                    parameter.grad = self.kept["gradients"][name].to(parameter)
            loss_sum = torch.as_tensor(self.kept["loss_sum"], device=self.device)
            self.step = StepSoFar(self.kept["num_labels"], list(self.kept["absent"]), loss_sum)
            self.kept = None

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

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss_sum(batch)

    def configure_optimizers(self) -> Any:
        with prefix_errors("optimizer"):
            optimizer = make_optimizer(self.optimizer, self.model)
        if not self.scheduler:
            return optimizer
        with prefix_errors("scheduler"):
            keys, make = taken_apart(self.scheduler, SchedulerKeys)
            scheduler = with_total(make, self._num_steps())(optimizer)
        found = {name: value for name, value in dataclasses.asdict(keys).items() if value is not None}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **found}}

    def _num_steps(self) -> int:
        """Optimizer steps of the whole training, as far as the trainer's flags tell."""
        if self.total_steps is not None:
            return self.total_steps
        if self._trainer is None:
            return 1
        found = self._trainer.estimated_stepping_batches
        if not math.isfinite(found):
            raise UserError(
                "trainer.max_epochs: without an end, and scheduler needs one; set max_steps or scheduler=none"
            )
        return int(found)

    # -- checkpoints hold what is trained ----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.global_step > 0:
            self._check_loss()
        checkpoint["state_dict"] = self.model.trained_state()
        checkpoint["last_loss"] = float(self.last_loss)
        if self.step is not None:  # in the middle of a step: each rank's gradients, as their mean
            found = {
                name: p.grad for name, p in self.model.named_parameters() if p.requires_grad and p.grad is not None
            }
            mean = {name: self._sum_over_ranks(grad) / num_ranks() for name, grad in found.items()}
            loss_sum = float(self._sum_over_ranks(self.step.loss_sum)) / num_ranks()
            checkpoint["step_so_far"] = {
                "gradients": mean, "loss_sum": loss_sum, "num_labels": self.step.num_labels, "absent": self.step.absent,
            }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {key: value for key, value in self.model.state_dict().items() if not key.startswith("adapter.")}
        whole = frozen | checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"model.{key}": value for key, value in whole.items()}
        self.last_loss = torch.tensor(float(checkpoint["last_loss"]))
        self.kept = checkpoint.get("step_so_far")
