"""Patch maps (patches.json of a run): a few media with what each of their tokens is near to, shown where one points.

A rectangle's shade is the token's cosine with a word of the medium's own text; its words stand in it for a mouse, a
finger or the keyboard. It works without a script.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from ima.report.page.samples import picture, recording
from ima.report.run import Run, number

MAX_MEDIA, MAX_MAPS, MAX_TOKENS = 6, 2, 200
FULL, DARKEST = 0.5, 0.7  # the cosine that is drawn darkest, and how much of the picture it covers


def patch_section(run: Run) -> str:
    """ "" where there is nothing to show, or a file of another kind."""
    try:
        data = json.loads((run.folder / "patches.json").read_text(encoding="utf-8"))
        maps = [map_of(run, entry, word) for entry in data["media"][:MAX_MEDIA] for word in chosen(entry)]
        layer = int(data["layer"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""
    if not maps:
        return ""
    return (
        f'<p class="note">What perceptual tokens are near to at layer {layer}, half of the depth. Shade: centred cosine'
        f" with the word of the medium's own text that stands below, from 0 (clear) to {FULL} and above. Point at a"
        " patch, or tap it: its nearest words in real text, with their cosines, and its cosine with each word of the"
        f' text. All numbers are in patches.json.</p><div class="cards maps">{"".join(maps)}</div>'
    )


def chosen(entry: dict[str, Any]) -> list[int]:
    """The last of the text's words: in captions, what is there."""
    num = len(entry["text_words"])
    return list(range(num))[-MAX_MAPS:] if num else []


def map_of(run: Run, entry: dict[str, Any], word: int) -> str:
    """One medium, shaded by one word of its text."""
    name = str(entry["text_words"][word])
    patches, rest = "", []
    for index, token in enumerate(entry["tokens"][:MAX_TOKENS]):
        value = number(token["cosines"][word]) or 0.0
        said = tip(entry, token)
        for left, top, width, height in token["places"]:
            place = ";".join(
                f"{side}:{100 * float(share):.3f}%"
                for side, share in (("left", left), ("top", top), ("width", width), ("height", height))
            )
            side = " up" if float(top) + float(height) / 2 > 0.5 else ""
            side += " back" if float(left) + float(width) / 2 > 0.5 else ""
            patches += (
                f'<button type="button" class="patch{side}" style="{place};--a:{shade(value):.2f}"'
                f' aria-label="token {index}, {escape(name)} {value:.2f}"><span class="tip">{said}</span></button>'
            )
        if not token["places"]:
            rest.append(f"<li>token {index}: {said}</li>")
    sound = recording(run.folder, entry.get("sound"))
    played = f'<audio controls preload="metadata" src="{sound}"></audio>' if sound else ""
    folded = f"<details><summary>tokens without a place: {len(rest)}</summary><ul>{''.join(rest)}</ul></details>"
    note = f'<p class="note">{escape(str(entry["note"]))}</p>' if entry.get("note") else ""
    shown = picture(run.folder, entry.get("image"), str(entry["sample"]))
    return (
        f'<figure class="card map"><div class="spot">{shown}{patches}</div>{played}'
        f'<figcaption><p class="said">{escape(name)}</p><p class="true"><span>reference</span> '
        f"{escape(str(entry.get('reference') or ''))}</p>{note}{folded if rest else ''}</figcaption></figure>"
    )


def tip(entry: dict[str, Any], token: dict[str, Any]) -> str:
    words = [f"<b>{escape(str(word))}</b> {number(value) or 0.0:.2f}" for word, value in token["words"]]
    own = [
        f"{escape(str(word))} {number(value) or 0.0:.2f}"
        for word, value in zip(entry["text_words"], token["cosines"], strict=True)
    ]
    return f"{', '.join(words)}<br><small>own text: {', '.join(own)}</small>"


def shade(cosine: float) -> float:
    return DARKEST * min(1.0, max(0.0, cosine / FULL))
