"""The roots of train.py and evaluate.py as typed dataclasses, and what must hold between keys.

The fields are the keys that a person may write; the first words of a help line are its metadata. Groups are fields
too: a node with a `_target_`, or a mapping of named nodes where several stack (`intervention`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ima.core.errors import UserError

Node = dict[str, Any] | None
Nodes = dict[str, Any]
Offline = Literal["auto", True, False]

OFFLINE_HELP = "whether the Hugging Face hub is never asked; auto: asked for what is not here, where it can be reached"
TRUST_HELP = "modules or classes of yours that the config of a run folder may name ([my.module])"
# What a whole multimodal model brings along; the rest of INHERITED is as train.py has it.
OF_LMM = ("encoder", "adapter", "llm", "mixture", "stage")
# Parameters that `run` fills in, so that a dimension is never written twice; nobody else may.
COMPLETED: dict[str, tuple[str, ...]] = {
    "adapter": ("dim", "width"),
    "logger": ("folder", "config"),
    "optimizer": ("params",),
    "scheduler": ("optimizer",),
    "trainer": ("callbacks", "logger", "use_distributed_sampler", "default_root_dir", "barebones"),
}


def field(help: str, default: Any) -> Any:
    """A key with its default and its line of help."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass
class TrainConfig:
    encoder: Node = field("what sees or hears; frozen", default=None)
    adapter: Node = field("maps encoder features into the LLM; the part that is trained", default=None)
    llm: Node = field("the frozen language model", default=None)
    task: Node = field("what is asked and how an answer is scored", default=None)
    data: Node = field("where samples come from", default=None)
    mixture: Nodes = dataclasses.field(
        default_factory=dict, metadata={"help": "several tasks and their data in place of one; several stack"}
    )
    stage: Nodes = dataclasses.field(
        default_factory=dict, metadata={"help": "trainings one after the other, each from the adapter of the last"}
    )
    intervention: Nodes = dataclasses.field(default_factory=dict, metadata={"help": "skips and masks; several stack"})
    alignment: Node = field("what is measured inside the LLM", default=None)
    loader: Node = field("batches: their size and how they are made", default=None)
    optimizer: Node = field("the optimizer and its rates", default=None)
    scheduler: Node = field("how the rates change from step to step", default=None)
    trainer: Node = field("flags of lightning.Trainer: epochs, steps, precision, devices", default=None)
    callbacks: Nodes = dataclasses.field(
        default_factory=dict, metadata={"help": "what else happens while training; several stack"}
    )
    evaluation: Node = field("what is scored and when", default=None)
    logger: Node = field("the mirror of the run's files", default=None)
    loggers: dict[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"help": "more of them beside it, by name: logger=[wandb,csv]"}
    )
    name: str | None = field(
        "folder of the run under output_dir; default: the experiment or train-<date>-<hash>", default=None
    )
    output_dir: str = field("where run folders are made", default="outputs")
    init: str | None = field("run folder, adapter or hub:user/name that training starts from", default=None)
    seed: int = field("of initial weights, order and sampling", default=0)
    offline: Offline = field(OFFLINE_HELP, default="auto")
    resume: Literal["auto", "never", "must"] = field("go on from the run folder's last checkpoint", default="auto")
    overwrite: bool = field("start anew in a folder that holds another or a finished run", default=False)
    rerun: str | None = field("run folder whose run is repeated, from its result.json", default=None)
    objective: str = field("metric whose value a sweeper gets (hydra/sweeper=optuna)", default="val/loss")
    trust: list[str] = dataclasses.field(default_factory=list, metadata={"help": TRUST_HELP})


@dataclasses.dataclass
class EvaluateConfig:
    checkpoint: str | None = field("run folder, checkpoint or hub:user/name to evaluate", default="???")
    lmm: Node = field("a whole multimodal model that was trained elsewhere, in place of a run's", default=None)
    encoder: Node = field("from the run", default=None)
    adapter: Node = field("from the run", default=None)
    llm: Node = field("from the run", default=None)
    task: Node = field("from the run, or a choice", default=None)
    data: Node = field("from the run, or a choice", default=None)
    mixture: Nodes = dataclasses.field(default_factory=dict, metadata={"help": "from the run, or choices"})
    stage: Nodes = dataclasses.field(default_factory=dict, metadata={"help": "from the run"})
    intervention: Nodes = dataclasses.field(default_factory=dict, metadata={"help": "from the run, or choices"})
    alignment: Node = field("from the run, or a choice", default=None)
    loader: Node = field("from the run, or a choice: batches", default=None)
    trainer: Node = field("from the run, or a choice: device", default=None)
    evaluation: Node = field("from the run, or a choice: what is scored", default=None)
    logger: Node = field("the mirror of the run's files", default=None)
    name: str | None = field("folder of the evaluation under output_dir; default: <run>/evaluate-<hash>", default=None)
    output_dir: str = field("where folders are made", default="outputs")
    seed: int | None = field("from the run, or a number", default=None)
    offline: Offline = field(OFFLINE_HELP, default="auto")
    overwrite: bool = field("evaluate again where a finished evaluation lies", default=False)
    objective: str = field("metric whose value a sweeper gets (hydra/sweeper=optuna)", default="val/loss")
    trust: list[str] = dataclasses.field(default_factory=list, metadata={"help": TRUST_HELP})


ROOTS: dict[str, type] = {"train": TrainConfig, "evaluate": EvaluateConfig}


def groups_of(root: str) -> list[str]:
    """The keys that are nodes, not plain values."""
    return [field.name for field in dataclasses.fields(ROOTS[root]) if str(field.type) in ("Node", "Nodes")]


BY_NAME = ("loggers",)  # name -> node, of a person's own choosing
PLAIN = sorted(
    {key.name for kind in ROOTS.values() for key in dataclasses.fields(kind)}.difference(
        BY_NAME, *map(groups_of, ROOTS)
    )
)


def check_together(config: Mapping[str, Any]) -> None:
    """What must hold between keys; each message names both. Values by themselves are checked elsewhere."""
    for key in PLAIN:
        if isinstance(config.get(key), Mapping):  # by ${...}; what is typed there is refused before
            raise UserError(f"{key}: {{{', '.join(map(str, config[key]))}}} does not fit; allowed: a single value")
    name = config.get("name")
    if name is not None and (not name or name.startswith((".", "-")) or Path(name).is_absolute() or ".." in name):
        raise UserError(f"name: {name!r} is no folder name under output_dir; allowed: letters, digits, '-', '_', '/'")
    check_mixture(config.get("mixture") or {})


ENTRY_NAME = re.compile(r"\w[\w-]*")
MAIN = "main"  # the channel of the run's own encoder and adapter


def check_mixture(mixture: Mapping[str, Any]) -> None:
    """Names of entries are folders, keys and parts of the names of metrics; some entry has to be trained on."""
    for name, node in mixture.items():
        if not ENTRY_NAME.fullmatch(name):
            raise UserError(f"mixture: {name!r} is no name of an entry; allowed: letters, digits, '-', '_'")
        if name == MAIN and isinstance(node, Mapping) and (node.get("encoder") or node.get("adapter")):
            raise UserError(f"mixture.{MAIN}: the run's own encoder and adapter are called {MAIN}; rename the entry")
    if mixture and all(isinstance(node, Mapping) and node.get("weight") == 0 for node in mixture.values()):
        raise UserError(f"mixture.{next(iter(mixture))}.weight: all weights are 0; give an entry one above 0")
