"""The network: frozen encoder -> adapter (trained, fp32) -> LLM, frozen as a rule. A plain torch module.

It computes perceptual tokens, places them in the text, gives the loss over the labels and generates. Hidden here:
channels, of which a mixture has one for each of its encoders. Training it is the subject of `ima.pipeline`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Batch, MediaGroup, Role
from ima.models.adapters.base import Adapter, AdapterSet
from ima.models.encoders.base import Encoder
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.llm.tuning import trained_tensors
from ima.models.splice import splice


class MultimodalModel(nn.Module):
    """adapter, encoder: the only ones of the model, or an AdapterSet and a ModuleDict by channel. A model without an
    encoder takes batches that hold the encoder's features.

    Shapes: B samples, T text tokens, K perceptual tokens of a medium, S = T + K positions, width D of the LLM. Batches
    must lie on `device`; `Batch.to` moves them.
    """

    def __init__(
        self, adapter: Adapter | AdapterSet, llm: FrozenLLM, encoder: Encoder | nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.adapter, self.llm = adapter, llm
        self.encoder = encoder

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Adapters by channel; the only one of a model has the name ""."""
        names = self.adapter.keys() if isinstance(self.adapter, AdapterSet) else ("",)
        return {name: self.adapter_of(name) for name in names}

    def adapter_of(self, channel: str) -> Adapter:
        adapter = self.adapter[channel] if isinstance(self.adapter, AdapterSet) else self.adapter
        assert isinstance(adapter, Adapter)
        return adapter

    def percept(self, group: MediaGroup) -> Tensor:
        """Perceptual tokens p_MKD in fp32 of the M media of a group, from its features or else from its media."""
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

    def forward(self, batch: Batch) -> Tensor:
        """h_BSD after the LLM's final norm; outputs at PAD positions mean nothing."""
        x_BSD, roles_BS, _ = self.splice(batch)
        hidden: Tensor = self.llm(x_BSD, roles_BS, [sample.id for sample in batch.samples])
        return hidden

    def loss_sum(self, batch: Batch) -> Tensor:
        """Summed cross-entropy, in nats, over the labelled tokens of the batch; a scalar."""
        x_BSD, roles_BS, labels_BS = self.splice(batch)
        h_BSD = self.llm(x_BSD, roles_BS, [sample.id for sample in batch.samples])
        return self.llm.loss_sum(h_BSD, labels_BS, batch.num_labels)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy, in nats, of a labelled token of the batch; a scalar. Raises UserError where no token is
        labelled."""
        num_labels = (batch.labels_BT != -100).sum()
        if num_labels == 0:
            raise UserError("loss: no token of the batch is labelled; collate it with answers")
        return self.loss_sum(batch) / num_labels

    @torch.no_grad()
    def generate(self, batch: Batch, settings: Generation) -> list[str]:
        """Text per sample of a prompt-only batch."""
        x_BSD, roles_BS, _ = self.splice(batch, left=True)
        sample_ids = [sample.id for sample in batch.samples]
        return [self.llm.decode(ids) for ids in self.llm.generate(x_BSD, roles_BS, settings, sample_ids)]

    def llm_parameters(self) -> list[nn.Parameter]:
        """What is trained of the LLM: nothing as a rule, LoRA's weights or all."""
        return [p for p in self.llm.parameters() if p.requires_grad] if self.llm.trains != "none" else []

    def trained_parameters(self) -> list[nn.Parameter]:
        return [*self.adapter.parameters(), *self.llm_parameters()]

    def trained_state(self) -> dict[str, Tensor]:
        """What is trained, by its name in `state_dict`: `adapter.*`, and `llm.*` where the LLM learns."""
        trained = {f"adapter.{key}": value for key, value in self.adapter.state_dict().items()}
        if self.llm.trains != "none":
            trained |= {f"llm.{key}": value for key, value in trained_tensors(self.llm).items()}
        return trained
