"""What making a mask costs: Wanda on SmolLM2, block by block, over one plain forward pass on the same 128 examples.

calibration_vs_forward   sequential calibration with the choice of every weight (50 %, by row) over the plain pass
one_shot_vs_forward      statistics of all blocks and roles in one pass over the plain pass
bits_per_weight          of the mask file beside its header
On a GPU also 2:4 sparse weights: `semi_structured_speed`, the dense pass over the sparse one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ima.cli.bench.pairs import report, synchronise
from ima.core.timing import Ratio, ratio, rounds
from ima.core.types import Role
from ima.interventions.prune.builder import MaskBuilder
from ima.interventions.prune.calibration import Inputs, one_shot, sequential
from ima.interventions.prune.export import complaint_sparse, semi_structured
from ima.interventions.prune.mask import Mask, read_header
from ima.interventions.prune.recipe import Recipe
from ima.interventions.prune.scores import linears_of, wanda
from ima.interventions.prune.select import keep_by
from ima.interventions.prune.sums import Sums, chosen_roles
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import smollm2

Decide = Callable[[str, Sums], Tensor]
NUM_EXAMPLES, BATCH_SIZE, NUM_PERCEPTS, TEXT_LENGTHS = 128, 16, 32, (16, 48)
GOALS = {"calibration_vs_forward": "goal <= 3", "bits_per_weight": "goal <= 1.02"}


def main(num_rounds: int) -> None:
    llm = smollm2()
    llm.to("cuda" if torch.cuda.is_available() else "cpu")
    batches = made_up(llm)
    decide, forward = wanda_choice(llm), plain_pass(llm, batches)
    turns = {
        "forward": forward,
        "calibration": lambda: sequential(llm, batches, decide),
        "one_shot": lambda: one_shot(llm, batches),
    }
    seconds = rounds(turns, num_rounds, "calibrate")
    ratios: dict[str, Ratio] = {
        "calibration_vs_forward": ratio(seconds, "calibration", "forward"),
        "one_shot_vs_forward": ratio(seconds, "one_shot", "forward"),
    }
    shapes = {path: (m.out_features, m.in_features) for path, m in linears_of(llm).items()}
    bits = bits_per_weight(Mask(sequential(llm, batches, decide), shapes))
    ratios["bits_per_weight"] = (bits, bits, bits)
    facts: dict[str, Any] = {"llm": llm.name, "dtype": str(llm.dtype), "device": str(llm.device), "rounds": num_rounds}
    facts |= {"num_examples": NUM_EXAMPLES, "num_percepts": NUM_PERCEPTS, "text_lengths": TEXT_LENGTHS}
    facts["num_tokens"] = sum(int((roles_BS != Role.PAD).sum()) for _, roles_BS in batches)
    mask = MaskBuilder(llm).make(Recipe("magnitude", 0.5, pattern="2:4"), None, [])
    facts["semi_structured"] = complaint_sparse(llm, mask) or "measured"
    if facts["semi_structured"] == "measured":
        ratios["semi_structured_speed"] = sparse_speed(llm, mask, num_rounds)
    report("prune", ratios, GOALS, facts)


def wanda_choice(llm: FrozenLLM) -> Decide:
    """Half of the weights of each row, by what all roles show."""
    linears, roles = linears_of(llm), chosen_roles("both")

    def decide(path: str, sums: Sums) -> Tensor:
        return keep_by("row", wanda(linears[path], sums.norm(path, roles)), 0.5)

    return decide


def plain_pass(llm: FrozenLLM, batches: Sequence[Inputs]) -> Callable[[], None]:
    @torch.no_grad()
    def forward() -> None:
        for x_BSD, roles_BS in batches:
            llm(x_BSD, roles_BS)
        synchronise()

    return forward


def made_up(llm: FrozenLLM) -> list[Inputs]:
    """Perceptual tokens and texts of different lengths, batches of like lengths, as calibration has them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(*TEXT_LENGTHS, (NUM_EXAMPLES,), generator=generator).sort().values.tolist()
    out = []
    for start in range(0, NUM_EXAMPLES, BATCH_SIZE):
        part = lengths[start : start + BATCH_SIZE]
        longest = NUM_PERCEPTS + part[-1]
        roles_BS = torch.full((len(part), longest), int(Role.PAD))
        for row, length in enumerate(part):
            roles_BS[row, :NUM_PERCEPTS] = int(Role.PERCEPT)
            roles_BS[row, NUM_PERCEPTS : NUM_PERCEPTS + length] = int(Role.PROMPT)
        x_BSD = torch.randn(*roles_BS.shape, llm.width, generator=generator) / llm.width**0.5 * llm.embedding_norm
        out.append((x_BSD.to(llm.device, llm.dtype), roles_BS.to(llm.device)))
    return out


def bits_per_weight(mask: Mask) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        mask.save(path)
        return 8 * (path.stat().st_size - read_header(path)[1]) / mask.num_weights


def sparse_speed(llm: FrozenLLM, mask: Mask, num_rounds: int) -> Ratio:
    """Dense over sparse, a wide batch; entered once per group of rounds, since compressing takes longer than a pass."""
    x_BSD, roles_BS = (torch.cat([part] * 8) for part in made_up(llm)[-1])

    @torch.no_grad()
    def forward() -> None:
        llm(x_BSD, roles_BS)
        synchronise()

    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(max(1, num_rounds // 3)):
        seconds["dense"] += rounds({"dense": forward}, 3, "dense")["dense"]
        with semi_structured(llm, mask):
            seconds["sparse"] += rounds({"sparse": forward}, 3, "2:4")["sparse"]
    return ratio(seconds, "dense", "sparse")
