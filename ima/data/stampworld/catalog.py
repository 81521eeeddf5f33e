"""The stamps: which picture shows which noun, in which split, and the picture itself, cut out and verified.

The table `stamps.tsv` is our own annotation (facts, no captions, no pixels); the pictures and the human captions are
read at run time from Debian's tuxpaint-stamps-default and never copied anywhere. Every used file is compared with
the sha256 of the table. Hides the package: another folder with another table works the same way.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ima.core.assets.registry import locate
from ima.core.errors import UserError, nearest
from ima.core.files import read_utf8
from ima.tasks.metrics.vocabulary import Noun, load_nouns

TABLE = Path(__file__).parent / "stamps.tsv"
SPLITS = ("train", "V1", "V2", "T1", "T2")
MAX_EDGE = 256  # pictures are kept in memory at no more than this
NOT_IN_DEMO = frozenset({"gravestone"})
# Two or more of each of five categories, each with training stamps and a new one: what is learnt in minutes.
FEW = frozenset(
    ("fish", "penguin", "rabbit", "pig", "house", "tower", "orange", "lemon", "flower", "tree", "airplane", "train car")
)
HUMAN_STARTS = ("A ", "An ", "The ", "Some ", "Two ", "Our ")


@dataclass(frozen=True)
class Stamp:
    """One cut-out. `cluster` names the identity that it shares with other views and recolours of the same thing;
    width and height, in pixels, are those of the visible part."""

    key: str
    noun: str
    style: str
    image: str
    split: str
    cluster: str
    mirror: bool
    digest: str
    width: int
    height: int

    @property
    def slug(self) -> str:
        return self.key.replace("/", "_")


def read_table(path: Path = TABLE) -> tuple[Stamp, ...]:
    """The usable rows (status core) of a table, sorted by key. Raises UserError naming the row that is wrong."""
    try:
        text = io.StringIO(read_utf8(path), newline="")
        rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a table of stamps is a .tsv like {TABLE.name}") from error
    stamps = []
    for number, row in enumerate(rows, 2):
        try:
            if row["status"] != "core":
                continue
            stamp = Stamp(
                key=row["key"],
                noun=row["noun"],
                style=row["style"],
                image=row["image"],
                split=row["split"],
                cluster=row["cluster"],
                mirror=row["nomirror"] == "0",
                digest=row["sha256_16"],
                width=int(row["width"]),
                height=int(row["height"]),
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}:{number}: column {error} is missing or wrong; {TABLE.name} shows all") from error
        if stamp.split not in SPLITS or stamp.image not in ("png", "svg") or not stamp.cluster:
            raise UserError(
                f"{path}:{number}: split {stamp.split!r}, image {stamp.image!r}, cluster {stamp.cluster!r}; allowed: "
                f"split {', '.join(SPLITS)}; image png, svg; any cluster but an empty one"
            )
        stamps.append(stamp)
    return tuple(sorted(stamps, key=lambda stamp: stamp.key))


class Catalog:
    """Stamps with their pictures and human captions. `svg`: also those that exist only as SVG (needs resvg_py)."""

    def __init__(self, folder: str | Path | None = None, table: str | Path | None = None, svg: bool = False) -> None:
        self._folder = None if folder is None else Path(folder)
        self.svg = svg
        if svg:
            import_resvg()
        every = read_table(TABLE if table is None else Path(table))
        self.stamps = tuple(stamp for stamp in every if svg or stamp.image == "png")
        listing = "\n".join(f"{stamp.key}.{stamp.image} {stamp.digest} {stamp.mirror}" for stamp in self.stamps)
        self.manifest = hashlib.sha256(listing.encode()).hexdigest()[:16]
        self.picture = functools.lru_cache(maxsize=1024)(self._picture)

    @functools.cached_property
    def folder(self) -> Path:
        """Raises UserError where the package is not there."""
        return locate("stamps") if self._folder is None else self._folder

    @functools.cached_property
    def nouns(self) -> dict[str, Noun]:
        """The vocabulary; nouns of an own table that it lacks get the first folder of their key as category."""
        known = load_nouns("stamps")
        own = {s.noun: Noun(s.noun, s.key.split("/")[0]) for s in self.stamps if s.noun not in known}
        return known | own

    def select(self, nouns: str | Iterable[str] = "all") -> frozenset[str]:
        """Nouns by name, or "all", or "demo": those with two or more training stamps that need no SVG renderer, or
        "few": twelve of these."""
        train: dict[str, int] = {}
        for stamp in self.stamps:
            train[stamp.noun] = train.get(stamp.noun, 0) + (stamp.split == "train" and stamp.image == "png")
        if nouns == "all":
            return frozenset(train)
        if nouns == "demo":
            return frozenset(noun for noun, num in train.items() if num >= 2) - NOT_IN_DEMO
        if nouns == "few":
            return FEW & frozenset(train)
        chosen = [nouns] if isinstance(nouns, str) else list(nouns)
        for noun in chosen:
            if noun not in train:
                raise UserError(
                    f"nouns: no stamp shows {noun!r}; 'few', 'demo', 'all', or a list; {nearest(noun, train)}"
                )
        if not chosen:
            raise UserError("nouns: the list is empty; 'few', 'demo', 'all', or at least one noun")
        return frozenset(chosen)

    def _picture(self, stamp: Stamp) -> Image.Image:
        """RGBA, cut to what is visible, the longer edge at most 256 pixels.

        Raises UserError for a file that is missing, unreadable or not the one of the table.
        """
        path = self.folder / f"{stamp.key}.{stamp.image}"
        data = read_checked(path, stamp.digest)
        try:
            image = draw_svg(data) if stamp.image == "svg" else Image.open(io.BytesIO(data)).convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: not a readable picture ({error}); fetch it again: `make setup`") from error
        return cut(image)

    def human(self, stamp: Stamp) -> str:
        """The caption that people wrote, as a phrase ("a brown hen"), or "" where it does not describe the picture."""
        path = self.folder / f"{stamp.key}.txt"
        try:
            line = path.read_text(encoding="utf-8").split("\n", 1)[0]
        except (OSError, UnicodeDecodeError):
            return ""  # the picture is what is verified; a caption is one reference of several
        return as_phrase(line)


def read_checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; fetch the stamps again: `make setup`") from error
    found = hashlib.sha256(data).hexdigest()[:16]
    if found != digest:
        raise UserError(f"{path}: sha256 begins {found}, the table says {digest}; fetch the stamps again: `make setup`")
    return data


def cut(image: Image.Image) -> Image.Image:
    """Crop to the box of what is visible (alpha > 8) and reduce to the size that is ever needed."""
    box = image.getchannel("A").point([255 if alpha > 8 else 0 for alpha in range(256)]).getbbox()
    image = image.crop(box) if box else image
    scale = MAX_EDGE / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)  # Pillow premultiplies RGBA here
    return image


def import_resvg() -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("svg=true needs the package resvg_py: pip install 'ima[svg]', or svg=false") from error
    return resvg_py


def draw_svg(data: bytes) -> Image.Image:
    """Files in pt or mm have no size without a dpi."""
    png = import_resvg().svg_to_bytes(svg_string=data.decode("utf-8"), dpi=96)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def as_phrase(line: str) -> str:
    """'A brown hen.' -> 'a brown hen'; "" for exclamations, stories and rules of a game."""
    line = re.sub(r"[“”‘\"]", "", line.strip()).replace("’", "'")
    line = re.sub(r"\s*\([^)]*\)", "", line).rstrip(".! ")
    if not line.startswith(HUMAN_STARTS) or len(line.split()) > 10 or re.search(r"[.!?;:—–]", line):
        return ""
    return line[0].lower() + line[1:]
