"""Packages that only some work needs, and the extra of this package that brings them: `pip install ima[media]`."""

from __future__ import annotations

# Module -> extra of pyproject.toml.
EXTRA_OF = {
    "lightning": "train", "peft": "train", "rich": "train",
    "matplotlib": "report", "pandas": "report", "pyarrow": "report", "scipy": "report", "sklearn": "report",
    "wandb": "wandb",
    "av": "media", "datasets": "media", "soundfile": "media", "timm": "media", "torchaudio": "media",
    "torchvision": "media",
    "resvg_py": "svg", "submitit": "slurm", "wandb_workspaces": "dashboards",
}  # fmt: skip


def how_to_install(module: str) -> str:
    """The line about a module of the table that is not there."""
    return f"the package {module} is not installed; pip install 'ima[{EXTRA_OF[module]}]' brings it"


def missing_extra(error: BaseException | None) -> str:
    """The line about the missing package behind an error, perhaps some causes below it; "" where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        module = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if module in EXTRA_OF:
            return how_to_install(module)
        error = error.__cause__ or error.__context__
    return ""
