"""Multiruns under launchers and sweepers of others and under ours: killed without warning, given again, and with a job
that fails. `make test-plugins` installs what they need."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
from multiruns import TINY, Place, numbers

pytestmark = [
    pytest.mark.plugins,
    pytest.mark.skipif(
        find_spec("optuna") is None, reason="Hydra's plugins are not installed here: make test-plugins installs them"
    ),
]
LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ima": ["hydra.launcher.num_parallel=2"],
}


@dataclass(frozen=True)
class Multirun:
    """What a person types, and how many jobs it makes."""

    script: str
    words: tuple[str, ...]
    num_jobs: int


TRAININGS = Multirun("train", (*TINY, "encoder=a,b,c", "seed=0,1"), 6)
SKIPS = ("intervention=skip_block", "intervention.skip_block.start=0")  # the tiny LLM has three blocks
MULTIRUNS = {
    "train": TRAININGS,
    "skip": Multirun("evaluate", (*SKIPS, "intervention.skip_block.ratio=0,.25,.5,1"), 4),
    "prune": Multirun(
        "evaluate",
        ("intervention=prune", "intervention.prune.method=wanda,magnitude,random", "intervention.prune.ratio=.3,.5"),
        6,
    ),
}
SEARCH = Multirun(
    "train",
    (*TINY, "encoder=a", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=1",
     "hydra.sweeper.sampler.seed=0", "optimizer.lr=tag(log,interval(1e-4,1e-1))"),
    8,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("multiruns"))


@pytest.fixture(scope="module")
def trained(place: Place) -> str:
    """The checkpoint that is evaluated."""
    assert place.run("train", "trained", [*TINY, "encoder=a"]) == 0, place.log("trained")
    return f"checkpoint={place.folder / 'trained'}"


@pytest.fixture(scope="module")
def undisturbed(place: Place, trained: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Numbers of each job of a multirun that was run once to its end, in one process."""
    multirun, kind = MULTIRUNS[request.param], request.param
    words = [*words_of(multirun, trained), *LAUNCHERS["basic"]]
    assert place.run(multirun.script, kind, words) == 0, place.log(kind)
    found = place.results(kind)
    assert len(found) == multirun.num_jobs
    return numbers(found)


def words_of(multirun: Multirun, trained: str) -> list[str]:
    return ["--multirun", *([trained] if multirun.script == "evaluate" else []), *multirun.words]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("kind", "undisturbed"), [(kind, kind) for kind in MULTIRUNS], ids=list(MULTIRUNS), indirect=["undisturbed"]
)
def test_a_multirun_that_is_killed_and_given_again_ends_as_one_that_was_not(
    launcher: str, kind: str, place: Place, trained: str, undisturbed: dict[str, Any]
) -> None:
    multirun, name = MULTIRUNS[kind], f"{kind}-{launcher}"
    words = [*words_of(multirun, trained), *LAUNCHERS[launcher]]
    done, code = place.killed_and_given_again(multirun.script, name, words, multirun.num_jobs // 3)
    assert done < multirun.num_jobs, "it was over before it was killed"
    assert code == 0, place.log(name)
    assert {row["status"] for row in place.table(name)} == {"ok"}
    assert len(place.table(name)) == multirun.num_jobs == len({row["folder"] for row in place.table(name)})
    assert numbers(place.results(name)) == undisturbed


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_fails_is_a_row_with_its_reason_and_exit_code_1(launcher: str, place: Place, trained: str) -> None:
    """The block 4 of three is refused by the model, in the job itself; the other job goes on."""
    name = f"failed-{launcher}"
    words = ["--multirun", trained, "intervention=skip_block", "intervention.skip_block.start=4,0"]
    assert place.run("evaluate", name, [*words, *LAUNCHERS[launcher]]) == 1, place.log(name)
    rows = {row["config.intervention.skip_block.start"]: row for row in place.table(name)}
    assert {start: row["status"] for start, row in rows.items()} == {"0": "ok", "4": "failed"}
    assert rows["4"]["reason"].startswith("UserError: intervention.skip_block.start: blocks start=4"), rows["4"]
    last = [line for line in place.log(name).splitlines() if line.strip()][-1]
    assert last.startswith("error: intervention.skip_block.start=4: ") and last.count(rows["4"]["reason"]) == 1
    assert "checkpoint=" not in last


def test_a_search_that_is_killed_and_given_again_tries_the_same_and_finds_the_same(place: Place) -> None:
    """The whole one in one process, the other with our launcher."""
    name, whole = "search", "search-whole"
    assert place.run("train", whole, ["--multirun", *SEARCH.words, *LAUNCHERS["basic"]]) == 0, place.log(whole)
    words = ["--multirun", *SEARCH.words, *LAUNCHERS["ima"]]
    done, code = place.killed_and_given_again("train", name, words, SEARCH.num_jobs // 3)
    assert done < SEARCH.num_jobs and code == 0, place.log(name)
    results = place.results(name)
    assert numbers(results) == numbers(place.results(whole))
    assert len(results) == SEARCH.num_jobs == len(place.table(name))
    best = min(results.values(), key=lambda each: each["metrics"]["val/loss"])
    told = (place.folder / name / "optimization_results.yaml").read_text()
    assert f"best_value: {best['metrics']['val/loss']}" in told
    assert f"optimizer.lr: {best['config']['optimizer']['lr']}" in told


def test_a_search_with_a_trial_that_fails_goes_on_and_exits_with_1(place: Place, trained: str) -> None:
    name = "search-failed"
    words = ["--multirun", trained, "intervention=skip_block", "intervention.skip_block.start=4,0",
             "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_trials=5",
             "hydra.sweeper.n_jobs=1", *LAUNCHERS["basic"]]  # fmt: skip
    assert place.run("evaluate", name, words) == 1, place.log(name)
    assert sorted(row["status"] for row in place.table(name)) == ["failed", "ok"]
