"""The command line: what is taken, what is refused, and that a refusal is one short line before torch is there.

The config used here is a small one of its own (same groups, made-up classes), so that a change of the real leaves
does not change what these tests say. The real conf/ is checked in test_conf.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_conf import LEAVES, own_conf

from ima.cli import sweep
from ima.cli.scripts import run_script
from ima.cli.sweep import plan
from ima.config.compose import compose
from ima.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_conf(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


def test_null_is_no_experiment_as_the_root_file_says_it() -> None:
    assert compose(["experiment=null", "name=r"]) == compose(["name=r"])
    assert compose(["experiment=demo", "experiment=null"]).seed == 0


def test_values_arrive_as_the_types_that_were_asked_for() -> None:
    config = compose(["trainer.lr=1", "trainer.tags=[1,b]", "encoder.layers=[1,2]", "name=12", "encoder.extra={a:1}"])
    assert config.trainer.lr == 1.0 and isinstance(config.trainer.lr, float)
    assert list(config.trainer.tags) == ["1", "b"]
    assert config.name == "12"
    assert config.encoder.extra == {"a": 1.0}


def test_keys_need_not_be_written_in_the_yaml_to_be_set() -> None:
    assert compose(["encoder.size=large"]).encoder.size == "large"
    assert compose(["++encoder.size=large"]).encoder.size == "large"


def test_names_are_free_where_the_target_takes_any() -> None:
    assert compose(["llm.whatever=3"]).llm.whatever == 3


def test_the_command_line_wins_over_the_experiment_and_that_over_the_defaults() -> None:
    plain, demo = compose([]), compose(["experiment=demo"])
    assert (plain.seed, plain.adapter.get("hidden"), demo.seed, demo.adapter.hidden) == (0, None, 7, 32)
    both = compose(["seed=3", "experiment=demo", "adapter=pool"])
    assert (both.seed, both.adapter.get("hidden")) == (3, None)
    assert compose(["seed=1", "seed=2", "encoder=named", "encoder=base"]).seed == 2


def test_interventions_stack_in_the_order_of_the_list() -> None:
    config = compose(["intervention=[prune,skip]", "intervention.skip.keep_ratio=0.25"])
    assert list(config.intervention) == ["prune", "skip"]
    assert config.intervention.skip.keep_ratio == 0.25
    assert list(compose(["intervention=skip"]).intervention) == ["skip"]
    assert compose([]).intervention == {}


def test_choices_are_kept_with_the_config() -> None:
    config = compose(["adapter=mlp", "intervention=[skip]"])
    assert config.choices.adapter == "mlp" and config.choices.encoder == "base"
    assert list(config.choices.intervention) == ["skip"]


def test_interpolations_follow_the_command_line() -> None:
    assert compose(["encoder.dim=${seed}", "seed=5"]).encoder.dim == 5


def test_names_tell_runs_apart_that_differ_and_only_those() -> None:
    assert compose(["experiment=demo"]).name == "demo"
    assert compose(["experiment=demo", "output_dir=elsewhere"]).name == "demo"
    other = compose(["experiment=demo", "seed=8"]).name
    assert other.startswith("demo-") and other == compose(["experiment=demo", "seed=8"]).name
    assert compose([]).name.startswith("train-") and compose([]).name != compose(["seed=1"]).name
    assert compose(["name=mine"]).name == "mine"


def test_a_grid_becomes_checked_jobs() -> None:
    name, jobs, _ = plan(["adapter=pool,mlp", "seed=range(0,2)", "trainer.lr=0.1", "num_parallel=2"])
    assert [job.overrides for job in jobs] == [
        ["trainer.lr=0.1", f"adapter={adapter}", f"seed={seed}"] for adapter in ("pool", "mlp") for seed in (0, 1)
    ]
    assert len({job.hash for job in jobs}) == 4
    assert name.startswith("sweep-")


def test_a_sweep_file_is_a_grid_that_the_command_line_extends() -> None:
    name, jobs, _ = plan(["sweep=seeds", "trainer.max_epochs=1"])
    assert name.startswith("seeds-") and plan(["sweep=seeds"])[0] == "seeds"
    assert [job.overrides for job in jobs] == [
        ["sweep=seeds", "trainer.max_epochs=1", f"seed={seed}"] for seed in range(3)
    ]
    assert {job.config["choices"]["experiment"] for job in jobs} == {"demo"}
    assert len(plan(["sweep=seeds", "adapter=pool,mlp"])[1]) == 6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("encoder=bsea,bsae", "base"),
        ("encoder=base,bsae keep_going=false", "base"),
        ("trainer.lrr=1,2", "lr"),
        ("num_paralel=2 seed=0,1", "num_parallel"),
        ("seed=3", "nothing to vary"),
        ("sweep=sedes", "seeds"),
        ("seed=interval(0,1)", "no end"),
        ("num_parallel=0 seed=0,1", ">= 1"),
        ("params.seed=3", "list"),
        ("trainer.lrr=3 seed=0,1", "lr"),
        ("-m seed=0,x keep_going=false", "whole number"),
    ],
)
def test_a_mistake_in_a_grid_is_refused_before_any_job_runs(
    arguments: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err, err


def test_an_evaluation_takes_from_the_run_what_it_does_not_choose(tmp_path: Path) -> None:
    import json

    from omegaconf import OmegaConf

    trained = OmegaConf.to_container(compose(["encoder.dim=32", "adapter=mlp", "seed=9"]))
    (tmp_path / "result.json").write_text(json.dumps({"config": trained}))
    config = compose([f"checkpoint={tmp_path}", "intervention=skip", "trainer.lr=2", "encoder.size=large"], "evaluate")
    assert (config.encoder.dim, config.seed, config.adapter.hidden) == (32, 9, 32)
    assert list(config.intervention) == ["skip"] and config.trainer.lr == 2.0 and config.encoder.size == "large"
    assert config.choices.adapter == "mlp" and config.alignment["_target_"] == "cli_parts.Base"
    bare = compose([f"checkpoint={tmp_path}", "alignment=none", "intervention=none"], "evaluate")
    assert bare.alignment is None and bare.intervention == {}
    with pytest.raises(UserError, match=r"encoder: not a choice of evaluate\.py.*encoder\.<key>=value"):
        compose([f"checkpoint={tmp_path}", "encoder=vit"], "evaluate")


@pytest.mark.parametrize(
    "arguments",
    [[], ["checkpoint=nowhere"], ["checkpoint=."], ["checkpoint=nowhere", "seeed=3"], ["-m", "checkpoint=a,b"]],
)
def test_an_evaluation_without_a_run_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("evaluate", arguments, entry=lambda config: pytest.fail("was run")) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_help_lists_every_choice_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("train", ["--help"]) == 0
    text = capsys.readouterr().out
    for name, leaf in LEAVES.items():
        if not name.startswith("multirun/"):
            line = next(line for line in leaf.splitlines() if line.startswith("#") and "@package" not in line)
            assert any(name.split("/")[1] in row and line[2:] in row for row in text.splitlines()), name
    assert "resume" in text


def test_cfg_prints_the_resolved_config_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from omegaconf import OmegaConf

    assert run_script("train", ["--cfg", "job", "seed=4", "encoder.dim=${seed}"], entry=pytest.fail) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown.encoder.dim == 4
    assert (shown.encoder.zoom, shown.trainer.tags, shown.objective) == (1, [], "val/loss"), (
        "every key, with its default"
    )
    assert run_script("train", ["seed=4", "--cfg"], entry=pytest.fail) == 0 and "seed: 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("data.folder: 'x' is\nnot there"), 2, "error: data.folder: 'x' is not there\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x"), 2, "error: /x: No space left"),
    ],
)
def test_errors_of_a_run_end_at_the_border(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Any) -> None:
        raise error

    assert run_script("train", [], entry=fail) == code
    assert capsys.readouterr().err.startswith(said)


def test_errors_of_the_program_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_script("train", [], entry=lambda config: 1 // 0)


def test_a_run_gets_plain_values_and_its_folder_and_leaves_hydras_files_there(tmp_path: Path) -> None:
    seen: list[Any] = []
    place = tmp_path / "own place"
    assert run_script("train", ["seed=4", f"output_dir='{tmp_path}'", "name=a/b"], entry=seen.append) == 0
    assert run_script("train", ["seed=5", f"hydra.run.dir='{place}'"], entry=seen.append) == 0
    assert [type(config) for config in seen] == [dict, dict] and seen[0]["seed"] == 4
    assert [Path(config["output_dir"], config["name"]) for config in seen] == [tmp_path / "a" / "b", place]
    for folder in (tmp_path / "a" / "b", place):
        assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
        assert "zoom: 1" in (folder / ".hydra" / "config.yaml").read_text()


def test_defaults_of_the_environment_yield_to_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")  # so that it is put back
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert run_script("train", ["--help"]) == 0
    assert os.environ["HF_HUB_OFFLINE"] == "0" and "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert run_script("train", ["--help"]) == 0
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0 and "OMP_WAIT_POLICY" not in os.environ


def test_dispatch_composes_before_anything_is_imported() -> None:
    code = """
        import sys
        from ima.cli.scripts import run_script
        code = run_script("train", sys.argv[1:])
        heavy = [name for name in ("torch", "transformers", "lightning", "timm", "wandb") if name in sys.modules]
        sys.exit(f"imported: {heavy}" if heavy else code)
    """
    for arguments, wanted in ((["encodr=x"], 2), (["trainer.lrr=1"], 2), (["--help"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == wanted, done.stderr
        assert "Traceback" not in done.stderr and "imported" not in done.stderr


@pytest.mark.parametrize(
    ("script", "argument"), [("train", "encodr=x"), ("evaluate", "checkpoint=x"), ("sweep", "x=1")]
)
def test_the_scripts_refuse_in_one_line(script: str, argument: str) -> None:
    done = subprocess.run([sys.executable, f"{script}.py", argument], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_sweeps_help_lists_the_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--help"]) == 0
    assert "encoders" in capsys.readouterr().out
