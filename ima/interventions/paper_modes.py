"""The published skipping modes as plans: what their strings mean, and where the published code does something else.

| mode | plan | where the published code is wrong (this plan does what the mode is for) |
|---|---|---|
| `baseline`, `normal` | nothing | any unknown string is silently this; here it is refused |
| `skip_block`, `fixed_skip_block` | Skip(block), visible | the cache entry is the previous block's keys and values; harmful with `random` and entropy, where the block may run later; here a block's own, of the un-updated states |
| `skip_ffn` | Skip(ffn) | right |
| `skip_attn` | Skip(attn), visible: h + FFN(LN2 h) | OPT: FFN reads LN1 h and the residual is LN1 h, so the stream is lost; Llama: LN1 in place of LN2; cached K = V = LN1 h without the projections |
| `parrallel_attn` | Parallel, norm=ln1 (Llama) or own (OPT) | OPT: FFN(LN2(LN1 h)), two norms on one another |
| `parrallel_block` + layers_interval k | Merge of b, b + 1 for eligible b in k, 2k, ...; Skip(block) of the other blocks that the interval names | from start 0, block 1 copies block 0 without having run (it is dropped); a pair that ends at the last block runs it a second time; both caches hold the mean of both |
| `..._prompt` (with `context_` or `onlycontext_`) | roles=percept | "the first 10 positions": soft prompts where there are any. `skip_ffn`: OPT doubles the perceptual residual, Llama adds a normed copy. `skip_block`: Llama ignores the word and skips all tokens. `skip_attn`, `parrallel_attn`: the name matches nothing, a normal block is counted as skipped; here the attention is skipped, and parallel is refused |
| `skip_block_prompt` | ... visibility=hidden (text cannot see skipped perceptual tokens: OPT's mask) | the cache is the previous block's |
| no word | phase=decode: generated tokens only | prefill caches of the skipped block are overwritten by its neighbour's |
| `context_` | phase=both | only for passes of at most 2100 tokens |
| `onlycontext_` | phase=prefill | only for passes of 6 to 2100 tokens; told by the length, so that a teacher-forced answer counts as context |
| `drop` + start_drop_layer s | Drop(s, end_layer): block end_layer and later ones still run | Llama: silently nothing; cache entries are the previous block's |
| `exit` + exit_layer e (`prompt`) | Exit(e, context) or Exit(e, percept) | without `prompt` the mask is too short from the second generated token on; Llama: silently nothing |
| `ent_thresh` > 0 | Entropy on the eligible blocks that the interval does not name | entropy of states without the final norm, of the first example only; Llama: ignored |
| `random_...`, `token_index...` | refused | random draws a new interval for every block and step, and so attends to cache entries of other blocks; token_index looks at the first example only |

Which blocks (`eligible`, `skipped_blocks`): start_layer < b < end_layer, both strict, never block 0, and b % interval == 0
(counted from block 0, not from the start); an interval list cuts the blocks into as many equal segments, each with its
own interval. 32 blocks were assumed (end_layer 31); here end_layer is the last block where it is not given.
"""  # noqa: E501 (a table)

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ima.core.errors import UserError, nearest
from ima.interventions.base import Intervention
from ima.interventions.drop import Drop
from ima.interventions.hooks import Phase
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.exit import Exit
from ima.interventions.skip.plan import Part, Skip, Visibility

PARTS: dict[str, Part] = {
    "skip_block": "block",
    "fixed_skip_block": "block",
    "skip_ffn": "ffn",
    "skip_attn": "attn",
}
OTHERS = ("parrallel_attn", "parrallel_block", "drop", "exit", "baseline", "normal")
WORDS = ("onlycontext", "context", "prompt")


def eligible(num_blocks: int, start_layer: int = 0, end_layer: int | None = None) -> list[int]:
    """start_layer < b < end_layer, and block 0 always runs. end_layer: the last block where not given."""
    end = num_blocks - 1 if end_layer is None else end_layer
    return [block for block in range(1, num_blocks) if start_layer < block < end]


