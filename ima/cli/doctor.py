"""`python -m ima doctor [overrides]`: will this config run here? Versions, devices, memory and disk needed against what
is there, what would have to be downloaded, what is missing. Seconds: no torch, no weights are loaded.

Sizes are estimates from dimensions: of the model's own config.json where that is here, else of a table; of an encoder
the numbers that the choice's line in conf/ states. They tell megabytes from gigabytes and which part is the large one,
not the last tenth.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.cli.early import refuse_early
from ima.cli.help import describe
from ima.cli.llm_sizes import llm_size
from ima.cli.memory import Training, fitting_budget, training_memory
from ima.config.compose import CONF, compose
from ima.core.assets.registry import missing
from ima.core.cache import cache_dir
from ima.core.errors import UserError
from ima.core.network import hub_folder
from ima.core.provenance import provenance
from ima.core.signatures import signature

GB = 1e9
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GPU = ("gpu", "cuda")
TEXT_TOKENS = 48  # of a prompt with its answer
LABELS = 32  # of them supervised


def encoder_tokens(choice: str | None) -> tuple[int, int] | None:
    """(tokens, width) of a medium, as the choice's line says it."""
    found = re.search(r"(\d+) x (\d+)", describe(CONF / "encoder" / f"{choice}.yaml")) if choice else None
    return (int(found[1]), int(found[2])) if found else None


def needs(config: Mapping[str, Any]) -> dict[str, float | None]:
    """Estimated bytes by what they are for; None where nothing is known."""
    choices = config.get("choices") or {}
    llm, loader = config.get("llm") or {}, config.get("loader") or {}
    size, shape = llm_size(llm), encoder_tokens(choices.get("encoder"))
    samples = dataset_size(config.get("data") or {})
    dtype = BYTES.get(str(loader.get("cache_dtype") or "float16"), 2)
    cached = loader.get("cache_features", True) and shape is not None and "Noise" not in str(config.get("encoder"))
    memory: dict[str, float | None] = {"LLM weights": None, "activations": None}
    if size is not None:
        memory = {name: value for name, value in training_memory(size, step_of(config)).items() if value}
    return memory | {
        "feature cache": samples * shape[0] * shape[1] * dtype if cached and samples and shape else None,
    }


def step_of(config: Mapping[str, Any]) -> Training:
    """What a step of this training is, as far as the config tells."""
    choices, trainer = config.get("choices") or {}, config.get("trainer") or {}
    llm, loader, adapter = (config.get(name) or {} for name in ("llm", "loader", "adapter"))
    gpu = trainer.get("accelerator") in GPU or (trainer.get("accelerator") == "auto" and len(devices()) > 1)
    shape = encoder_tokens(choices.get("encoder"))
    percepts = int(adapter.get("num_tokens") or (10 if choices.get("adapter") == "pool" else (shape or (64, 0))[0]))
    given = trainer.get("devices")
    num = max(1, given) if isinstance(given, int) and gpu else 1
    rows = int(loader.get("batch_size") or 16) // int(trainer.get("accumulate_grad_batches") or 1) // num
    train = str(llm.get("train") or "none")
    usual = 4 if not gpu or train == "all" else 2
    return Training(
        max(1, rows),
        percepts + TEXT_TOKENS,
        LABELS,
        BYTES.get(str(llm.get("dtype")), usual),
        train,
        int(llm.get("lora_rank") or 16),
        llm.get("compile") is True or (gpu and llm.get("compile", "auto") == "auto"),
        float(llm.get("activation_budget") or 1.0),
        num if "fsdp" in str(trainer.get("strategy")) else 1,
    )


def dataset_size(node: Mapping[str, Any]) -> int | None:
    """Media, as far as the config tells, or the defaults of its class."""
    parameters = signature(str(node["_target_"])).parameters if "_target_" in node else {}
    sizes = {name: parameters[name].default for name in ("num_train", "num_test", "limit") if name in parameters}
    node = sizes | dict(node)
    counts = [value for name, value in node.items() if name == "limit" or name.startswith("num_")]
    numbers = [value for value in counts if isinstance(value, int) and not isinstance(value, bool)]
    return sum(numbers) or None


