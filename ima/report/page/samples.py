"""Sample cards: the picture, what was asked, what was generated, what is true, and whether the answer is right.

Sounds and clips play in the page. Media are read below the run folder only, pictures shrunk and long recordings left
out, so that a page stays small. Right and wrong differ by sign and
word, not by colour alone.
"""

from __future__ import annotations

import base64
import io
import math
from html import escape
from pathlib import Path
from typing import Any

from ima.report.curves import finite, track_rank
from ima.report.page.words import track_name
from ima.report.run import Run

MAX_CARDS = 36
MAX_SIDE = 224  # pixels
MAX_RECORDING = 250_000  # bytes
PLAYABLE = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".flac": "audio/flac",
            ".webm": "video/webm", ".mp4": "video/mp4"}  # fmt: skip
SMALL = 12_000  # bytes; a picture up to this size is shown as it is


def sample_section(run: Run) -> str:
    """Cards by track; the last epoch's generation large, earlier ones folded away."""
    if not run.samples:
        return '<p class="missing">No generated samples: samples.jsonl is missing or empty.</p>'
    tracks: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for sample in run.samples:
        track = tracks.setdefault(str(sample.get("track") or ""), {})
        track.setdefault(str(sample.get("id")), []).append(sample)
    share = max(4, MAX_CARDS // len(tracks))
    parts = []
    for name in sorted(tracks, key=track_rank):
        shown = list(tracks[name].values())
        heading = f"<h3>{escape(track_name(name, run.result['facts'].get('modality')))}</h3>" if name else ""
        cards = "".join(card(run.folder, history) for history in shown[:share])
        more = f'<p class="note">{len(shown) - share} more in samples.jsonl.</p>' if len(shown) > share else ""
        parts.append(f'{heading}<div class="cards">{cards}</div>{more}')
    return "".join(parts)


def card(folder: Path, history: list[dict[str, Any]]) -> str:
    """`history`: the same sample at one or more epochs."""
    history = sorted(history, key=lambda sample: finite(sample.get("epoch"), 0.0))
    last = history[-1]
    references = last.get("references")
    truths = [str(item) for item in references] if isinstance(references, list) else []
    truth = escape(truths[0]) if truths else "<i>no reference</i>"
    if len(truths) > 1:
        truth += f' <span class="more" title="{escape(" | ".join(truths[1:]))}">+{len(truths) - 1}</span>'
    earlier = "".join(
        f"<li>epoch {escape(str(sample.get('epoch')))}: {prediction(sample)}</li>" for sample in history[:-1]
    )
    folded = f"<details><summary>earlier epochs</summary><ul>{earlier}</ul></details>" if earlier else ""
    asked = str(last.get("question") or "").strip()
    question = f'<p class="asked"><span>question</span> {escape(asked)}</p>' if asked else ""
    return (
        f'<figure class="card">{medium(folder, last, truths[0] if truths else "sample")}'
        f'<figcaption><p>{verdict(last)}</p>{question}<p class="said">{prediction(last)}</p>'
        f'<p class="true"><span>reference</span> {truth}</p>{folded}</figcaption></figure>'
    )


def prediction(sample: dict[str, Any]) -> str:
    said = str(sample.get("prediction") or "").strip()
    return f"“{escape(said)}”" if said else "<i>(empty)</i>"


def verdict(sample: dict[str, Any]) -> str:
    """Right or wrong, the share of a full mark (annotators may differ), or CIDEr-D, which has no right or wrong."""
    right = sample.get("right", sample.get("correct"))
    value = finite(right if not isinstance(right, bool) else float(right))
    if not math.isfinite(value):
        return '<span class="verdict">○ not scored</span>'
    if not isinstance(right, bool) and right == sample.get("cider_d"):
        return f'<span class="verdict">CIDEr-D {value:.2f}</span>'
    if 0 < value < 1:
        return f'<span class="verdict">◐ {value:.2f} right</span>'
    return '<span class="verdict right">✓ right</span>' if value else '<span class="verdict wrong">✗ wrong</span>'


def medium(folder: Path, sample: dict[str, Any], alt: str) -> str:
    """The sample's picture, with what can be played of it."""
    shown = picture(folder, sample.get("image"), alt)
    for what, tag in (("clip", "video"), ("sound", "audio")):
        data = recording(folder, sample.get(what))
        if data:
            poster = shown.partition('src="')[2].partition('"')[0]  # four frames, until it is played
            extra = f' loop muted playsinline poster="{poster}"' if tag == "video" else ""
            played = f'<{tag} controls preload="metadata"{extra} src="{data}" aria-label="{escape(alt)}"></{tag}>'
            return played if tag == "video" else shown + played
    return shown


def recording(folder: Path, name: Any) -> str:
    """A data address of a sound or clip; empty where there is none of a known kind, or it is too large."""
    kind = PLAYABLE.get(Path(str(name)).suffix) if name else None
    if kind is None:
        return ""
    try:
        path = (folder / str(name)).resolve()
        if not path.is_relative_to(folder.resolve()) or path.stat().st_size > MAX_RECORDING:
            return ""
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except (OSError, ValueError):
        return ""


def picture(folder: Path, image: Any, alt: str) -> str:
    """<img> with the picture inside, or a line that says why there is none."""
    if not image:
        return '<div class="no-picture">no picture</div>'
    try:
        path = (folder / str(image)).resolve()
        if not path.is_relative_to(folder.resolve()):
            return '<div class="no-picture">picture outside the run folder</div>'
        kind, data = shrunk(path.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return '<div class="no-picture">picture could not be read</div>'
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(alt)}">'


def shrunk(data: bytes) -> tuple[str, bytes]:
    """Kind and bytes of the picture at MAX_SIDE at most. Raises OSError or ValueError where it is no picture."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        kind = (image.format or "").lower()
        if len(data) <= SMALL and max(image.size) <= MAX_SIDE and kind in ("png", "jpeg", "webp"):
            return kind, data
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image.convert("RGBA"), mask=image.convert("RGBA"))
        flat.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        flat.save(buffer, format="JPEG", quality=82, optimize=True)
    return "jpeg", buffer.getvalue()
