"""A small conf/ with classes of its own, as a project of a person's own has it, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ima.cli import sweep
from ima.cli.scripts import run_script
from ima.cli.sweep import plan
from ima.config.compose import compose

PARTS = """
import torch_is_never_imported_here
from dataclasses import dataclass, field
from typing import Literal
from cli_parts_more import Reader as Renamed

Size = Literal["small", "large"]

class Base:
    RANGES = {"zoom": (1, 8)}
    def __init__(self, dim: int = 8, dropout: float = 0.0, pretrained: bool = True, size: Size = "small",
                 zoom: float = 1, layers: list[int] | None = None, extra: dict[str, float] | None = None): ...

class Inherits(Base):
    pass

class Named:
    def __init__(self, path: str, num_tokens: int = 4): ...

class Adapter:
    def __init__(self, dim: int, width: int, *, hidden: int = 16): ...

class Skip:
    def __init__(self, keep_ratio: float = 1.0, blocks: list[int] = (), at: "tuple[int, int]" = (0, 1)): ...

@dataclass
class Trainer:
    max_epochs: int = 1
    lr: float = 1e-3
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    tags: list[str] = field(default_factory=list)

def open_ended(name: str = "x", **options): ...
"""
LEAVES = {
    "encoder/base": "# a plain encoder\n_target_: cli_parts.Inherits\ndim: 8",
    "encoder/named": "# one with a path\n_target_: cli_parts.Named\npath: ???",
    "encoder/short": "# forgets what is required\n_target_: cli_parts.Named",
    "encoder/typo": "# names a class that is not there\n_target_: cli_parts.Inherit",
    "encoder/nowhere": "# names a module that is not there\n_target_: cli_prats.Base",
    "encoder/broken": "# not yaml\n_target_: [cli_parts",
    "encoder/bare": "# no target\ndim: 3",
    "encoder/reexported": "# a class that another module defines\n_target_: cli_parts.Renamed",
    "adapter/pool": "# pools\n_target_: cli_parts.Adapter\n_partial_: true",
    "adapter/mlp": "# two layers\n_target_: cli_parts.Adapter\n_partial_: true\nhidden: 32",
    "llm/tiny": "# random\n_target_: cli_parts.open_ended\nanything: 1",
    "task/caption": "# says what is seen\n_target_: cli_parts.Base",
    "data/stamps": "# pictures\n_target_: cli_parts.Base",
    "intervention/none": "# nothing",
    "intervention/skip": "# skips\nskip:\n  _target_: cli_parts.Skip\n  keep_ratio: 0.5",
    "intervention/prune": "# prunes\nprune:\n  _target_: cli_parts.Skip",
    "alignment/none": "# nothing",
    "alignment/default": "# per layer\n_target_: cli_parts.Base",
    "trainer/default": "# AdamW\n_target_: cli_parts.Trainer\nmax_epochs: 2",
    "logger/none": "# files only",
    "experiment/demo": "# @package _global_\n# a delta\ndefaults:\n  - override /adapter: mlp\nseed: 7",
    "experiment/wrong_key": "# @package _global_\n# sets what is not there\ntrainr: {lr: 1}",
    "experiment/wrong_group": "# @package _global_\n# no such group\ndefaults:\n  - override /adaptr: mlp",
    "experiment/lost": "# @package _global_\n# points to nothing\nname: ${encodr.dim}",
    "experiment/unmarked": "# forgets the first line\nseed: 7",
    "experiment/itself": "# @package _global_\n# endless\ndefaults: [itself]",
    "experiment/hinted": "# @package _global_\n# a package\ndefaults:\n  - override /adapter@here: mlp",
    "sweep/seeds": "# @package _global_\n# three seeds\ndefaults: [override /experiment: demo]\n"
    "hydra: {sweeper: {params: {seed: [0, 1, 2]}}}",
    "multirun/default": "# @package _global_\n# ours\n"
    "defaults: [override /hydra/launcher: ima, override /hydra/sweeper: ima]",
}
TRAIN = """
defaults: [_self_, multirun: default, encoder: base, adapter: pool, llm: tiny, task: caption, data: stamps,
  {intervention: [none]},
  alignment: default, trainer: default, logger: none, experiment: null, sweep: null]
seed: 0
hydra:
  run: {dir: "${output_dir}/${ima.name:}"}
  sweep: {dir: "${output_dir}/${ima.sweep:}", subdir: "${ima.hash:}"}
"""


@contextmanager
def own_conf(folder: Path) -> Iterator[Path]:
    """Write it below `folder`, where the scripts then start and find it."""
    (folder / "cli_parts.py").write_text(PARTS)
    (folder / "cli_parts_more.py").write_text("class Reader:\n    def __init__(self, depth: int): ...\n")
    for name, text in LEAVES.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "conf" / "train.yaml").write_text(TRAIN)
    evaluate = "defaults: [_self_, multirun: default, data: null, {intervention: null}, alignment: null, trainer: null,"
    evaluate += " sweep: null]\n"
    (folder / "conf" / "evaluate.yaml").write_text(evaluate + "checkpoint: ???\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(compose, "__defaults__", ("train", folder / "conf"))
        patch.setattr(run_script, "__defaults__", (None, folder / "conf", None))
        for function in (plan, sweep.translated, sweep.main):
            patch.setattr(function, "__defaults__", (folder / "conf",))
        patch.chdir(folder)
        yield folder / "conf"
