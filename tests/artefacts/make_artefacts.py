"""Makes the small artefacts of this folder: a run, an evaluation of it, masks, a mixture, a sweep of two jobs.

They were written by the code of the commit that added them and are not to be made again lightly: tests read, evaluate,
report and compare them, so that whatever is changed later, what people have on disk stays usable. Run from the root:
`python tests/artefacts/make_artefacts.py`. Paths in them are relative, the machine is left out and, to keep them
small, null fields of rows, epochs of a sweep before the last, and what is made anew from the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = Path("tests/artefacts")
TINY = ["llm=tiny", "adapter.hidden=8", "adapter.grid=1", "trainer.accelerator=cpu", "loader.batch_size=8",
        "trainer.max_epochs=2", "task.max_new_tokens=4", "logger=none"]  # fmt: skip
SHAPES = ["data=shapes", "data.num_train=16", "data.num_test=6", "data.size=64"]
NOISE = ["encoder=noise", "encoder.dim=8", "encoder.num_tokens=4"]
PICTURES = ["encoder=random_efficientnet", "encoder.layer=1", "loader.cache_dtype=float32"]
ENTRY = (
    "{_target_: ima.settings.Entry, data: {_target_: ima.data.shapes.Shapes, num_train: 16, num_test: 6, size: 64, "
    "seed: %d}, task: {_target_: ima.tasks.caption.CaptionTask, max_new_tokens: 4}}"
)
MIXTURE = f"mixture={{first: {ENTRY % 0}, second: {ENTRY % 1}}}"
OUT = f"output_dir={PLACE}"
EVALUATION = [f"checkpoint={PLACE}/run", "intervention=[skip_ffn]", "intervention.skip_ffn.start=1", "alignment=full",
              "alignment.sites=[resid_post]", "alignment.variants=[nosink,update]", "alignment.layers=[0,1,3]",
              "alignment.num_reservoir=8", "alignment.num_vocabulary_layers=2",
              "alignment.num_tsne_layers=1"]  # fmt: skip
COMMANDS = {
    "run": ["train.py", "experiment=smoke", *SHAPES, *TINY, *PICTURES, OUT, "name=run"],
    "evaluation": ["evaluate.py", *EVALUATION],
    "masks": ["-m", "ima.masks", "make", f"{PLACE}/run", "--num-examples", "8", "--roles", "percept", "text",
              "--out", f"{PLACE}/masks"],
    "mixture": ["train.py", *TINY, *NOISE, MIXTURE, "trainer.max_epochs=1", OUT, "name=mixture"],
    "sweep": ["sweep.py", *TINY, *NOISE, *SHAPES, "seed=0,1", "alignment=none", OUT, "name=sweep"],
}  # fmt: skip
# Made anew from the rest, or of no use without the process that wrote it.
LEFT_OUT = ("lock", "report.html", "figures", "logs", "wandb", "*.parquet", "runs.csv", "*.lock", "epoch-*",
            "mixture/entries/*/alignment.safetensors", "evaluate-*/alignment.safetensors",
            "sweep/*/checkpoints", "sweep/*/samples.jsonl", "sweep/*/media", "mixture/media",
            "evaluate-*/media")  # fmt: skip


def make(names: list[str]) -> None:
    for name in names:
        shutil.rmtree(ROOT / PLACE / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"IMA_CACHE": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        for name in names:
            subprocess.run([sys.executable, *COMMANDS[name]], cwd=ROOT, env=environment, check=True)
    tidy()


def tidy() -> None:
    for pattern in LEFT_OUT:
        for path in list((ROOT / PLACE).rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (ROOT / PLACE).rglob("result.json"):
        result = json.loads(path.read_text())
        result["machine"] = {"platform": "Linux", "cpu": "x86_64"}
        path.write_text(json.dumps(result, indent=2) + "\n")
        thin(path.with_name("rows.jsonl"))


def thin(path: Path) -> None:
    """Rows without their null fields, of the first and the last epoch (of mixtures and sweeps the last), without the
    maps of single tokens."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    epochs = [row.get("epoch") or 0 for row in rows]
    wanted = {max(epochs)} | (set() if {"sweep", "mixture"} & set(path.parts) else {min(epochs)})
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    kept = [row for row in kept if row.get("epoch", 0) in wanted and row.get("variant") != "tokens"]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))


if __name__ == "__main__":
    make(sys.argv[1:] or list(COMMANDS))
