"""The Lightning module: frozen encoder -> adapter (trained, fp32) -> LLM, frozen as a rule.

Hides channels (one adapter, or one for each encoder of a mixture), micro-batches, the normalisation of the loss over
the global batch and the schedule. One batch of the loader is one optimiser step on every rank.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ima.core.distributed import Place, num_ranks
from ima.core.errors import UserError
from ima.core.types import Batch, MediaGroup, Role
from ima.models.adapters.base import Adapter, AdapterSet
from ima.models.encoders.base import Encoder
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tuning import trained_tensors
from ima.models.splice import splice


class MappingModule(pl.LightningModule):
    """lr is the peak; it rises from `warmup_from * lr` over `warmup_ratio` of the steps and falls along a cosine to
    `final_ratio * lr`. micro_batch_size: samples per forward pass, None for all of a rank's share at once. clip_norm:
    largest gradient norm, 0 for no clipping. llm_lr: the peak of what is trained of the LLM.

    adapter, encoder: the only ones, or AdapterSet and ModuleDict by channel."""

    def __init__(
        self,
        adapter: Adapter | AdapterSet,
        llm: FrozenLLM,
        encoder: Encoder | nn.ModuleDict | None = None,
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
        self.adapter, self.llm = adapter, llm
        self.encoder = encoder
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_ratio, self.warmup_from, self.final_ratio = warmup_ratio, warmup_from, final_ratio
        self.num_steps, self.micro_batch_size, self.clip_norm = num_steps, micro_batch_size, clip_norm
        self.llm_lr = llm_lr
        self.last_loss, self.last_lr = math.nan, math.nan

    # -- the model ---------------------------------------------------------------------------------------------------

    def adapter_of(self, channel: str) -> Adapter:
        adapter = self.adapter[channel] if isinstance(self.adapter, AdapterSet) else self.adapter
        assert isinstance(adapter, Adapter)
        return adapter

    def percept(self, group: MediaGroup) -> Tensor:
        """p_MKD in fp32."""
        features = group.features_MNE
        if features is None:
            encoder = self.encoder[group.channel] if isinstance(self.encoder, nn.ModuleDict) else self.encoder
            assert encoder is not None and group.media is not None
            features = encoder(group.media)
        percepts: Tensor = self.adapter_of(group.channel)(features.float())
        return percepts

    def splice(self, batch: Batch, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """x_BSD (LLM dtype), roles_BS and labels_BS of text with its media; `left` moves all padding to the left of the
        whole sequence, as generation wants it."""
        made = [(group, self.percept(group)) for group in batch.media_groups()]
        x_BSD, roles_BS, labels_BS = splice(self.llm, batch, made)
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
        absent = self._absent(batch)
        for index, part in enumerate(parts):
            loss_sum = self.loss_sum(part) + self._untouched(part)
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
            torch.nn.utils.clip_grad_norm_(self.trained(), self.clip_norm)
        self.last_lr = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()  # type: ignore[union-attr]

    def trained(self) -> list[nn.Parameter]:
        learning = [p for p in self.llm.parameters() if p.requires_grad] if self.llm.trains != "none" else []
        return [*self.adapter.parameters(), *learning]

    def _adapters(self) -> dict[str, Adapter]:
        names = self.adapter.keys() if isinstance(self.adapter, AdapterSet) else ("",)
        return {name: self.adapter_of(name) for name in names}

    def _absent(self, batch: Batch) -> list[Adapter]:
        """Adapters of channels that no rank's share of the batch has media for."""
        adapters = self._adapters()
        here = {group.channel for group in batch.media_groups()}
        seen = self._sum_over_ranks(torch.tensor([float(name in here) for name in adapters]))
        return [adapter for adapter, num in zip(adapters.values(), seen.tolist(), strict=True) if num == 0]

    def _untouched(self, part: Batch) -> Tensor | float:
        """Zero, by way of what this rank's micro-batch has no media for: DDP waits for a gradient of everything."""
        if not isinstance(self.trainer.strategy.model, DistributedDataParallel):
            return 0.0
        here = {group.channel for group in part.media_groups()}
        missing = [adapter for name, adapter in self._adapters().items() if name not in here]
        zeros = [p.sum() * 0.0 for adapter in missing for p in adapter.parameters()]
        return torch.stack(zeros).sum() if zeros else 0.0

    def _check_gradients(self) -> None:
        learning = {id(parameter) for parameter in self.trained()}
        wrong = [
            name
            for name, parameter in self.named_parameters()
            if parameter.grad is not None and id(parameter) not in learning
        ]
        assert not wrong, f"gradients outside of what is trained: {wrong[:3]}"
        for channel, adapter in self._adapters().items():
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
        return self.loss_sum(batch)

    def configure_optimizers(self) -> Any:
        decay = [p for p in self.adapter.parameters() if p.dim() > 1]
        plain = [p for p in self.adapter.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if self.llm.trains != "none":
            learning = [p for p in self.llm.parameters() if p.requires_grad]
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
        trained = {f"adapter.{key}": value for key, value in self.adapter.state_dict().items()}
        if self.llm.trains != "none":
            trained |= {f"llm.{key}": value for key, value in trained_tensors(self.llm).items()}
        checkpoint["state_dict"] = trained
        checkpoint["last_loss"] = self.last_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {key: value for key, value in self.state_dict().items() if not key.startswith("adapter.")}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]
        self.last_loss = checkpoint["last_loss"]


class KnownRanks(LightningEnvironment):
    """What Lightning is told about ranks: the place of this process, which is known, and nothing else of the
    environment. Its own detection would take part in whatever left a variable behind."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.set_global_rank(place.rank)

    @property
    def creates_processes_externally(self) -> bool:
        return not self.place.starts

    @property
    def main_address(self) -> str:
        if self.place.starts:
            return "127.0.0.1"
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        if self._main_port == -1:
            job = os.environ.get("SLURM_JOB_ID", "")[-4:]
            of_job = 15000 + int(job) if job.isdecimal() else 12910
            told = int(os.environ.get("MASTER_PORT") or of_job)
            self._main_port = find_free_network_port() if self.place.starts else told
        return self._main_port

    def world_size(self) -> int:
        return self.place.num

    def set_world_size(self, size: int) -> None:
        assert size == self.place.num, (size, self.place)

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        rank_zero_only.rank = self.place.rank  # type: ignore[attr-defined]

    def local_rank(self) -> int:
        return self.place.local

    def node_rank(self) -> int:
        return self.place.node

    def teardown(self) -> None:
        """WORLD_SIZE stays: the next stage of the run asks for its place again."""