def skipped_blocks(
    num_blocks: int, interval: int | str | Sequence[int], start_layer: int = 0, end_layer: int | None = None
) -> list[int]:
    """The eligible blocks that an interval, or a list of them for equal segments of the blocks, names. Raises UserError
    where it is no interval."""
    intervals = intervals_of(interval)
    if num_blocks % len(intervals):
        raise UserError(f"skip_interval: {len(intervals)} intervals cut {num_blocks} blocks into unequal segments")
    length = num_blocks // len(intervals)
    return [b for b in eligible(num_blocks, start_layer, end_layer) if b % intervals[b // length] == 0]


def intervals_of(interval: int | str | Sequence[int]) -> list[int]:
    try:
        found = [int(part) for part in interval.split(",")] if isinstance(interval, str) else interval
    except ValueError:
        raise UserError(f"skip_interval: {interval!r} is no whole number and no list a,b,c of them") from None
    found = [found] if isinstance(found, int) else list(found)
    if not found or min(found) < 1:
        raise UserError(f"skip_interval: {interval!r} must be >= 1")
    return found


def translate(
    skip_mode: str,
    skip_interval: int | str | Sequence[int] = 60,
    start_layer: int = 0,
    end_layer: int | None = None,
    layers_interval: int = 0,
    exit_layer: int = 32,
    start_drop_layer: int = 32,
    ent_thresh: float = -1.0,
    *,
    num_blocks: int = 32,
    family: Literal["llama", "opt"] = "llama",
) -> list[Intervention]:
    """The interventions that a published command asks for; [] where it asks for nothing (no block is named, or the
    drop or exit lies behind the last block). Raises UserError for what cannot be asked for exactly."""
    name, words = words_of(skip_mode)
    if name in ("baseline", "normal"):
        return []
    if name == "drop":
        stop = num_blocks - 1 if end_layer is None else min(end_layer, num_blocks)
        return [Drop(start_drop_layer, stop)] if start_drop_layer < stop else []
    if name == "exit":
        leaving: Literal["percept", "context"] = "percept" if "prompt" in words else "context"
        return [Exit(exit_layer, leaving)] if exit_layer + 1 < num_blocks else []
    phase: Phase = "prefill" if "onlycontext" in words else "both" if "context" in words else "decode"
    if "prompt" in words and phase == "decode":
        raise UserError(f"skip_mode: {skip_mode!r} names perceptual tokens, which are never generated; add context_")
    named = skipped_blocks(num_blocks, skip_interval, start_layer, end_layer)
    if name in ("parrallel_attn", "parrallel_block") and "prompt" in words:
        raise UserError(f"skip_mode: {skip_mode!r} did nothing in the published code; leave prompt out")
    if name == "parrallel_attn":
        return [Parallel("ln1" if family == "llama" else "own", blocks=named, phase=phase)] if named else []
    if name == "parrallel_block":
        return merged(eligible(num_blocks, start_layer, end_layer), named, layers_interval, phase)
    part = PARTS[name]
    roles = ("percept",) if "prompt" in words else ("all",)
    visibility: Visibility = "hidden" if part == "block" and "prompt" in words else "visible"
    plan: list[Intervention] = []
    if named:
        plan.append(Skip(part, roles, blocks=named, phase=phase, visibility=visibility))
    rest = sorted(set(eligible(num_blocks, start_layer, end_layer)) - set(named))
    if ent_thresh > 0 and rest:
        plan.append(Entropy(ent_thresh, part, roles, blocks=rest, phase=phase))
    return plan


def merged(may: Sequence[int], named: Sequence[int], every: int, phase: Phase) -> list[Intervention]:
    if every < 2:
        raise UserError(
            f"layers_interval: {every}; parrallel_block pairs the blocks 0, k, 2k, ... with the next: k >= 2"
        )
    firsts = [block for block in may if block % every == 0 and block + 1 in may]
    paired = {block + offset for block in firsts for offset in (0, 1)}
    alone = [block for block in named if block not in paired]
    plan: list[Intervention] = [Merge(blocks=firsts, phase=phase)] if firsts else []
    return [*plan, Skip("block", ("all",), blocks=alone, phase=phase)] if alone else plan


def words_of(skip_mode: str) -> tuple[str, set[str]]:
    """(mode, the words that say for which tokens). Raises UserError for a string that the published code would pass
    over in silence."""
    rest = skip_mode
    for refused in ("random", "token_index"):
        if refused in rest:
            raise UserError(
                f"skip_mode: {refused} draws or decides anew at every block and step and mixes up caches in the "
                "published code; list blocks instead, or choose tokens by select=random, or use entropy"
            )
    words = set()
    for word in WORDS:
        if word in rest:
            words.add(word)
            rest = rest.replace(word, "")
    name = "_".join(part for part in rest.split("_") if part)
    if name not in PARTS and name not in OTHERS:
        raise UserError(f"skip_mode: {skip_mode!r} is none of the published ones; {nearest(name, [*PARTS, *OTHERS])}")
    return name, words
