"""What a page costs: a thousand synthetic finished runs are collected into a table and drawn as one page.

Each step is a process of its own, imports included, as a person starts it: `python -m ima collect`,
`python -m ima report`, and `python -m ima report --help`. The median over the rounds goes to outputs/bench/report.json.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ima.core.files import write_json
from ima.core.provenance import provenance

NUM_RUNS = 1000
LIMITS = {"collect_seconds": 5.0, "report_seconds": 20.0, "help_seconds": 1.0, "page_bytes": 5_000_000}
OUT = Path("outputs/bench/report.json")


def main(num_rounds: int) -> None:
    num_rounds = min(num_rounds, 3)
    with tempfile.TemporaryDirectory(prefix="ima-bench-") as name:
        folder = Path(name)
        for index in range(NUM_RUNS):
            write_json(folder / "runs" / f"run-{index:04d}" / "result.json", synthetic(index))
        runs, page = str(folder / "runs"), folder / "report.html"
        steps = {
            "collect_seconds": ["ima", "collect", runs, "--out", str(folder / "runs.csv")],
            "report_seconds": ["ima", "report", runs, "--out", str(page)],
            "help_seconds": ["ima", "report", "--help"],
        }
        measured: dict[str, float] = {}
        for step, arguments in steps.items():
            measured[step] = round(statistics.median(seconds(arguments) for _ in range(num_rounds)), 3)
        measured["page_bytes"] = page.stat().st_size
    kept = {name: measured[name] <= limit for name, limit in LIMITS.items()}
    result = {"num_runs": NUM_RUNS, "rounds": num_rounds, "measured": measured, "limits": LIMITS, "kept": kept}
    write_json(OUT, result | provenance())
    for name, value in measured.items():
        print(f"{name:16s} {value:>12} of {LIMITS[name]}{'' if kept[name] else '  over the limit'}")
    print(OUT)


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def synthetic(index: int) -> dict[str, Any]:
    """A result.json of the size and shape that a demo run writes; one in fifty failed."""
    draws = random.Random(index)
    encoder = draws.choice(["efficientnet_lite0", "focus_vit", "noise", "random_efficientnet"])
    adapter, lr = draws.choice(["pool", "query", "mlp"]), draws.choice([1e-3, 2e-3, 4e-3])
    skill = 0.1 if encoder in ("noise", "random_efficientnet") else draws.uniform(0.3, 0.95)
    config = {
        "encoder": {"_target_": f"ima.models.encoders.{encoder}", "layer": draws.randrange(12)},
        "adapter": {"_target_": f"ima.models.adapters.linear.{adapter}", "_partial_": True, "hidden": 1024},
        "llm": {"_target_": "ima.models.llm.load.smollm2", "dtype": "auto"},
        "task": {"prompt": "This is a picture of", "max_new_tokens": 12},
        "trainer": {f"setting_{number}": number for number in range(24)} | {"max_epochs": 8},
        "optimizer": {"lr": lr},
        "seed": draws.randrange(5),
        "choices": {"encoder": encoder, "adapter": adapter, "llm": "smollm2"},
    }
    metrics: dict[str, float] = {"ima/mean": 0.4 + 0.4 * skill + draws.gauss(0, 0.05), "val/loss": 1.5 - skill}
    metrics |= {"ima/mean/nosink": metrics["ima/mean"] - 0.1, "ima_gap_read/mean": 0.01 * skill}
    for track in ("T0", "T1", "blind"):
        for score in ("noun_accuracy", "category_accuracy", "noun_precision", "noun_recall", "noun_f1", "cider_d"):
            value = skill * draws.uniform(0.8, 1.0) * (track != "blind")
            metrics |= {f"{track}/{score}": value, f"{track}/{score}/low": value - 0.05}
            metrics[f"{track}/{score}/high"] = value + 0.05
    given = f"encoder={encoder} adapter={adapter} optimizer.lr={lr} seed={config['seed']}"
    failed = {"status": "failed", "reason": "killed by SIGKILL (out of memory?)", "metrics": {}}
    return {
        "status": "ok", "config": config, "command": f"python train.py experiment=demo {given}", "metrics": metrics,
        "wall_seconds": draws.uniform(100, 400), "facts": {"llm": "SmolLM2", "encoder": encoder, "plan": {}},
        "seeds": {"seed": config["seed"]}, **provenance_of_a_run(),
    } | (failed if index % 50 == 0 else {})  # fmt: skip


def provenance_of_a_run() -> dict[str, Any]:
    return {"versions": {"python": "3.11.7", "torch": "2.11.0"}, "git": {"commit": "0" * 40, "dirty": False}}
