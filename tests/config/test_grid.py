"""Grids: what is varied, how the command line narrows and widens it, what becomes of points that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ima.cli.sweep import plan
from ima.core.errors import UserError
from ima.sweep.job import Job

POINTS = "points=[['adapter=pool','adapter.hidden=8'],['adapter=pool','adapter.hidden=16'],['adapter=mlp']]"


def jobs_of(*argv: str) -> list[Job]:
    _, jobs, after = plan(["llm=tiny", *argv])
    return [*jobs, *(job for job, _ in after)]


def varied(*argv: str) -> list[dict[str, str]]:
    return [job.varied for job in jobs_of(*argv)]


def test_points_are_overrides_that_go_together_times_the_axes() -> None:
    assert varied(POINTS, "seed=0,1") == [
        {**point, "seed": seed}
        for point in ({"adapter": "pool", "adapter.hidden": "8"}, {"adapter": "pool", "adapter.hidden": "16"},
                      {"adapter": "mlp"})
        for seed in ("0", "1")
    ]  # fmt: skip


def test_a_value_of_the_command_line_narrows_the_points_to_those_that_have_it() -> None:
    assert varied(POINTS, "adapter=pool") == [
        {"adapter": "pool", "adapter.hidden": "8"},
        {"adapter": "pool", "adapter.hidden": "16"},
    ]


def test_a_value_that_no_point_has_widens_them() -> None:
    assert varied(POINTS, "adapter=mlp,linear") == [{"adapter": "mlp"}, {"adapter": "linear"}]


def test_a_single_value_takes_the_place_of_an_axis_of_the_file() -> None:
    assert [job.varied for job in plan(["sweep=seeds", "seed=7"])[1]] == [{"seed": "7"}]


def test_a_point_whose_config_is_refused_is_a_job_that_has_failed_already() -> None:
    good, bad = jobs_of("adapter=pool,nosuch")
    assert good.state == "waiting" and bad.state == "failed" and "nosuch" in bad.reason and good.hash != bad.hash


def test_where_every_point_is_refused_or_the_first_failure_stops_all_the_sweep_is() -> None:
    with pytest.raises(UserError, match="nosuch"):
        jobs_of("adapter=nosuch,neither")
    with pytest.raises(UserError, match="nosuch"):
        jobs_of("adapter=pool,nosuch", "keep_going=false")


def test_evaluations_follow_the_trainings_that_they_are_of() -> None:
    given = ["seed=0,1", "trainer.max_epochs=3", "name=s", "output_dir=out",
             "evaluations=[{of:'seed=1',epochs:[1,3,9],overrides:['alignment=none']}]"]  # fmt: skip
    jobs = jobs_of(*given)
    trainings, measured = jobs[:2], jobs[2:]
    assert [job.script for job in jobs] == ["train"] * 2 + ["evaluate"] * 2
    assert [job.varied for job in measured] == [{"seed": "1", "epoch": "1"}, {"seed": "1", "epoch": "3"}]
    checkpoint = f"checkpoint=out/s/{trainings[1].hash}/checkpoints/epoch-001.safetensors"
    assert measured[0].overrides == [checkpoint, "alignment=none"]
    assert len({job.hash for job in jobs}) == 4


def test_an_evaluation_with_a_misspelt_key_is_refused() -> None:
    with pytest.raises(UserError, match="evaluations.0.*epochs"):
        jobs_of("seed=0,1", "evaluations=[{epoch:[1]}]")
    with pytest.raises(UserError, match="evaluations: they follow trainings"):
        jobs_of("seed=0,1", "evaluations=[{epochs:[1]}]", "script=evaluate", "checkpoint=x")


def test_composing_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand jobs take more than a minute."""
    seen: list[int] = []

    @contextmanager
    def recorded(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
        seen.append(-total)
        yield seen.append

    monkeypatch.setattr("ima.sweep.grid.progress", recorded)
    assert len(jobs_of("seed=0,1,2")) == 3 and seen == [-3, 1, 1, 1]
