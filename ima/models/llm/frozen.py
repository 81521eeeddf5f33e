"""A frozen Hugging Face causal LM as the rest of the project sees it: embed, forward from embeddings, loss, generate.

Hides position ids, the explicit attention mask, dtype, the LM head's cost and the bookkeeping of roles: while a
forward pass runs, `roles_of(x)` tells every hook which role each position of `x` has, also in cached decoding and for
beams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Role
from ima.models.llm.chat import ChatFormat
from ima.models.llm.compile_keys import Compile, check_compile, compile_failures, warn_uncompiled
from ima.models.llm.decoding import (
    FixedCache,
    check_tokens,
    contiguous_head,
    end_ids,
    own_settings,
    stock_blocks,
    warn_of_rope,
)
from ima.models.llm.decoding_roles import told_roles
from ima.models.llm.facts import LlmFacts, of_config
from ima.models.llm.pass_context import Generation, PassContext
from ima.models.llm.pieces import Before, PieceTokenizer
from ima.models.llm.positions import bucket, causal_mask, check_positions, num_positions
from ima.models.llm.sites import SiteTable, check_sites
from ima.models.llm.tuning import Train, make_trainable, merge_lora
from ima.models.llm.watchers import watched

MAX_PLAIN_LENGTH = 192  # in bf16 on two cores: 8 times faster at 38 positions, 2 at 128, slower from 256


class FrozenLLM(nn.Module):
    """`model`: any decoder-only LM of the site table, put into eval mode; `trains`: what of it learns (as a rule
    nothing, and there are no gradient buffers). `chat`: how conversations are laid out, None where text is plain.
    `fast`: whether its blocks may be replaced by faster ones that compute the same (`ima.models.llm.acceleration`).
    `compile`: whether they are compiled (`ima.models.llm.compiled`), auto: in training on a GPU; `activation_budget`:
    the share of their activations that is then kept for the backward pass.

    width D of the embeddings, num_blocks L, embedding_norm: mean L2 norm of the vocabulary's embeddings as they enter
    the first block (the scale at which perceptual tokens should start).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        bos: str = "auto",
        name: str = "llm",
        trains: Train = "none",
        lora_rank: int = 16,
        lora_alpha: float = 32.0,
        chat: str | None = None,
        seed: int = 0,
        fast: bool = True,
        compile: Compile = "auto",
        activation_budget: float = 1.0,
    ) -> None:
        super().__init__()
        self.compile_when = check_compile(compile, activation_budget)
        self.activation_budget = float(activation_budget)
        if bos not in ("auto", "always", "never"):
            raise UserError(f"llm.bos: {bos!r} is not one of auto, always, never")
        if trains not in ("none", "lora", "all"):
            raise UserError(f"llm.train: {trains!r} is not one of none, lora, all")
        self.model = model.eval()
        self.trains, self.fast = trains, fast
        make_trainable(self.model, trains, lora_rank, lora_alpha, seed)
        self.tokenizer, self.pieces = tokenizer, PieceTokenizer(tokenizer)
        self.name = name
        self.weights_from: str = getattr(model, "weights_from", "original")
        self.table = SiteTable(self.model)
        check_sites(self.model, self.table)
        self.width: int = self.model.get_input_embeddings().embedding_dim
        self.num_blocks, self.num_positions = len(self.table.blocks), num_positions(model.config)
        self.bos_id = self._bos(bos)
        check_tokens(self.model, tokenizer)
        warn_of_rope(self.model, name)
        self.stop_ids = end_ids(self.model, tokenizer)  # what ends an answer
        self.eos_id: int = self.stop_ids[0]
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.chat = ChatFormat(tokenizer, chat, self.bos_id) if chat else None
        if self.chat is not None and self.chat.stop_id not in self.stop_ids:
            self.stop_ids.append(self.chat.stop_id)
        self.embedding_norm = self._embedding_norm()
        self.running: PassContext | None = None
        self.fixed_cache = FixedCache()
        self.compiling = False  # while `ima.models.llm.compiled` acts

    @property
    def stream_width(self) -> int:
        """Of the states between blocks; `width` is that of the embeddings, which is smaller in opt-350m."""
        return int(getattr(self.model.config, "hidden_size", self.width))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def compiles(self, training: bool) -> bool:
        """Whether its blocks are compiled for what comes: a training or a measurement."""
        return self.compile_when is True or (self.compile_when == "auto" and training and self.device.type == "cuda")

    @property
    def one_mask(self) -> bool:
        """Whether all blocks see the same positions: none of them slides a window."""
        kinds = getattr(self.model.config, "layer_types", None) or []
        return set(kinds) <= {"full_attention"} and not getattr(self.model.config, "sliding_window", None)

    def padded_length(self, length: int) -> int:
        """How long a sequence of `length` positions is made: compiled blocks want few different lengths."""
        return bucket(length, self.num_positions) if self.compiling else length

    @property
    def facts(self) -> LlmFacts:
        """What could be known of it before it was loaded."""
        return of_config(self.name, self.model.config)

    def train(self, mode: bool = True) -> FrozenLLM:
        """Stays in eval mode whatever Lightning asks: dropout inside a frozen LLM would be noise."""
        return super().train(False)

    def merge(self) -> None:
        """LoRA added into the weights: a stock model again, that learns no more."""
        if self.trains == "lora":
            merge_lora(self.model)
            self.table = SiteTable(self.model)
        self.model.requires_grad_(False)
        self.trains = "none"

    def _bos(self, bos: str) -> int | None:
        token: int | None = self.tokenizer.bos_token_id
        if bos == "never" or (bos == "auto" and token not in self.tokenizer("a").input_ids):
            return None
        if token is None:
            raise UserError("llm.bos: always, but this tokenizer has no BOS token; use auto or never")
        return token

    @torch.no_grad()
    def _embedding_norm(self) -> float:
        ids = torch.arange(self.model.get_input_embeddings().num_embeddings, device=self.device)
        norms = [self.embed(part[None]).float().norm(dim=-1).sum() for part in ids.split(8192)]
        return float(torch.stack(norms).sum()) / len(ids)

    def encode(self, text: str, before: Before = Before.NOTHING) -> list[int]:
        """Token ids of a piece of text, without specials (collate places these and gives them their roles)."""
        return self.pieces.encode(text, before)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """e_BTD as the first block expects it (Gemma's scaling included)."""
        embedded: Tensor = self.model.get_input_embeddings()(ids_BT)
        return embedded

    def forward(self, x_BSD: Tensor, roles_BS: Tensor, sample_ids: Sequence[str] | None = None) -> Tensor:
        """h_BSD after the final norm. PAD positions are invisible to all others; their outputs mean nothing.
        sample_ids: for interventions that draw by sample."""
        check_positions(self.name, self.num_positions, roles_BS, sample_ids)
        if x_BSD.requires_grad:  # training needs the memory
            self.fixed_cache.forget()
        mask_BS = (roles_BS != Role.PAD).long()
        positions_BS = (mask_BS.cumsum(1) - 1).clamp_min(0)
        running = PassContext(roles_BS, None if sample_ids is None else tuple(sample_ids))
        with self._running(running), self._attention(x_BSD.shape[1]):
            output = self.model.base_model(
                inputs_embeds=x_BSD.to(self.dtype),
                attention_mask=causal_mask(roles_BS) if self.compiling and self.one_mask else mask_BS,
                position_ids=positions_BS,
                use_cache=False,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    @contextmanager
    def _attention(self, length: int) -> Iterator[None]:
        """Short sequences in bf16 on a CPU: gradients through torch's fused kernel take 2 to 8 times as long there as
        through the plain products (in fp32 they do not). Blocks that learn are the ones that need them."""
        config = self.model.config
        plain = self.trains != "none" and torch.is_grad_enabled() and config._attn_implementation == "sdpa"
        if not (plain and self.dtype == torch.bfloat16 and self.device.type == "cpu" and length <= MAX_PLAIN_LENGTH):
            yield
            return
        config._attn_implementation = "eager"
        try:
            yield
        finally:
            config._attn_implementation = "sdpa"

    def logits(self, h_ND: Tensor) -> Tensor:
        """fp32 logits of N rows. Rows must be 2-D: a sliced 3-D input would copy the head's weight per example."""
        assert h_ND.dim() == 2
        logits: Tensor = self.model.get_output_embeddings()(h_ND)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        logits = logits.float()
        return torch.tanh(logits / cap) * cap if cap else logits

    def loss_sum(self, h_BSD: Tensor, labels_BS: Tensor, num: int | None = None) -> Tensor:
        """Summed cross-entropy of the labelled positions. labels_BS[b, s] is the token AT s, predicted from s - 1; only
        rows that carry a label reach the LM head. num: how many are labelled, where the host knows it: nothing waits
        for the device then."""
        target_N = F.pad(labels_BS[:, 1:], (0, 1), value=-100).flatten()
        labelled_N = target_N != -100
        index = labelled_N.nonzero() if num is None else torch.nonzero_static(labelled_N, size=num)
        rows_ND = h_BSD.flatten(0, 1)[index[:, 0]]
        return F.cross_entropy(self.logits(rows_ND), target_N[index[:, 0]], reduction="sum")

    def log_likelihood(self, h_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Mean log probability of each row's labelled tokens, (B,)."""
        target_BS = labels_BS[:, 1:]
        chosen = target_BS != -100
        losses = F.cross_entropy(self.logits(h_BSD[:, :-1][chosen]), target_BS[chosen], reduction="none")
        row = chosen.nonzero()[:, 0]
        sums = torch.zeros(len(labels_BS), device=losses.device).index_add_(0, row, -losses)
        return sums / chosen.sum(1)

    @contextmanager
    def _running(self, running: PassContext) -> Iterator[None]:
        before, self.running = self.running, running
        try:
            yield
        finally:
            self.running = before

    def roles_of(self, x: Tensor) -> Tensor:
        """roles_BS of the positions of `x` in the running pass; x: (B, S, ...) or flattened to (B * S, ...), as inside
        OPT's FFN. Prompt positions have the roles they were given (repeated for beams), decoded ones are GENERATED."""
        assert self.running is not None, "roles are known only while a pass runs"
        num_rows, length = self.running.roles_BS.shape
        assert x.shape[:2] == (num_rows, length) or x.shape[0] == num_rows * length, "not of the running pass"
        return self.running.roles_BS

    @torch.no_grad()
    def generate(
        self, x_BSD: Tensor, roles_BS: Tensor, settings: Generation, sample_ids: Sequence[str] | None = None
    ) -> list[list[int]]:
        """New token ids per example, EOS and what follows cut off. Sequences are padded on the LEFT as a whole."""
        mask_BS = (roles_BS != Role.PAD).long()
        assert bool((mask_BS.diff(dim=1) >= 0).all()), "generation pads on the left"
        names = None if sample_ids is None else tuple(sample_ids)
        check_positions(self.name, self.num_positions, roles_BS, names, settings.max_new_tokens)
        cache = self._fixed_cache(len(x_BSD) * settings.num_beams, x_BSD.shape[1] + settings.max_new_tokens)
        inputs = {"inputs_embeds": x_BSD.to(self.dtype), "attention_mask": mask_BS}
        with ExitStack() as stack:
            if self.device.type == "cpu":
                stack.enter_context(contiguous_head(self.model))
            config = stack.enter_context(own_settings(self.model, settings, self.stop_ids, self.pad_id, self.bos_id))
            try:
                if cache is not None:
                    with stock_blocks(self.table.blocks):
                        ids_BT = self.model.generate(**inputs, generation_config=config, past_key_values=cache)
            except compile_failures() as error:
                warn_uncompiled(f"decoding of {self.name}", error)
                self.fixed_cache, cache = FixedCache(usable=False), None
            if cache is None:
                with told_roles(self, roles_BS, names):
                    ids_BT = self.model.generate(**inputs, generation_config=config)
        return [self.until_end(row) for row in ids_BT.tolist()]

    def _fixed_cache(self, rows: int, length: int) -> Any:
        """The cache to decode with where nobody looks or changes anything on the way; None: the usual one."""
        asked = self.compile_when is True or (self.compile_when == "auto" and self.device.type == "cuda")
        if not asked or watched(self.model, itself=True):
            return None
        return self.fixed_cache.of(self.model, rows, length)

    def until_end(self, ids: list[int]) -> list[int]:
        """What stands before the first token that ends an answer."""
        return ids[: next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))]

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
