"""The page of a first look at data: what was found, sizes by split, and samples of each split."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from ima.core.media import Medium, Sound
from ima.core.types import Sample
from ima.data.first_look import FirstLook, SplitLook, Spread
from ima.report.page.html import document
from ima.report.page.words import track_name, value_text

SIDE = 224  # pixels
MANY = {"image": "pictures", "video": "clips", "audio": "sounds"}
NUM_FRAMES = 4
PLAYED = 5.0  # seconds of a sound
PLAYED_RATE = 16_000


def look_page(looks: Sequence[FirstLook], command: str) -> str:
    """The whole document. command: what was typed."""
    names = ", ".join(look.name for look in looks)
    problems = [line for look in looks for line in look.problems]
    lines = "".join(f'<p class="alert">{escape(line)}</p>' for line in problems)
    if not problems:
        lines = "<p>Every medium that was looked at can be read, none is there twice, and no two splits share one.</p>"
    sections = []
    for place, look in enumerate(looks):
        notes = "".join(f"<li>{escape(note)}</li>" for note in look.notes)
        sections += [
            (f"sizes-{place}", f"{look.name}: sizes", size_table(look) + (f"<ul>{notes}</ul>" if notes else "")),
            (f"samples-{place}", f"{look.name}: samples", "".join(map(shown, look.splits))),
        ]
    header = f'<h1>{escape(names)}</h1><p class="lead">A first look at the data, before anything is trained.</p>{lines}'
    sections.append(("reproduce", "How to reproduce", f"<pre><code>{escape(command)}</code></pre>"))
    return document(f"ima · data · {names}", header, sections)


def size_table(look: FirstLook) -> str:
    heads = ["split", "samples", MANY.get(look.modality, "media"), "groups", f"{look.unit} of a text"]
    asked = any(split.questions for split in look.splits)
    heads += [f"{look.unit} of a question"] if asked else []
    units = list(dict.fromkeys(unit for split in look.splits for unit in split.sizes))
    names = [*heads, *units, "looked at"]
    head = f'<th scope="col">{names[0]}</th>'
    head += "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in names[1:])
    body = ""
    for split in look.splits:
        cells = [value_text(number) for number in (split.num_samples, split.num_media, split.num_groups)]
        cells += [spread_text(split.texts), *([spread_text(split.questions)] if asked else [])]
        cells += [spread_text(split.sizes.get(unit)) for unit in units]
        cells.append(value_text(split.num_looked_at))
        columns = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        body += f'<tr><th scope="row">{escape(track_name(split.name))}</th>{columns}</tr>'
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="note">Lengths and sizes: the middle one; small: the least and the most. Groups are what intervals '
        "resample.</p>"
    )


def spread_text(found: Spread | None) -> str:
    if found is None:
        return "–"
    low, median, high = (number(value) for value in (found.low, found.median, found.high))
    return f"{median} <small>{low} – {high}</small>"


def number(value: float) -> str:
    return value_text(int(value) if value == int(value) else round(value, 2))


def shown(look: SplitLook) -> str:
    cards = "".join(card(sample, medium) for sample, medium in look.shown)
    return f'<h3>{escape(track_name(look.name))}</h3><div class="cards">{cards}</div>'


def card(sample: Sample, medium: Medium | None) -> str:
    truths = [escape(text) for text in sample.references[:3]]
    more = f' <span class="more">+{len(sample.references) - 3}</span>' if len(sample.references) > 3 else ""
    asked = f'<p class="asked"><span>question</span> {escape(sample.question)}</p>' if sample.question else ""
    text = "<br>".join(truths) + more if truths else "<i>no text</i>"
    name = str(sample.facts.get("file") or sample.id)
    return (
        f'<figure class="card">{drawn(medium, name)}<figcaption>{asked}<p class="said">{text}</p>'
        f'<p class="true">{escape(name)}</p></figcaption></figure>'
    )


def drawn(medium: Medium | None, name: str) -> str:
    if medium is None:
        return '<div class="no-picture">no medium that can be read</div>'
    if isinstance(medium, Sound):
        return image_tag(waveform(medium), name) + player(medium, name)
    if isinstance(medium, Image.Image):
        return image_tag(medium, name)
    places = [index * medium.num_frames // NUM_FRAMES for index in range(NUM_FRAMES)]
    frames = [frame.resize((SIDE // 2, SIDE // 2)) for frame in medium.frames(places)]
    sheet = Image.new("RGB", (SIDE, SIDE))
    for index, frame in enumerate(frames):
        sheet.paste(frame, (index % 2 * SIDE // 2, index // 2 * SIDE // 2))
    return image_tag(sheet, f"four frames of {name}")


def image_tag(image: Image.Image, alt: str) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, format="JPEG", quality=82, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'


def waveform(sound: Sound) -> Image.Image:
    """Its loudest sample in each of SIDE parts."""
    parts = np.array_split(np.abs(sound.wave), SIDE)
    loud = np.array([part.max() if len(part) else 0.0 for part in parts])
    heights = (loud / max(1e-9, loud.max()) * (SIDE // 4 - 4)).astype(int)
    image = Image.new("RGB", (SIDE, SIDE // 2), "white")
    lines = ImageDraw.Draw(image)
    for column, height in enumerate(heights.tolist()):
        lines.line([(column, SIDE // 4 - height), (column, SIDE // 4 + height)], fill=(0, 90, 156))
    return image


def player(sound: Sound, name: str) -> str:
    """The first seconds of it, at a rate that keeps the page small."""
    import soundfile

    step = max(1, sound.rate // PLAYED_RATE)
    wave = np.clip(sound.wave[: int(PLAYED * sound.rate) : step], -1, 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, sound.rate // step, format="WAV", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}" aria-label="{escape(name)}"></audio>'
