"""Made-up examples with ragged roles and known states, and their way through sinks in any batch split."""

from __future__ import annotations

import torch

from ima.core.types import Role, Site

P, Q, A, S0, PAD = Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD
NUM_LAYERS, WIDTH = 4, 12
MASSIVE_EVERY = 5


def examples(num: int = 20, seed: int = 0):
    """(id, roles, states [L, S, D]): some lack P or prompt; some single tokens are massive, one example has only a
    massive P token, one has zero vectors; one dimension never varies."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(NUM_LAYERS, 1, WIDTH, generator=generator)
    spread = torch.rand(WIDTH, generator=generator) * 3 + 0.1
    made = []
    for index in range(num):
        percept, prompt, answer = torch.randint(1, 5, (3,), generator=generator).tolist()
        percept, prompt = (1 if index == 3 else percept * (index % 7 > 0)), prompt * (index % 3 > 0)
        row = [P] * percept + [S0] * (index % 2) + [Q] * prompt + [A] * answer + [S0]
        state = torch.randn(NUM_LAYERS, len(row), WIDTH, generator=generator) * spread + shift
        state[..., 5] = 1.5
        if index % MASSIVE_EVERY == 3:
            state[1:, 0] *= 200
        if index == 8:
            state[:, row.index(A)] = 0.0
        made.append((f"s{seed}/{index}", row, state))
    return made


def feed(sink, chosen, batch_size: int, left: bool = False, extra: int = 0, sites=(Site.RESID_POST,)) -> None:
    """Show the examples to a sink, padded on either side; what stands at pads must not matter."""
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        length = max(len(row) for _, row, _ in part) + extra
        roles = torch.zeros(len(part), length, dtype=torch.long)
        x = torch.full((NUM_LAYERS, len(part), length, WIDTH), 1e3)
        for index, (_, row, state) in enumerate(part):
            span = slice(length - len(row), length) if left else slice(0, len(row))
            roles[index, span] = torch.tensor(row)
            x[:, index, span] = state
        sink.begin(roles, [name for name, _, _ in part])
        for layer in range(NUM_LAYERS):
            for site in sites:
                sink.see(layer, site, x[layer])
        sink.end()


def tokens(row, role: str) -> list[int]:
    chosen = {"P": {P}, "T": {Q, A}}[role]
    return [index for index, found in enumerate(row) if found in chosen]
