"""What every benchmark prints and writes: ratios of paired timings, beside their goals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ima.core.files import write_json
from ima.core.timing import Ratio

FOLDER = Path("outputs/bench")


def report(name: str, ratios: Mapping[str, Ratio], goals: Mapping[str, str], facts: object) -> None:
    """Print the ratios beside their goals and write them."""
    for key, (middle, low, high) in ratios.items():
        print(f"{key:22s} {middle:6.3f}  [{low:.3f}, {high:.3f}]  {goals.get(key, '')}")
    path = FOLDER / f"{name}.json"
    content = {
        "ratios": {key: round(value[0], 4) for key, value in ratios.items()},
        "quartiles": {key: [round(value[1], 4), round(value[2], 4)] for key, value in ratios.items()},
        "facts": facts,
    }
    write_json(path, content)
    print(path)


def synchronise() -> None:
    """A GPU's work is timed when it is done, not when it is queued."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
