"""The statistics of one site in one pass of the model, some layers at a time.

`LayerPass` is given the layers in order. It collects them to chunks (`add`) and processes a chunk at once (`process`),
perhaps in another thread. For each layer it keeps the mean token of every view, the norms of tokens and means, the
products of the means of each pair of views, and the cosines of each token with itself one and eight layers earlier.
`finish` returns them as a `PassResult`, which `accumulate` adds to the sums. States of earlier layers are kept only as
long as consecutive similarity needs them. Everything is fp32, whatever dtype the model computes in. The definition
of every number is in `plain`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ima.alignment.reference_pass import Scale, centred
from ima.alignment.streaming.batch_roles import BatchRoles, PassResult, cosine, dot
from ima.alignment.streaming.chunks import (
    BufferPool,
    ComparedLayers,
    EarlierStates,
    Float32Buffer,
    LayerChunk,
    OutputPass,
    unchanged,
)
from ima.alignment.streaming.site_stats import STEPS
from ima.alignment.views import ROLE_VIEWS, Plan


class LayerPass:
    """One site in one pass. Tensors have room for all layers of the model; `layers` says which rows are filled."""

    def __init__(
        self,
        roles: BatchRoles,
        consecutive: bool,
        num_layers: int,
        plan: Plan,
        buffers: BufferPool,
        float32: Float32Buffer,
    ) -> None:
        self.roles, self.steps, self.plan = roles, STEPS if consecutive else (), plan
        self.num_layers, self.buffers, self.float32 = num_layers, buffers, float32
        self.added = LayerChunk(None)
        self.layers: list[int] = []
        self.copied: set[int] = set()
        self.earlier = EarlierStates()
        self.means: dict[str, Tensor] = {}
        has_BR, num_distinct = roles.has_BR, plan.num_by_role if roles.any_sink else len(ROLE_VIEWS)
        self.weight_BKS = roles.weight_BRS[:, :num_distinct]  # without a sink among P and T `nosink` is `raw`
        batch_size, seq_len = len(has_BR), roles.mask_BRS.shape[-1]
        self.norms_LBS = has_BR.new_zeros(num_layers, batch_size, seq_len)
        steps = [n for n in self.steps if n < num_layers]
        self.cosines_LBS = {n: has_BR.new_zeros(num_layers - n, batch_size, seq_len) for n in steps}
        self.compared: dict[int, list[int]] = {n: [] for n in steps}  # the layers whose place there is filled
        self.has_LBR = has_BR.new_zeros(num_layers, batch_size, len(plan.views))
        self.has_LBR[..., : plan.num_by_role] = has_BR[:, : plan.num_by_role]
        self.norms_LBR = torch.ones_like(self.has_LBR)
        self.dots_LBQ = self.has_LBR.new_zeros(num_layers, batch_size, len(plan.pairs))
        self.seen_LBS: Tensor | None = None

    def add(
        self,
        layer: int,
        x_BSD: Tensor,
        scale: Scale | None,
        version: int,
        copy_from: OutputPass | None,
        seen_BS: Tensor | None = None,
    ) -> list[LayerChunk]:
        """The chunks that are ready to be processed, in order."""
        ready = []
        if self.added.layers and (self.added.layers[-1] != layer - 1 or self.added.copy_from is not copy_from):
            ready += self.take_pending()
        if not self.added.layers:
            self.added = LayerChunk(copy_from)
        self.added.layers.append(layer)
        self.added.states.append(x_BSD)
        self.added.versions.append(version)
        self.added.seen.append(seen_BS)
        if scale is not None:
            self.added.scales.append(scale)
        return ready + self.take_pending() if self.added.is_full else ready

    def take_pending(self) -> list[LayerChunk]:
        pending, self.added = self.added, LayerChunk(None)
        return [pending] if pending.layers else []

    def process(self, chunk: LayerChunk) -> None:
        if not self.means:
            self._allocate(chunk.states[0].shape[-1])
        start = len(self.layers)
        self.layers += chunk.layers
        rows = slice(start, len(self.layers))
        if chunk.copy_from is None:
            self._token_statistics(chunk, rows)
            self._mean_statistics(chunk, rows)
        else:
            self._copy_results(chunk, rows, chunk.copy_from)
        for x_BSD, version in zip(chunk.states, chunk.versions, strict=True):
            unchanged(x_BSD, version)
        self.earlier.keep(chunk)
        self.earlier.drop(chunk.layers[-1] - max(self.steps, default=0))

    def _allocate(self, width: int) -> None:
        def allocate(name: str, num_rows: int) -> None:
            shape = self.num_layers, len(self.roles.has_BR), num_rows, width
            self.means[name] = self.buffers.get(name, shape, self.has_LBR.device)

        allocate("tokens", self.weight_BKS.shape[1])
        for variant in ("nomassive", "scaled", "update"):
            if variant in self.plan.variants:
                allocate(variant, 2)

    def _token_statistics(self, chunk: LayerChunk, rows: slice) -> None:
        """Norms, mean tokens and products with earlier layers, a tile at a time; then the cosines."""
        partial_LBKS = self._partial_weights(chunk, rows)
        block = self.earlier.with_chunk(chunk, dict.fromkeys(self.compared, chunk.layers))
        for tile, states in block.tiles():
            block_LBSD = self.float32.stack(states)
            x_LBSD = block_LBSD[-len(chunk.layers) :]
            self.norms_LBS[rows, tile] = vector_norm(x_LBSD, dim=-1)
            whole_BKS = self.weight_BKS[tile]
            weight_LBKS = whole_BKS.expand(len(x_LBSD), -1, -1, -1) if partial_LBKS is None else partial_LBKS[:, tile]
            if "nomassive" in self.plan.variants:
                weight_LBKS = torch.cat([weight_LBKS, self._without_massive(chunk, rows, tile)], 2)
            means_XKD = torch.bmm(weight_LBKS.flatten(0, 1), x_LBSD.flatten(0, 1))
            means_LBKD, num = means_XKD.unflatten(0, x_LBSD.shape[:2]), self.weight_BKS.shape[1]
            self.means["tokens"][rows, tile] = means_LBKD[:, :, :num]
            if "nomassive" in self.plan.variants:
                self.means["nomassive"][rows, tile] = means_LBKD[:, :, num:]
            self._add_products(block, tile, block_LBSD)
        self._to_cosines(block)

    def _partial_weights(self, chunk: LayerChunk, rows: slice) -> Tensor | None:
        """The weights of the mean tokens at layers that have a state at some positions only; None where all layers have
        one at all positions. Also updates which example has a token of which view there."""
        if all(seen_BS is None for seen_BS in chunk.seen):
            return None
        mask_BRS = self.roles.mask_BRS
        if self.seen_LBS is None:
            self.seen_LBS = mask_BRS.new_ones(self.norms_LBS.shape)
        for row, seen_BS in zip(range(rows.start, rows.stop), chunk.seen, strict=True):
            if seen_BS is not None:
                self.seen_LBS[row] = seen_BS
        mask_LBRS = mask_BRS & self.seen_LBS[rows, :, None]
        count_LBR = mask_LBRS.sum(-1)
        self.has_LBR[rows, :, : self.plan.num_by_role] = (count_LBR > 0).float()
        return (mask_LBRS / count_LBR.clamp_min(1)[..., None])[:, :, : self.weight_BKS.shape[1]]

    def _add_products(self, block: ComparedLayers, tile: slice, block_LBSD: Tensor) -> None:
        """The products of each token with itself n layers earlier."""
        for n, later, before in block.pairs:
            starts = block.layers[before]
            self.cosines_LBS[n][starts[0] : starts[-1] + 1, tile] = dot(block_LBSD[later], block_LBSD[before])

    def _to_cosines(self, block: ComparedLayers) -> None:
        """Divide these products by the norms."""
        row = {layer: index for index, layer in enumerate(self.layers)}
        for n, later, before in block.pairs:
            starts, ends = block.layers[before], block.layers[later]
            product_LBS = self.cosines_LBS[n][starts[0] : starts[-1] + 1]
            norms = [self.norms_LBS[row[layers[0]] : row[layers[-1]] + 1] for layers in (ends, starts)]
            product_LBS.copy_(cosine(product_LBS, *norms))
            self.compared[n] += starts

    def _without_massive(self, chunk: LayerChunk, rows: slice, tile: slice) -> Tensor:
        """The weights of the means of P and T without massive tokens. Needs the norms of the tokens."""
        massive_L = torch.tensor([scale.massive for scale in chunk.scales], device=self.norms_LBS.device)
        small_LBS = self.norms_LBS[rows, tile] <= massive_L[:, None, None]
        if self.seen_LBS is not None:
            small_LBS &= self.seen_LBS[rows, tile]
        kept_LB2S = self.roles.mask_BRS[tile, :2] & small_LBS[:, :, None]
        count_LB2 = kept_LB2S.sum(-1)
        self.has_LBR[rows, tile, self.plan.at("nomassive")] = (count_LB2 > 0).float()
        return kept_LB2S / count_LB2.clamp_min(1)[..., None]

    def _mean_statistics(self, chunk: LayerChunk, rows: slice) -> None:
        """Norms and products of the mean tokens, and the variants that follow from those of P and T."""
        plan, has_LBR, dots_LBQ = self.plan, self.has_LBR[rows], self.dots_LBQ[rows]
        norms_LBR = self.norms_LBR[rows]
        means_LBKD = self.means["tokens"][rows]
        means_LB2D, has_LB2 = means_LBKD[:, :, :2], has_LBR[..., :2]
        norms_LBR[..., : means_LBKD.shape[2]] = vector_norm(means_LBKD, dim=-1)
        dots_LBQ[..., :3] = dot(means_LBKD[:, :, :1], means_LBKD[:, :, 1:4])

        def set_variant(variant: str, made_LB2D: Tensor, there_LB2: Tensor | None = None) -> None:
            at = plan.at(variant)
            norms_LBR[..., at] = vector_norm(made_LB2D, dim=-1)
            dots_LBQ[..., plan.pair_at(variant)] = dot(made_LB2D[:, :, 0], made_LB2D[:, :, 1])
            if there_LB2 is not None:
                has_LBR[..., at] = there_LB2

        if "nosink" in plan.variants and self.roles.any_sink:
            set_variant("nosink", means_LBKD[:, :, -2:])
        elif "nosink" in plan.variants:
            norms_LBR[..., plan.at("nosink")] = norms_LBR[..., :2]
            dots_LBQ[..., plan.pair_at("nosink")] = dots_LBQ[..., 0]
        if "nomassive" in plan.variants:
            set_variant("nomassive", self.means["nomassive"][rows])
        if "scaled" in plan.variants:
            inverse_LD = torch.stack([scale.inverse_D for scale in chunk.scales])
            made_LB2D = torch.mul(means_LB2D, inverse_LD[:, None, None], out=self.means["scaled"][rows])
            known_L = has_LB2.new_tensor([scale.known for scale in chunk.scales])
            set_variant("scaled", made_LB2D, has_LB2 * known_L[:, None, None])
        if "centred" in plan.variants:
            made_LB2D, known_LB2 = centred(chunk.scales, means_LB2D, self.roles.inside_B)
            set_variant("centred", made_LB2D.mul_(has_LB2[..., None]), has_LB2 * known_LB2)
        if "update" in plan.variants:
            set_variant("update", *self._updates(rows, has_LB2))

    def _updates(self, rows: slice, has_LB2: Tensor) -> tuple[Tensor, Tensor]:
        """What the block before each of these layers adds, and which examples have it. Zero where the layer before was
        not shown."""
        means_LB2D, made_LB2D = self.means["tokens"][:, :, :2], self.means["update"]
        follows = rows.start > 0 and self.layers[rows.start - 1] == self.layers[rows.start] - 1
        start = rows.start if follows else rows.start + 1
        torch.sub(
            means_LB2D[start : rows.stop], means_LB2D[start - 1 : rows.stop - 1], out=made_LB2D[start : rows.stop]
        )
        there_LB2 = has_LB2.clone()
        if not follows:
            made_LB2D[rows.start] = there_LB2[0] = 0
        return made_LB2D[rows], there_LB2

    def _copy_results(self, chunk: LayerChunk, rows: slice, copy_from: OutputPass) -> None:
        """Copy the results of the same states at the block outputs. Only cosines with states that were not copied from
        there are computed."""
        start = copy_from.layers.index(chunk.layers[0] - 1)
        theirs = slice(start, start + len(chunk.layers))
        for name, means_LBRD in self.means.items():
            means_LBRD[rows] = copy_from.means[name][theirs]
        self.norms_LBS[rows] = copy_from.norms_LBS[theirs]
        self.has_LBR[rows] = copy_from.has_LBR[theirs, :, : len(self.plan.views)]
        self.norms_LBR[rows] = copy_from.norms_LBR[theirs, :, : len(self.plan.views)]
        self.dots_LBQ[rows] = copy_from.dots_LBQ[theirs, :, : len(self.plan.pairs)]
        self.copied |= set(chunk.layers)
        for n, compared in self.compared.items():
            known = [layer - n for layer in chunk.layers if layer - n in self.copied]
            for start in known:
                self.cosines_LBS[n][start] = copy_from.cosines_LBS[n][start - 1]
            compared += known
        others = {n: [layer for layer in chunk.layers if layer - n not in self.copied] for n in self.compared}
        block = self.earlier.with_chunk(chunk, others)
        if block.pairs:
            for tile, states in block.tiles():
                self._add_products(block, tile, self.float32.stack(states))
            self._to_cosines(block)

    def finish(self) -> PassResult:
        self.earlier.drop()
        num, tokens = len(self.layers), self.means["tokens"]
        cosines = {n: (starts, self.cosines_LBS[n][starts]) for n, starts in self.compared.items() if starts}
        means = [(slice(0, len(ROLE_VIEWS)), tokens[:num, :, : len(ROLE_VIEWS)])]
        if "nosink" in self.plan.variants:
            own = tokens[:num, :, -2:] if self.roles.any_sink else tokens[:num, :, :2]
            means.append((self.plan.at("nosink"), own))
        means += [(self.plan.at(name), made[:num]) for name, made in self.means.items() if name != "tokens"]
        return PassResult(
            self.layers,
            means,
            self.has_LBR[:num],
            self.norms_LBR[:num],
            self.dots_LBQ[:num],
            self.norms_LBS[:num],
            cosines,
            None if self.seen_LBS is None else self.seen_LBS[:num],
        )
