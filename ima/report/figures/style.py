"""Colours and the way from a matplotlib figure to SVG that reads well on light and on dark ground.

Figures are drawn with placeholder colours; in the page these become CSS variables, in the files beside it the light
colours on white. Colours: Okabe-Ito for categories, viridis for epochs (later = further from the background).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NUM_EPOCH_COLOURS = 16
NARROW, HEIGHT = 5.2, 3.7  # inches; 374 x 266 pt, so that 10 pt text is readable at 360 px and at 520 px

NAMED = {  # name: (light, dark)
    "paper": ("#ffffff", "#15181d"), "ink": ("#1c2128", "#e4e8ee"), "muted": ("#57606a", "#9aa5b1"),
    "grid": ("#dfe3e8", "#2d333b"), "P": ("#c2410c", "#ff9a5c"), "T": ("#0b6bb0", "#62b5f0"),
    "before": ("#8b949e", "#7d8791"),
    "c0": ("#0b6bb0", "#62b5f0"), "c1": ("#c2410c", "#ff9a5c"), "c2": ("#007a5a", "#2fc397"),
    "c3": ("#a64b86", "#e094c0"), "c4": ("#8a6d00", "#f0d44a"), "c5": ("#1b8ab8", "#9fdcff"),
    "c6": ("#7a3b00", "#d9a066"), "c7": ("#444c56", "#c3ccd6"),
}  # fmt: skip
NUM_CATEGORIES = 8
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def palette() -> dict[str, tuple[str, str]]:
    """All colours: name -> (light, dark)."""
    viridis = matplotlib.colormaps["viridis"]
    colours = dict(NAMED)
    for index in range(NUM_EPOCH_COLOURS):
        share = index / (NUM_EPOCH_COLOURS - 1)
        light, dark = viridis(0.80 - 0.78 * share), viridis(0.33 + 0.62 * share)
        colours[f"e{index}"] = (matplotlib.colors.to_hex(light), matplotlib.colors.to_hex(dark))
    return colours


class Theme:
    """Colours by name while drawing: real ones (light), or placeholders that `themed_svg` turns into variables."""

    def __init__(self, placeholders: bool = False) -> None:
        names = palette()
        self.placeholders = placeholders
        self.hex = {
            name: f"#0b0b{index:02x}" if placeholders else light
            for index, (name, (light, _)) in enumerate(names.items())
        }

    def __getitem__(self, name: str) -> str:
        return self.hex[name]

    def epoch(self, index: int, count: int) -> str:
        """Colour of the index-th of `count` epochs after the untrained one."""
        share = index / (count - 1) if count > 1 else 1.0
        return self.hex[f"e{round(share * (NUM_EPOCH_COLOURS - 1))}"]

    def category(self, index: int) -> str:
        return self.hex[f"c{index % NUM_CATEGORIES}"]


def css_variables() -> str:
    """The variables that `themed_svg` refers to: light ones for all media, dark ones for dark screens."""
    colours = palette()
    light = "".join(f"--{name}:{pair[0]};" for name, pair in colours.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in colours.items())
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


@contextmanager
def settings(theme: Theme) -> Iterator[None]:
    ink, muted = theme["ink"], theme["muted"]
    with matplotlib.rc_context({
        "svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "ima", "path.simplify": True,
        "font.size": 10, "axes.labelsize": 10, "axes.titlesize": 11.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 10, "legend.fontsize": 9, "legend.frameon": False,
        "text.color": ink, "axes.labelcolor": ink, "xtick.color": muted, "ytick.color": muted,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.edgecolor": muted, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": theme["grid"],
        "grid.linewidth": 0.8, "axes.axisbelow": True, "lines.linewidth": 1.8, "lines.markersize": 4.5,
        "axes.facecolor": "none", "figure.facecolor": "none" if theme.placeholders else theme["paper"],
        "savefig.facecolor": "auto", "legend.handlelength": 2.2, "legend.labelspacing": 0.35,
    }):  # fmt: skip
        yield


def render(draw: Callable[[Figure, Theme], None], theme: Theme, *kinds: str) -> list[bytes]:
    """Run `draw` on an empty figure of the usual size; a kind is "svg" or "png". Same input, same bytes."""
    with settings(theme):
        figure = Figure(figsize=(NARROW, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, theme)
        pictures = []
        for kind in kinds:
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(buffer, format=kind, dpi=200 if kind == "png" else 72, metadata=metadata)
            pictures.append(buffer.getvalue())
            figure.set_layout_engine("none")  # the places of the first kind are those of the others
    return pictures


LONG = re.compile(r"(\.\d\d)\d+")  # hundredths of a point are enough for a coordinate
FONT = re.compile(r"(font(?:-family)?:[^;\"]*?)'[^;\"]*'[^;\"]*")


def clean_svg(raw: bytes, prefix: str) -> str:
    """The <svg> element alone: no XML prologue, short numbers, a system font, ids that cannot clash in one page."""
    svg = raw.decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'\b(?:d|x|y)="[^"]*"', lambda found: LONG.sub(r"\1", found.group()), svg)
    svg = FONT.sub(r"\1system-ui, 'Segoe UI', Helvetica, Arial, sans-serif", svg)
    svg = re.sub(r"\bid=\"", f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r"href=\"#", f'href="#{prefix}-', svg)
    return re.sub(r">\s+<", "><", svg).strip()


def themed_svg(raw: bytes, prefix: str, label: str) -> str:
    """For the page: scales with its column, takes its colours from CSS variables, `label` is read aloud."""
    svg = re.sub(r"<style.*?</style>", "", clean_svg(raw, prefix), flags=re.S)  # it would reach the whole page
    names = Theme(placeholders=True).hex
    for name, placeholder in names.items():
        svg = svg.replace(placeholder, f"var(--{name})")
    size = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {size.group() if size else ""} role="img">'
    return f"{opening}<title>{escape(label)}</title>{svg[svg.index('>') + 1 :]}"


def plain_svg(raw: bytes, name: str) -> str:
    """For a file: light colours on white, good alone."""
    prefix = hashlib.sha256(name.encode()).hexdigest()[:6]
    return '<?xml version="1.0" encoding="utf-8"?>\n' + clean_svg(raw, f"f{prefix}") + "\n"
