"""t-SNE of the reservoir's mean tokens, and of all its tokens, at chosen layers: seeded, as rows.

A row `tsne_x` or `tsne_y` is one coordinate of one point; `n` numbers the points, so that a point's two rows meet;
`note` is its sample. Variant `mean`: one point per example and role; `tokens`: single tokens, at most MAX_TOKENS of
each role, spread over the examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ima.alignment.reservoir import Tokens
from ima.alignment.rows import Base
from ima.core.types import Row, Site

MAX_TOKENS = 200
PERPLEXITY = 30.0


def embed(x_ND: Tensor, seed: int) -> Tensor:
    """xy_N2. Perplexity 30, or a third of the points where they are few."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(x_ND) - 1) / 3)
    made = TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(x_ND.double().numpy())
    return torch.from_numpy(made)


def points(tokens: Tokens, layer: int, variant: str) -> tuple[Tensor, list[str], list[str]]:
    """Points [N, D] with their roles and samples."""
    if variant == "mean":
        p_ED, t_ED, ids = tokens.means(layer)
        return torch.cat([p_ED, t_ED]), ["P"] * len(ids) + ["T"] * len(ids), ids + ids
    x, roles, samples = [], [], []
    for role in ("P", "T"):
        found = [(x_D, name) for x_SD, name in zip(tokens.of(layer, role), tokens.ids, strict=True) for x_D in x_SD]
        step = -(-len(found) // MAX_TOKENS) if found else 1
        x += [x_D for x_D, _ in found[::step]]
        samples += [name for _, name in found[::step]]
        roles += [role] * len(found[::step])
    return torch.stack(x), roles, samples


def tsne_rows(tokens: Tokens, layers: Sequence[int], seed: int, base: Base) -> Iterator[Row]:
    """Nothing where there are fewer than five points."""
    for layer in layers:
        for variant in ("mean", "tokens"):
            x_ND, roles, samples = points(tokens, layer, variant)
            if len(x_ND) < 5:
                continue
            for n, (xy, role, sample) in enumerate(zip(embed(x_ND, seed).tolist(), roles, samples, strict=True)):
                fields = base | {"site": Site.RESID_POST.value, "variant": variant, "layer_a": layer, "role_a": role}
                for axis, value in zip("xy", xy, strict=True):
                    yield Row(score=f"tsne_{axis}", value=value, n=n, note=sample, **fields)
