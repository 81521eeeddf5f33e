"""A few stamps that the tests draw themselves: a folder and a table like the shipped one, no foreign picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageDraw

from ima.data.stampworld.catalog import TABLE

NOUNS = {"cow": "animals", "pig": "animals", "car": "vehicles", "apple": "food", "hat": "clothes", "gift": "seasonal"}
COLUMNS = tuple(TABLE.read_text(encoding="utf-8").split("\n", 1)[0].split("\t"))


def draw_stamps(folder: Path) -> tuple[Path, Path]:
    """(folder of pictures, table): six nouns with three training stamps, one of V1 and one of T1; two nouns of T2."""
    rows = []
    plan = [(noun, split, n) for noun in NOUNS for n, split in enumerate(("train", "train", "train", "V1", "T1"))]
    plan += [("dog", "T2", 0), ("owl", "T2", 0)]
    for index, (noun, split, n) in enumerate(plan):
        key = f"{NOUNS.get(noun, 'animals')}/{noun}{n}"
        width, height = 40 + 7 * (index % 5), 30 + 11 * (index % 4)
        image = Image.new("RGBA", (width + 10, height + 6), (0, 0, 0, 0))
        colour = tuple(int.from_bytes(hashlib.sha256(f"{key}{c}".encode()).digest()[:1], "big") for c in "rgb")
        ImageDraw.Draw(image).rectangle((4, 2, 3 + width, 1 + height), fill=(*colour, 255))
        path = folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        path.with_suffix(".txt").write_text(f"A brown {noun}.\nfr.utf8=Un.\n", encoding="utf-8")
        row = dict.fromkeys(COLUMNS, "0") | {
            "key": key,
            "status": "core",
            "noun": noun,
            "style": "drawing",
            "image": "png",
            "split": split,
            "cluster": key,
            "sha256_16": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            "width": str(width),
            "height": str(height),
        }
        rows.append("\t".join(row[column] for column in COLUMNS))
    table = folder / "table.tsv"
    table.write_text("\n".join(["\t".join(COLUMNS), *rows]) + "\n", encoding="utf-8")
    return folder, table
