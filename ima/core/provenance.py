"""What a result depends on besides its config: versions, code state, machine. Never fails a run."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "ima",
    "torch",
    "torchvision",
    "transformers",
    "lightning",
    "hydra-core",
    "omegaconf",
    "timm",
    "numpy",
    "wandb",
)


def provenance() -> dict[str, Any]:
    """{versions, git}; git is {"commit": None} outside a checkout."""
    import importlib.metadata  # a part of each start that refusals and --help do not need

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    state = {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None}
    return {"versions": versions, "git": state, "machine": {"platform": platform.platform(), "cpu": platform.machine()}}
