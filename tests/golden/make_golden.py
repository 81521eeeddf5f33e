"""Golden lists of what the project does, made from the code and compared with what is committed here.

`calls.jsonl`: every distinct class with the arguments it is called with (defaults filled in), a line each, then every
experiment and every job of every sweep as references to these lines. `targets.txt`: the dotted names of all classes.
`metrics.json`: the names of all metrics of the artefacts. `commands.txt`: every command of the documentation. Nothing
in the first depends on where a class lives. Run from the root: `python tests/golden/make_golden.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from ima.cli.sweep import plan
from ima.config.compose import CONF, choices_of, compose
from ima.core.types import Sample
from ima.runs.identity import STACKED, arguments_of, bare_name, canonical, config_hash, spelled
from ima.tasks.base import Prediction

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
RUN = "tests/artefacts/run"
NOT_CALLED = (
    "choices",
    "name",
    "output_dir",
    "resume",
    "overwrite",
    "logger",
    "trust",
    "objective",
    "rerun",
    "offline",
)
PLACES = {"published_": ["data.folder=somewhere"], "mt_llava15": ["mixture.llava_558k.data.folder=somewhere",
          "mixture.llava_665k.data.folder=somewhere"]}  # fmt: skip

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(
    r"^(?:\$ )?((?:\w+=\S+ )*(?:python|make|torchrun|srun|sbatch|pip|git|hf|ssh|\.venv)\b.*)", re.MULTILINE
)


class Calls:
    """Nodes by the hash of what they say; equal nodes are one."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def of(self, value: Any) -> Any:
        """The value with each node inside replaced by a reference."""
        if isinstance(value, Mapping) and "_target_" in value:
            own = str(value["_target_"]).startswith("ima.")  # defaults of other packages are theirs
            given = {str(name): item for name, item in value.items() if not str(name).startswith("_")}
            arguments = {name: self.of(item) for name, item in (arguments_of(value) if own else given).items()}
            node = {"class": bare_name(str(value["_target_"])), "arguments": arguments}
            key = "@" + hashlib.sha256(spelled(node).encode()).hexdigest()[:8]
            self.nodes[key] = node
            return key
        if isinstance(value, Mapping):
            return {str(name): self.of(item) for name, item in value.items()}
        return [self.of(item) for item in value] if isinstance(value, list | tuple) else canonical(value)

    def job(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a composed config calls; choices that stack in their order; its identity."""
        out: dict[str, Any] = {"hash": config_hash(config)}
        for name, value in config.items():
            if name not in NOT_CALLED:
                found = self.of(value)
                out[name] = [list(pair) for pair in found.items()] if name in STACKED else found
        return out


def given(experiment: str) -> list[str]:
    """Values for the keys that an experiment leaves to the user."""
    return next((values for start, values in PLACES.items() if experiment.startswith(start)), [])


def experiment_job(name: str) -> dict[str, Any]:
    return plain(compose([f"experiment={name}", *given(name)]))


def sweep_jobs(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(hash, composed config) of every job, those that follow trainings last."""
    text = (CONF / "sweep" / f"{name}.yaml").read_text()
    evaluates = "script: evaluate" in text and "lmm" not in text
    _, jobs, after = plan([f"sweep={name}", *([f"checkpoint={RUN}"] if evaluates else [])])
    found = [*jobs, *(job for job, _ in after)]
    assert [job.reason for job in found if job.state == "failed"] == []
    return [(job.hash, job.config) for job in found]


def job_name(sweep: str, number: int) -> str:
    return f"sweep={sweep} {number:03d}"


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, composed config) of every experiment and every job of every sweep."""
    for name in choices_of("experiment", CONF):
        yield f"experiment={name}", experiment_job(name)
    for name in choices_of("sweep", CONF):
        for number, (_, config) in enumerate(sweep_jobs(name)):
            yield job_name(name, number), config


def plain(config: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(config)
    return {str(key): value for key, value in found.items()}


def calls() -> str:
    """Nodes first, then jobs, each a line of JSON."""
    found = Calls()
    named = {name: found.job(config) for name, config in jobs()}
    lines = [spelled({key: node}) for key, node in sorted(found.nodes.items())]
    return "\n".join([*lines, *(spelled({name: job}) for name, job in named.items())]) + "\n"


def targets() -> str:
    text = "\n".join(path.read_text() for path in sorted(CONF.glob("*/*.yaml")))
    return "\n".join(sorted(set(re.findall(r"_target_: ([\w.]+)", text)))) + "\n"


def metrics() -> str:
    """Names of the metrics of each artefact, and of what each task's score says of two answered questions."""
    folders = sorted((ROOT / "tests/artefacts").rglob("result.json"))
    names = {str(path.parent.relative_to(ROOT)): sorted(json.loads(path.read_text())["metrics"]) for path in folders}
    return (
        json.dumps(names | {f"task={name}": task_metrics(name) for name in choices_of("task", CONF)}, indent=1) + "\n"
    )


def task_metrics(choice: str) -> list[str]:
    task = instantiate(OmegaConf.to_container(compose([f"task={choice}"]))["task"])  # type: ignore[call-overload,index]
    facts = {"type": "kind", "choices": ("yes", "no"), "answer": 0}
    samples = [Sample(f"s{n}", "test", "test", "image", ("yes",), "Is it there?", facts=facts) for n in range(2)]
    found = task.score([Prediction(sample, "yes") for sample in samples], [sample.references for sample in samples])
    return [metric.name for metric in found]


def commands() -> str:
    """Lines of fenced blocks that start a program, as they stand."""
    out = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for language, block in BLOCK.findall(path.read_text()):
            if language in ("", "bash", "sh", "console"):
                starts = PROGRAM.findall(block.replace("\\\n", " "))
                out += [f"{path.relative_to(ROOT)}: {' '.join(line.split())}" for line in starts]
    return "\n".join(out) + "\n"


LISTS = {"calls.jsonl": calls, "targets.txt": targets, "metrics.json": metrics, "commands.txt": commands}

if __name__ == "__main__":
    for name, make in LISTS.items():
        (FOLDER / name).write_text(make())
