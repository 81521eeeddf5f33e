"""What skipping saves: prefill of SmolLM2 with 576 perceptual tokens, per plan, all in turns.

measured     the unskipped forward pass over ours with the plan: how many times faster
flops        the same ratio in floating-point operations (torch's counter)
efficiency   a hand-written forward pass in which exactly those tokens and modules are left out, over ours; for a random
             half of the tokens the pass without the first half, which need not gather them
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ima.cli.bench.pairs import FOLDER, synchronise
from ima.core.files import write_json
from ima.core.timing import Ratio, ratio, rounds
from ima.core.types import Role
from ima.interventions.skip.fast_path import rotate
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import smollm2

NUM_PERCEPTS, NUM_TEXT, BATCH_SIZE, START = 576, 32, 4, 4
PLANS = {
    f"{part} every {every}": Skip(part, ("percept",), START, every=every)
    for part in ("ffn", "attn", "block")
    for every in (1, 2)
} | {
    "block half first": Skip("block", ("percept",), START, ratio=0.5, select="first"),
    "ffn half first": Skip("ffn", ("percept",), START, ratio=0.5, select="first"),
    "block half random": Skip("block", ("percept",), START, ratio=0.5),
    "block all every 2": Skip("block", ("all",), START, every=2),
}
GOALS = {"half": 0.8, "attn": 0.8}  # by a word of the plan's name; 0.9 else


def main(num_rounds: int) -> None:
    llm = smollm2()
    llm.to("cuda" if torch.cuda.is_available() else "cpu")
    roles_BS = torch.tensor([[int(Role.PERCEPT)] * NUM_PERCEPTS + [int(Role.PROMPT)] * NUM_TEXT] * BATCH_SIZE)
    roles_BS = roles_BS.to(llm.device)
    generator = torch.Generator().manual_seed(0)
    x_BSD = (torch.randn(*roles_BS.shape, llm.width, generator=generator) / llm.width**0.5 * llm.embedding_norm).to(
        llm.device, llm.dtype
    )
    ids = [str(index) for index in range(BATCH_SIZE)]
    found: dict[str, dict[str, Any]] = {}
    print(f"{'plan':20} {'measured':>9} {'flops':>7}   efficiency [quartiles]")
    whole = num_flops(llm, x_BSD, roles_BS, ids, [])
    for name, skip in PLANS.items():
        turns = {
            "plain": forward(llm, x_BSD, roles_BS, ids, []),
            "ours": forward(llm, x_BSD, roles_BS, ids, [skip]),
        }
        turns["removed"] = by_hand(llm, x_BSD, skip)
        seconds = rounds(turns, num_rounds, name)
        measured = ratio(seconds, "plain", "ours")
        efficiency = ratio(seconds, "removed", "ours")
        predicted = whole / num_flops(llm, x_BSD, roles_BS, ids, [skip])
        found[name] = row(measured, predicted, efficiency, seconds)
        print(line(name, measured, predicted, efficiency))
    facts = {"num_percepts": NUM_PERCEPTS, "num_text": NUM_TEXT, "batch_size": BATCH_SIZE, "llm": llm.name}
    facts |= {"dtype": str(llm.dtype), "device": str(llm.device), "rounds": num_rounds, "gflops": whole / 1e9}
    write_json(FOLDER / "skip.json", {"plans": found, "facts": facts})
    print(FOLDER / "skip.json")


def row(measured: Ratio, predicted: float, efficiency: Ratio, seconds: dict[str, list[float]]) -> dict[str, Any]:
    out: dict[str, Any] = {"measured": measured[0], "measured_quartiles": measured[1:], "flops": predicted}
    out |= {"efficiency": efficiency[0], "efficiency_quartiles": efficiency[1:]}
    return out | {"seconds": {name: statistics.median(values) for name, values in seconds.items()}}


def line(name: str, measured: Ratio, predicted: float, efficiency: Ratio) -> str:
    text = f"{name:20} {measured[0]:8.2f}x {predicted:6.2f}x"
    goal = next((goal for word, goal in GOALS.items() if word in name), 0.9)
    return f"{text}   {efficiency[0]:.3f} [{efficiency[1]:.3f}, {efficiency[2]:.3f}]  goal >= {goal}"


def forward(llm: FrozenLLM, x_BSD: Tensor, roles_BS: Tensor, ids: list[str], skips: list[Skip]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad(), stack(llm, skips):
            llm(x_BSD, roles_BS, ids)
            synchronise()

    return run


def num_flops(llm: FrozenLLM, x_BSD: Tensor, roles_BS: Tensor, ids: list[str], skips: list[Skip]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(llm, x_BSD[:1], roles_BS[:1], ids[:1], skips)()
    return counter.get_total_flops()


def by_hand(llm: FrozenLLM, x_BSD: Tensor, skip: Skip) -> Callable[[], object]:
    """A forward pass written for this plan alone: perceptual tokens [0, num) are out of the skipped parts. Their
    states stay apart from the others' from block to block, so that nothing is moved that need not be."""
    model: Any = llm.model.model
    chosen, length = set(skip.blocks(llm.num_blocks)), x_BSD.shape[1]
    num = length if skip.roles == ("all",) else round(NUM_PERCEPTS * skip.ratio)
    positions = torch.arange(length, device=x_BSD.device)[None]
    mask = (torch.arange(length) <= torch.arange(num, length)[:, None])[None, None].to(x_BSD.device)

    def attend(layer: Any, out_BnD: Tensor, in_BnD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """What attention adds to the tokens that are in."""
        maps = layer.self_attn
        cos, sin = turn
        out_BnD, in_BnD = layer.input_layernorm(out_BnD), layer.input_layernorm(in_BnD)

        def heads(linear: Any, y_BnD: Tensor) -> Tensor:
            return linear(y_BnD).unflatten(-1, (-1, maps.head_dim)).transpose(1, 2)

        key = torch.cat([heads(maps.k_proj, out_BnD), heads(maps.k_proj, in_BnD)], dim=2)
        value = torch.cat([heads(maps.v_proj, out_BnD), heads(maps.v_proj, in_BnD)], dim=2)
        query = rotate(heads(maps.q_proj, in_BnD), cos[:, num:], sin[:, num:])
        key = rotate(key, cos, sin)
        groups = maps.num_key_value_groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        added: Tensor = maps.o_proj(found.transpose(1, 2).flatten(2))
        return added

    @torch.no_grad()
    def run() -> None:
        turn = model.rotary_emb(x_BSD, positions)
        out_BnD, in_BnD = x_BSD[:, :num], x_BSD[:, num:]
        for index, layer in enumerate(model.layers):
            if index not in chosen or skip.part == "ffn":
                both = torch.cat([out_BnD, in_BnD], 1)
                if index not in chosen:
                    both = layer(both, attention_mask=None, position_embeddings=turn)
                    out_BnD, in_BnD = both[:, :num], both[:, num:]
                    continue
                attention = layer.self_attn(layer.input_layernorm(both), attention_mask=None, position_embeddings=turn)
                both = both + attention[0]
                out_BnD, in_BnD = both[:, :num], both[:, num:].contiguous()
            elif num < length:
                in_BnD = in_BnD + attend(layer, out_BnD, in_BnD, turn)
            if num < length:
                in_BnD = in_BnD + layer.mlp(layer.post_attention_layernorm(in_BnD))
            if skip.part == "attn":
                out_BnD = out_BnD + layer.mlp(layer.post_attention_layernorm(out_BnD))
        model.norm(torch.cat([out_BnD, in_BnD], 1))
        synchronise()

    return run
