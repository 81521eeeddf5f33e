"""The golden lists of tests/golden, made anew: calls with their arguments, metric names, commands, old names."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ima.config.compose import CONF, choices_of
from ima.config.settings import Flags
from ima.core.moved_keys import MOVED_KEYS, current_config, nodes_of_today
from ima.core.moved_names import current_name
from ima.core.signatures import signature
from ima.runs.identity import bare_name, canonical_config

FOLDER = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(FOLDER))

import make_golden  # noqa: E402

LINES: dict[str, Any] = {}
for text in (FOLDER / "calls.jsonl").read_text().splitlines():
    LINES |= json.loads(text)


def spread(value: Any, lines: dict[str, Any]) -> Any:
    """A job with its references replaced by what they stand for, so that a difference is seen where it is."""
    if isinstance(value, str) and value in lines and value.startswith("@"):
        return spread(lines[value], lines)
    if isinstance(value, dict):
        return {key: spread(item, lines) for key, item in value.items()}
    return [spread(item, lines) for item in value] if isinstance(value, list) else value


def same(name: str, config: dict[str, Any]) -> None:
    calls = make_golden.Calls()
    found = json.loads(json.dumps(calls.job(config)))
    assert spread(found, json.loads(json.dumps(calls.nodes))) == spread(LINES[name], LINES)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_golden.ROOT)


@pytest.mark.parametrize("name", choices_of("experiment", CONF))
def test_an_experiment_calls_what_it_did(name: str) -> None:
    same(f"experiment={name}", make_golden.experiment_job(name))


@pytest.mark.parametrize("name", choices_of("sweep", CONF))
def test_the_jobs_of_a_sweep_are_those_of_before_and_its_ends_call_what_they_did(name: str) -> None:
    jobs = make_golden.sweep_jobs(name)
    wanted = [line["hash"] for key, line in LINES.items() if key.startswith(f"sweep={name} ")]
    assert [found for found, _ in jobs] == wanted and len(set(wanted)) == len(wanted) > 1
    for number in (0, len(jobs) - 1):
        same(make_golden.job_name(name, number), jobs[number][1])


BEFORE = json.loads((FOLDER / "trainer_before.json").read_text())


def effective(config: dict[str, Any], group: str) -> Any:
    """What a group says, without defaults and without what only makes a run faster."""
    found = canonical_config({name: value for name, value in config.items() if name == group}).get(group)
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("name", [name for name in BEFORE["jobs"] if name.startswith("experiment=")])
def test_training_has_other_keys_and_the_same_optimizer_schedule_batches_and_steps(name: str) -> None:
    """`trainer_before.json`: the one class that all of training was, of every experiment and job, as it was called."""
    before = BEFORE["settings"][BEFORE["jobs"][name]]
    stages = {stage: {"_target_": "ima.config.settings.Stage", **node} for stage, node in before["stage"]}
    old = {"trainer": {"_target_": "ima.settings.Training", **before["trainer"]}, "stage": stages}
    was, now = current_config(old), make_golden.experiment_job(name.partition("=")[2])
    for stage in was["stage"].values():  # passes of eight samples: twice as many of a batch that is twice as large
        if stage.get("batch_size") == 256:
            stage["accumulate_grad_batches"] = 32
    for group in (*nodes_of_today(), "stage"):
        assert effective(was, group) == effective(now, group), group
    flags = {field.name for field in dataclasses.fields(Flags)} - {"log_every_n_steps"}
    assert {name: was["trainer"].get(name) for name in flags} == {
        name: now["trainer"].get(name, was["trainer"].get(name)) for name in flags
    }


@pytest.mark.parametrize("name", [name for name in BEFORE["jobs"] if name.startswith("sweep=")])
def test_jobs_of_sweeps_train_as_before(name: str) -> None:
    before = BEFORE["settings"][BEFORE["jobs"][name]]["trainer"]
    line = spread(LINES[name], LINES)
    for old, key in MOVED_KEYS.items():
        *path, last = key.split(".")
        node = line.get(path[0])
        if path[0] == "callbacks":
            node = dict(line["callbacks"])[path[1]] if "callbacks" in line else None
        if node is not None and last in node["arguments"] and old != "trainer.micro_batch_size":
            assert node["arguments"][last] == before[old.partition(".")[2]], key


def test_no_experiment_and_no_sweep_is_gone_or_unlisted() -> None:
    listed = {name.split()[0] for name in LINES if not name.startswith("@")}
    there = [(group, name) for group in ("experiment", "sweep") for name in choices_of(group, CONF)]
    assert listed == {f"{group}={name}" for group, name in there}


@pytest.mark.parametrize("target", (FOLDER / "targets.txt").read_text().split())
def test_every_old_target_leads_to_a_class_of_the_same_name(target: str) -> None:
    assert signature(current_name(target)).parameters is not None
    is_ours = target.startswith("ima.")
    assert bare_name(target) == (target.rpartition(".")[2] if is_ours else target)


@pytest.mark.parametrize("name", ["targets.txt", "metrics.json", "commands.txt"])
def test_the_other_lists_are_those_of_today(name: str) -> None:
    """Targets that move go into `moved_names.MOVED`; then `targets.txt` keeps the old names."""
    stored, found = (FOLDER / name).read_text(), make_golden.LISTS[name]()
    if name == "targets.txt":
        stored, found = ("\n".join(sorted(map(current_name, text.split()))) for text in (stored, found))
    assert found == stored
