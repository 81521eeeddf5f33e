"""The Lightning module: frozen encoder -> adapter (trained, fp32) -> frozen LLM.

Hides how perceptual tokens are put into the sequence, micro-batches, the normalisation of the loss over the global
batch and the schedule. One batch of the loader is one optimiser step on every rank.
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

from ima.adapters import Adapter
from ima.encoders.base import Encoder
from ima.errors import UserError
from ima.llm.frozen import FrozenLLM, Generation
from ima.types import Batch, Role


class MappingModule(pl.LightningModule):
    """lr is the peak; it rises from `warmup_from * lr` over `warmup_ratio` of the steps and falls along a cosine to
    `final_ratio * lr`. micro_batch_size: samples per forward pass, None for all of a rank's share at once. clip_norm:
    largest gradient norm, 0 for no clipping."""

    def __init__(
        self,
        adapter: Adapter,
        llm: FrozenLLM,
        encoder: Encoder | None = None,
        lr: float = 2e-3,
        weight_decay: float = 0.02,
        warmup_ratio: float = 0.05,
        warmup_from: float = 0.1,
        final_ratio: float = 0.05,
        num_steps: int = 1,
        micro_batch_size: int | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.adapter, self.llm = adapter, llm
        self.encoder = encoder
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_ratio, self.warmup_from, self.final_ratio = warmup_ratio, warmup_from, final_ratio
        self.num_steps, self.micro_batch_size, self.clip_norm = num_steps, micro_batch_size, clip_norm
        self.last_loss, self.last_lr = math.nan, math.nan

    # -- the model ---------------------------------------------------------------------------------------------------

    def percept(self, batch: Batch) -> Tensor | None:
        """p_BKD in fp32, or None for a text-only batch."""
        features = batch.features_BNE
        if features is None and batch.media is not None:
            assert self.encoder is not None
            features = self.encoder(batch.media)
        if features is None:
            return None
        percepts: Tensor = self.adapter(features.float())
        return percepts

    def splice(self, batch: Batch, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """x_BSD (LLM dtype), roles_BS and labels_BS of [percept, text]; `left` moves all padding to the left of the
        whole sequence, as generation wants it."""
        x_BSD = self.llm.embed(batch.ids_BT)
        roles_BS, labels_BS = batch.roles_BT, batch.labels_BT
        p_BKD = self.percept(batch)
        if p_BKD is not None:
            shape = p_BKD.shape[:2]
            x_BSD = torch.cat([p_BKD.to(x_BSD.dtype), x_BSD], dim=1)
            roles_BS = torch.cat([roles_BS.new_full(shape, int(Role.PERCEPT)), roles_BS], dim=1)
            labels_BS = torch.cat([labels_BS.new_full(shape, -100), labels_BS], dim=1)
        if left:
            order_BS = (roles_BS != Role.PAD).int().argsort(dim=1, stable=True)
            x_BSD = x_BSD.gather(1, order_BS[..., None].expand_as(x_BSD))
            roles_BS, labels_BS = roles_BS.gather(1, order_BS), labels_BS.gather(1, order_BS)
        return x_BSD, roles_BS, labels_BS

    def loss_sum(self, batch: Batch) -> Tensor:
        """Summed cross-entropy over the labelled tokens of the batch."""
        x_BSD, roles_BS, labels_BS = self.splice(batch)
        return self.llm.loss_sum(self.llm(x_BSD, roles_BS, [sample.id for sample in batch.samples]), labels_BS)

    @torch.no_grad()
    def generate(self, batch: Batch, settings: Generation) -> list[str]:
        """Text per sample of a prompt-only batch."""
        x_BSD, roles_BS, _ = self.splice(batch, left=True)
        sample_ids = [sample.id for sample in batch.samples]
        return [self.llm.decode(ids) for ids in self.llm.generate(x_BSD, roles_BS, settings, sample_ids)]

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
        for index, part in enumerate(parts):
            loss_sum = self.loss_sum(part)
            with self._synchronised(last=index == len(parts) - 1):
                # DDP averages gradients over ranks; the loss is a sum over them divided by the global count.
                self.manual_backward(loss_sum * (world / num_labels))
            total += loss_sum.detach()
        loss = self._sum_over_ranks(total) / num_labels
        self.last_loss = float(loss)
        if not math.isfinite(self.last_loss):
            raise UserError(
                f"training: the loss is {self.last_loss} at step {self.trainer.global_step}; "
                "lower trainer.lr or use llm.dtype=float32"
            )
        if batch_idx == 0:
            self._check_gradients()
        if self.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.clip_norm)
        self.last_lr = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()  # type: ignore[union-attr]

    def _check_gradients(self) -> None:
        wrong = [
            name
            for name, parameter in self.named_parameters()
            if parameter.grad is not None and not name.startswith("adapter.")
        ]
        assert not wrong, f"gradients outside the adapter: {wrong[:3]}"
        missing = [
            name
            for name, parameter in self.adapter.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert not missing, f"adapter parameters without gradient: {missing[:3]}"

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        value = value.to(self.device).clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(value)
        return value

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks talk in the last micro-batch of a step only: they may have different numbers of them."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def forward(self, batch: Batch) -> Tensor:
        return self.loss_sum(batch)

    def configure_optimizers(self) -> Any:
        decay = [p for p in self.adapter.parameters() if p.dim() > 1]
        plain = [p for p in self.adapter.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)}

    def lr_factor(self, step: int) -> float:
        warmup = max(1, round(self.warmup_ratio * self.num_steps))
        if step < warmup:
            return self.warmup_from + (1 - self.warmup_from) * step / warmup
        done = min(1.0, (step - warmup) / max(1, self.num_steps - warmup))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))

    # -- checkpoints hold what is trained ----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"adapter.{key}": value for key, value in self.adapter.state_dict().items()}
        checkpoint["last_loss"] = self.last_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {key: value for key, value in self.state_dict().items() if not key.startswith("adapter.")}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]
        self.last_loss = checkpoint["last_loss"]
