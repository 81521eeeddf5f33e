"""The words that perceptual tokens decode to by the logit lens (alignment.json of a run), as tables of the page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from ima.report.run import Run, number

MAX_SAMPLES, MAX_TOKENS, MAX_WORDS = 3, 12, 2


def decoded(folder: Path) -> dict[str, dict[tuple[int, int], list[tuple[str, float]]]]:
    """Sample -> (token, layer) -> words with their probabilities, likeliest first. Empty for a file that is not there
    or not of this kind."""
    try:
        entries = json.loads((folder / "alignment.json").read_text(encoding="utf-8"))["top_tokens"]
        found: dict[str, dict[tuple[int, int], list[tuple[str, float]]]] = {}
        for entry in entries:
            words = [(str(word), number(share) or 0.0) for word, share in entry["top"]]
            found.setdefault(str(entry["sample"]), {})[int(entry["token"]), int(entry["layer"])] = words
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def decoded_section(run: Run) -> str:
    """A table per sample, a line per token, a column per layer; "" where there is nothing to show."""
    samples = decoded(run.folder)
    if not samples:
        return ""
    tables = "".join(table(name, samples[name]) for name in list(samples)[:MAX_SAMPLES])
    return (
        f'<p class="note">The likeliest words of the LLM\'s head at each perceptual token, by layer, with their'
        f" probability; {min(MAX_SAMPLES, len(samples))} of {len(samples)} samples, all in alignment.json.</p>{tables}"
    )


def table(name: str, cells: dict[tuple[int, int], Any]) -> str:
    layers = sorted({layer for _, layer in cells})
    tokens = sorted({token for token, _ in cells})
    head = "".join(f'<th scope="col">layer {layer}</th>' for layer in layers)
    lines = ""
    for token in tokens[:MAX_TOKENS]:
        shown = "".join(f"<td>{words(cells.get((token, layer), []))}</td>" for layer in layers)
        lines += f'<tr><th scope="row">token {token}</th>{shown}</tr>'
    left = f'<p class="note">{len(tokens) - MAX_TOKENS} more tokens.</p>' if len(tokens) > MAX_TOKENS else ""
    return (
        f'<h3>{escape(name)}</h3><div class="scroll"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{left}"
    )


def words(found: list[tuple[str, float]]) -> str:
    """Spaces at the ends of a token are seen as ·, line breaks as \\n."""
    return "<br>".join(
        f"<code>{escape(repr(word)[1:-1].replace(' ', '·'))}</code> {share:.2f}" for word, share in found[:MAX_WORDS]
    )