def devices() -> list[tuple[str, float, float]]:
    """(name, bytes in all, bytes free) of this machine's memory and of each GPU."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (float(page * os.sysconf(name)) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    if Path("/proc/meminfo").is_file():  # what file caches hold can be had as well
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = float(available[1]) * 1024 if available else free
    found = [("RAM", total, free)]
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=4)
    except (OSError, subprocess.TimeoutExpired):
        return found
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        name, *sizes = (cell.strip() for cell in line.split(","))
        found.append((name, float(sizes[0]) * 2**20, float(sizes[1]) * 2**20))
    return found


def downloads(config: Mapping[str, Any]) -> list[str]:
    """What the network would be asked for, each with the command that brings it."""
    path = (config.get("llm") or {}).get("path")
    out = [f"llm: hf download {path}"] if path and hub_folder(str(path)) is None else []
    encoder, choice = config.get("encoder") or {}, (config.get("choices") or {}).get("encoder")
    hub = choice is not None and "from the hub" in describe(CONF / "encoder" / f"{choice}.yaml")
    if hub and not encoder.get("checkpoint") and encoder.get("pretrained", True):
        name = encoder.get("path") or encoder.get("name")
        if name is None or hub_folder(str(name)) is None:
            out.append(f"encoder: weights of {name or choice} (a run with offline=false, or encoder.checkpoint)")
    return out


def report(config: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Lines, and whether the config can run here as far as can be told."""
    found = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    cache = cache_dir()
    disk = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists()))
    places = devices()
    lines = [f"versions   {versions}", f"machine    {found['machine']['platform']}, {os.cpu_count()} cores"]
    lines += [f"memory     {name}: {text(free)} free of {text(total)}" for name, total, free in places]
    lines.append(f"disk       {cache}: {text(disk.free)} free")
    needed = needs(config)
    lines += [f"needs      {name}: {'about ' if size else ''}{text(size)}" for name, size in needed.items()]
    accelerator = str((config.get("trainer") or {}).get("accelerator"))
    wants_gpu = accelerator in GPU
    gpus = places[1:]
    memory = sum(value or 0 for name, value in needed.items() if name != "feature cache")
    room = max(free for _, _, free in (gpus or places))
    problems = []
    if wants_gpu and not gpus:
        problems.append(f"trainer.accelerator={accelerator}, but no GPU is seen here; write trainer=cpu")
    if memory > room:
        problems.append(f"about {text(memory)} of memory needed, {text(room)} free; {cure(config, room)}")
    if (needed["feature cache"] or 0) > disk.free:
        problems.append(f"the feature cache needs about {text(needed['feature cache'])}; loader.cache_features=false")
    problems += refused(config)
    problems += [f"not here: {line}" for line in downloads(config)]
    problems += [f"not set up: {line}" for line in missing() if uses(config, line.split(":", 1)[0])]
    lines += [f"problem    {line}" for line in problems]
    return [*lines, "ready" if not problems else f"{len(problems)} problem(s)"], not problems


def refused(config: Mapping[str, Any]) -> list[str]:
    """What a training would be refused for before it loads anything: a folder that is not there, a wrong track."""
    try:
        refuse_early("train", config)
    except UserError as error:
        return [str(error)]
    return []


def cure(config: Mapping[str, Any], room: float) -> str:
    """What would make it fit."""
    size, step = llm_size(config.get("llm") or {}), step_of(config)
    budget = fitting_budget(size, step, room) if size is not None and step.compiled else None
    if budget is not None and budget < step.budget:
        return f"llm.activation_budget={budget:g} fits"
    return "a smaller llm, fewer rows in a pass (trainer.accumulate_grad_batches)" + (
        ", llm.train=lora" if step.train == "all" else ""
    )


USES = {"stamps": "Stamp", "scratch": "StampAudio", "smollm2": "smollm2", "focus_vit": "Focus", "aisfx": "AisFx",
        "whisper_tiny": "WhisperTiny"}  # fmt: skip


def uses(config: Mapping[str, Any], asset: str) -> bool:
    """Whether a config names the part that needs an asset; unknown ones count as needed."""
    parts = json.dumps([config.get(name) for name in ("encoder", "llm", "data")], default=str)
    if asset.startswith("lite"):
        return "EfficientNetLite" in parts and f'"variant": {asset[4:]}' in parts
    return USES.get(asset, asset) in parts


def text(size: float | None) -> str:
    if size is None:
        return "not known"
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.0f} MB"


def main(argv: Sequence[str]) -> int:
    from omegaconf import OmegaConf

    if argv and argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    try:
        config: Any = OmegaConf.to_container(compose(argv, "train"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines, ready = report(config)
    print("\n".join(lines))
    return 0 if ready else 1
