"""What is kept of a batch while the layers go by: mean tokens per view, norms, cosines with earlier layers.

`Pass` sees the states of one site and makes the views that need more than roles, too. Everything is
fp32 whatever the model computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ima.alignment.reference_pass import Scale, centred
from ima.alignment.streaming.chunks import Block, Earlier, Floats, Lender, Rooms, Stretch, unchanged
from ima.alignment.streaming.places import Places, Seen, cosine, dot
from ima.alignment.streaming.site_stats import STEPS
from ima.alignment.views import ROLE_VIEWS, Plan


class Pass:
    """Looks at the states of one site in passing, some layers at a time: `add` collects, `look` computes, perhaps in
    another thread. All that can be said of a stretch is computed at once. Kept are a mean token per view and layer, and
    the last max(STEPS) states."""

    def __init__(
        self, places: Places, consecutive: bool, num_layers: int, plan: Plan, rooms: Rooms, floats: Floats
    ) -> None:
        self.places, self.steps, self.plan = places, STEPS if consecutive else (), plan
        self.num_layers, self.rooms, self.floats = num_layers, rooms, floats
        self.added = Stretch(None)
        self.layers: list[int] = []
        self.borrowed: set[int] = set()
        self.earlier = Earlier()
        self.means: dict[str, Tensor] = {}
        has_BR, num_distinct = places.has_BR, plan.num_by_role if places.any_sink else len(ROLE_VIEWS)
        self.weight_BKS = places.weight_BRS[:, :num_distinct]  # without a sink among P and T `nosink` is `raw`
        batch_size, seq_len = len(has_BR), places.mask_BRS.shape[-1]
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
        lender: Lender | None,
        seen_BS: Tensor | None = None,
    ) -> list[Stretch]:
        """What is ready to be looked at, in order."""
        ready = []
        if self.added.layers and (self.added.layers[-1] != layer - 1 or self.added.lender is not lender):
            ready += self.rest()
        if not self.added.layers:
            self.added = Stretch(lender)
        self.added.layers.append(layer)
        self.added.states.append(x_BSD)
        self.added.versions.append(version)
        self.added.seen.append(seen_BS)
        if scale is not None:
            self.added.scales.append(scale)
        return ready + self.rest() if self.added.is_full else ready

    def rest(self) -> list[Stretch]:
        rest, self.added = self.added, Stretch(None)
        return [rest] if rest.layers else []

    def look(self, stretch: Stretch) -> None:
        if not self.means:
            self._make_room(stretch.states[0].shape[-1])
        start = len(self.layers)
        self.layers += stretch.layers
        rows = slice(start, len(self.layers))
        if stretch.lender is None:
            self._look_at_tokens(stretch, rows)
            self._look_at_means(stretch, rows)
        else:
            self._borrow(stretch, rows, stretch.lender)
        for x_BSD, version in zip(stretch.states, stretch.versions, strict=True):
            unchanged(x_BSD, version)
        self.earlier.keep(stretch)
        self.earlier.forget(stretch.layers[-1] - max(self.steps, default=0))

    def _make_room(self, width: int) -> None:
        def room(name: str, num_rows: int) -> None:
            shape = self.num_layers, len(self.places.has_BR), num_rows, width
            self.means[name] = self.rooms.room(name, shape, self.has_LBR.device)

        room("tokens", self.weight_BKS.shape[1])
        for variant in ("nomassive", "scaled", "update"):
            if variant in self.plan.variants:
                room(variant, 2)

    def _look_at_tokens(self, stretch: Stretch, rows: slice) -> None:
        """Norms, mean tokens and products with earlier layers, some samples at a time; then the cosines."""
        partial_LBKS = self._partial_weights(stretch, rows)
        block = self.earlier.beside(stretch, dict.fromkeys(self.compared, stretch.layers))
        for tile, states in block.tiles():
            block_LBSD = self.floats.of(states)
            x_LBSD = block_LBSD[-len(stretch.layers) :]
            self.norms_LBS[rows, tile] = vector_norm(x_LBSD, dim=-1)
            whole_BKS = self.weight_BKS[tile]
            weight_LBKS = whole_BKS.expand(len(x_LBSD), -1, -1, -1) if partial_LBKS is None else partial_LBKS[:, tile]
            if "nomassive" in self.plan.variants:
                weight_LBKS = torch.cat([weight_LBKS, self._without_massive(stretch, rows, tile)], 2)
            means_XKD = torch.bmm(weight_LBKS.flatten(0, 1), x_LBSD.flatten(0, 1))
            means_LBKD, num = means_XKD.unflatten(0, x_LBSD.shape[:2]), self.weight_BKS.shape[1]
            self.means["tokens"][rows, tile] = means_LBKD[:, :, :num]
            if "nomassive" in self.plan.variants:
                self.means["nomassive"][rows, tile] = means_LBKD[:, :, num:]
            self._multiply(block, tile, block_LBSD)
        self._divide(block)

    def _partial_weights(self, stretch: Stretch, rows: slice) -> Tensor | None:
        """weight_LBKS of layers of which some are of some positions only, and who has a view there; None where all are
        of all."""
        if all(seen_BS is None for seen_BS in stretch.seen):
            return None
        mask_BRS = self.places.mask_BRS
        if self.seen_LBS is None:
            self.seen_LBS = mask_BRS.new_ones(self.norms_LBS.shape)
        for row, seen_BS in zip(range(rows.start, rows.stop), stretch.seen, strict=True):
            if seen_BS is not None:
                self.seen_LBS[row] = seen_BS
        mask_LBRS = mask_BRS & self.seen_LBS[rows, :, None]
        count_LBR = mask_LBRS.sum(-1)
        self.has_LBR[rows, :, : self.plan.num_by_role] = (count_LBR > 0).float()
        return (mask_LBRS / count_LBR.clamp_min(1)[..., None])[:, :, : self.weight_BKS.shape[1]]

    def _multiply(self, block: Block, tile: slice, block_LBSD: Tensor) -> None:
        """Products of the block's pairs."""
        for n, its, before in block.pairs:
            starts = block.layers[before]
            self.cosines_LBS[n][starts[0] : starts[-1] + 1, tile] = dot(block_LBSD[its], block_LBSD[before])

    def _divide(self, block: Block) -> None:
        """Makes these products cosines."""
        row = {layer: index for index, layer in enumerate(self.layers)}
        for n, its, before in block.pairs:
            starts, ends = block.layers[before], block.layers[its]
            product_LBS = self.cosines_LBS[n][starts[0] : starts[-1] + 1]
            norms = [self.norms_LBS[row[layers[0]] : row[layers[-1]] + 1] for layers in (ends, starts)]
            product_LBS.copy_(cosine(product_LBS, *norms))
            self.compared[n] += starts

    def _without_massive(self, stretch: Stretch, rows: slice, tile: slice) -> Tensor:
        """weight_LB2S of the means of P and T without massive tokens, which norms have to be known for."""
        massive_L = torch.tensor([scale.massive for scale in stretch.scales], device=self.norms_LBS.device)
        small_LBS = self.norms_LBS[rows, tile] <= massive_L[:, None, None]
        if self.seen_LBS is not None:
            small_LBS &= self.seen_LBS[rows, tile]
        kept_LB2S = self.places.mask_BRS[tile, :2] & small_LBS[:, :, None]
        count_LB2 = kept_LB2S.sum(-1)
        self.has_LBR[rows, tile, self.plan.at("nomassive")] = (count_LB2 > 0).float()
        return kept_LB2S / count_LB2.clamp_min(1)[..., None]

    def _look_at_means(self, stretch: Stretch, rows: slice) -> None:
        """Norms and products of the mean tokens, and the variants that follow from those of P and T."""
        plan, has_LBR, dots_LBQ = self.plan, self.has_LBR[rows], self.dots_LBQ[rows]
        norms_LBR = self.norms_LBR[rows]
        means_LBKD = self.means["tokens"][rows]
        means_LB2D, has_LB2 = means_LBKD[:, :, :2], has_LBR[..., :2]
        norms_LBR[..., : means_LBKD.shape[2]] = vector_norm(means_LBKD, dim=-1)
        dots_LBQ[..., :3] = dot(means_LBKD[:, :, :1], means_LBKD[:, :, 1:4])

        def follows(variant: str, made_LB2D: Tensor, there_LB2: Tensor | None = None) -> None:
            at = plan.at(variant)
            norms_LBR[..., at] = vector_norm(made_LB2D, dim=-1)
            dots_LBQ[..., plan.pair_at(variant)] = dot(made_LB2D[:, :, 0], made_LB2D[:, :, 1])
            if there_LB2 is not None:
                has_LBR[..., at] = there_LB2

        if "nosink" in plan.variants and self.places.any_sink:
            follows("nosink", means_LBKD[:, :, -2:])
        elif "nosink" in plan.variants:
            norms_LBR[..., plan.at("nosink")] = norms_LBR[..., :2]
            dots_LBQ[..., plan.pair_at("nosink")] = dots_LBQ[..., 0]
        if "nomassive" in plan.variants:
            follows("nomassive", self.means["nomassive"][rows])
        if "scaled" in plan.variants:
            inverse_LD = torch.stack([scale.inverse_D for scale in stretch.scales])
            made_LB2D = torch.mul(means_LB2D, inverse_LD[:, None, None], out=self.means["scaled"][rows])
            known_L = has_LB2.new_tensor([scale.known for scale in stretch.scales])
            follows("scaled", made_LB2D, has_LB2 * known_L[:, None, None])
        if "centred" in plan.variants:
            made_LB2D, known_LB2 = centred(stretch.scales, means_LB2D, self.places.inside_B)
            follows("centred", made_LB2D.mul_(has_LB2[..., None]), has_LB2 * known_LB2)
        if "update" in plan.variants:
            follows("update", *self._updates(rows, has_LB2))

    def _updates(self, rows: slice, has_LB2: Tensor) -> tuple[Tensor, Tensor]:
        """What the block before each of these layers adds, zero where it was not looked at; which examples have it."""
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

    def _borrow(self, stretch: Stretch, rows: slice, lender: Lender) -> None:
        """All that can be said of these states is known, but for cosines with states that were not borrowed."""
        start = lender.layers.index(stretch.layers[0] - 1)
        theirs = slice(start, start + len(stretch.layers))
        for name, means_LBRD in self.means.items():
            means_LBRD[rows] = lender.means[name][theirs]
        self.norms_LBS[rows] = lender.norms_LBS[theirs]
        self.has_LBR[rows] = lender.has_LBR[theirs, :, : len(self.plan.views)]
        self.norms_LBR[rows] = lender.norms_LBR[theirs, :, : len(self.plan.views)]
        self.dots_LBQ[rows] = lender.dots_LBQ[theirs, :, : len(self.plan.pairs)]
        self.borrowed |= set(stretch.layers)
        for n, compared in self.compared.items():
            known = [layer - n for layer in stretch.layers if layer - n in self.borrowed]
            for start in known:
                self.cosines_LBS[n][start] = lender.cosines_LBS[n][start - 1]
            compared += known
        others = {n: [layer for layer in stretch.layers if layer - n not in self.borrowed] for n in self.compared}
        block = self.earlier.beside(stretch, others)
        if block.pairs:
            for tile, states in block.tiles():
                self._multiply(block, tile, self.floats.of(states))
            self._divide(block)

    def finish(self) -> Seen:
        self.earlier.forget()
        num, tokens = len(self.layers), self.means["tokens"]
        cosines = {n: (starts, self.cosines_LBS[n][starts]) for n, starts in self.compared.items() if starts}
        means = [(slice(0, len(ROLE_VIEWS)), tokens[:num, :, : len(ROLE_VIEWS)])]
        if "nosink" in self.plan.variants:
            own = tokens[:num, :, -2:] if self.places.any_sink else tokens[:num, :, :2]
            means.append((self.plan.at("nosink"), own))
        means += [(self.plan.at(name), made[:num]) for name, made in self.means.items() if name != "tokens"]
        return Seen(
            self.layers,
            means,
            self.has_LBR[:num],
            self.norms_LBR[:num],
            self.dots_LBQ[:num],
            self.norms_LBS[:num],
            cosines,
            None if self.seen_LBS is None else self.seen_LBS[:num],
        )
