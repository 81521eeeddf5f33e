"""A few sounds that the tests make themselves: folders and a table like the shipped one, no foreign recording."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import soundfile

from ima.data.stampworld.sounds import SOUND_TABLE

VERBS = {"cow": "moos", "dog": "barks", "owl": "hoots", "crow": "caws", "bee": "buzzes", "violin": "plays",
         "drum": "beats", "camera": "clicks", "saw": "rasps", "lion": "roars"}  # fmt: skip
UNKNOWN = {"fox": "yelps", "lark": "sings", "cello": "plays"}
SECOND = ("dog", "owl", "violin")
with SOUND_TABLE.open(encoding="utf-8") as file:
    COLUMNS = next(csv.reader(file, delimiter="\t"))


def make_sounds(root: Path) -> tuple[dict[str, str], Path]:
    """(folder by package, table): ten nouns to train on, three second recordings, three unknown nouns."""
    plan = [("stamps", noun, "train", 0) for noun in VERBS]
    plan += [("scratch", noun, "T1", 1) for noun in SECOND] + [("stamps", noun, "T2", 0) for noun in UNKNOWN]
    rows = []
    for index, (package, noun, split, number) in enumerate(plan):
        file = f"animals/{noun}{number}.wav"
        path = root / package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = (8000, 22050, 44100)[index % 3]
        seconds = 0.3 + 0.45 * (index % 7)
        time = np.arange(round(rate * seconds)) / rate
        wave = np.sin(2 * np.pi * (300 + 170 * index) * time) * (0.02 + 0.1 * (index % 5))
        soundfile.write(path, wave.astype(np.float32), rate, subtype="FLOAT")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        rows.append(dict.fromkeys(COLUMNS, "0") | {
            "package": package, "file": file, "status": "core", "noun": noun, "verb": (VERBS | UNKNOWN)[noun],
            "split": split, "cluster": f"{package}/{noun}", "sha256_16": digest,
        })  # fmt: skip
    rows.append(dict.fromkeys(COLUMNS, "0") | {"package": "stamps", "file": "gone.ogg", "status": "silent"})
    table = root / "sounds.tsv"
    table.write_text("\n".join(["\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]) + "\n")
    return {package: str(root / package) for package in ("stamps", "scratch")}, table
