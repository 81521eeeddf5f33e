"""Hydra's command line over the real conf/: flags, grammar, a person's own config tree, multiruns. Each line has its
outcome: what Hydra's documentation says, or a refusal in one line (docs/hydra.md has the reasons)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ima.cli import sweep
from ima.cli.scripts import run_script
from ima.config.compose import CONF, compose
from ima.core.errors import UserError
from ima.core.files import write_json

OWN = {
    "encoder/mine.yaml": "# mine\n_target_: own_parts.Mine\ndepth: 3\n",
    "experiment/own.yaml": "# @package _global_\n# mine\ndefaults:\n  - override /encoder: mine\nseed: 5\n"
    "hydra:\n  run: {dir: own_place}\n  job: {env_set: {OWN_VARIABLE: seen}}\n",
    "experiment/own_mode.yaml": "# @package _global_\n# mine\nhydra: {mode: MULTIRUN}\n",
    "sweep/own.yaml": "# @package _global_\n# mine\nhydra: {sweeper: {params: {seed: [1, 2]}}}\n",
}
PARTS = """
class Mine:
    def __init__(self, depth: int = 2, width: int = 7, names: list[str] | None = None): ...
"""
# words -> exit code, what is said (on the terminal for 0, in the one line for 2)
LINES: list[tuple[str, int, str]] = [
    ("train --help", 0, "efficientnet_lite0"),
    ("train -h", 0, "--multirun"),
    ("evaluate --help", 0, "checkpoint"),
    ("train --help -cd own", 0, "mine"),
    ("train --version", 0, "Hydra 1."),
    ("train --hydra-help", 0, "Hydra"),
    ("train --cfg job", 0, "warmup_ratio: 0.05"),
    ("train --cfg job seed=3", 0, "seed: 3"),
    ("train seed=3 --cfg job encoder=noise", 0, "seed: 3"),
    ("train --cfg=job", 0, "output_dir: outputs"),
    ("train -c job -p trainer", 0, "# @package trainer"),
    ("train --cfg job --package encoder", 0, "layer: -1"),
    ("train --cfg job --resolve seed=4 data.seed=${seed} -p data", 0, "seed: 4"),
    ("train --cfg job name=${oc.env:OWN_SEED}", 0, "${oc.env:OWN_SEED}"),
    ("train --cfg job --resolve seed='${oc.decode:${oc.env:OWN_SEED}}'", 0, "seed: 11"),
    ("train --cfg hydra -p hydra.launcher", 0, "PoolLauncher"),
    ("train --cfg all", 0, "sweeper"),
    ("train --info", 0, "Defaults Tree"),
    ("train --info all", 0, "Config search path"),
    ("train --info defaults", 0, "encoder/efficientnet_lite0"),
    ("train --info defaults-tree", 0, "encoder: efficientnet_lite0"),
    ("train --info config", 0, "warmup_ratio"),
    ("train --info plugins", 0, "GridSweeper"),
    ("train --info searchpath -cd own", 0, "own"),
    ("train experiment=null --cfg job", 0, "output_dir"),
    ("train ~experiment --cfg job", 0, "output_dir"),
    ("train ~optimizer.lr --cfg job -p optimizer.lr", 0, "0.001"),
    ("train ++optimizer.lr=0.5 --cfg job -p optimizer.lr", 0, "0.5"),
    ("train name= --cfg job", 2, "no folder name"),
    ("train task.prompt='a,b=c' --cfg job -p task.prompt", 0, "a,b=c"),
    ("train intervention=[skip_ffn,isolate] --cfg job -p intervention", 0, "isolate"),
    ("train intervention=skip_ffn intervention.skip_ffn.ratio=0.5 --cfg job -p intervention.skip_ffn.ratio", 0, "0.5"),
    ("train logger=[csv,offline] --cfg job -p logger", 0, "WandbMirror"),
    ("train logger=[csv,tensorboard,wandb] --cfg job -p loggers", 0, "TensorBoardLogger"),
    ("train logger=[csv,offline] loggers.csv.prefix=own --cfg job -p loggers.csv.prefix", 0, "own"),
    ("train logger=[csv,offline,wandb]", 2, "same mirror"),
    ("train logger=[csv,ofline]", 2, "offline"),
    ("train logger=[csv,offline] loggers.csv.vesion=2", 2, "version"),
    ("train +own=1 data.seed=${own} --cfg job --resolve -p data.seed", 0, "1"),
    ("train +own=1 --cfg job", 2, "own"),
    ("train -cd own encoder=mine --cfg job -p encoder", 0, "width: 7"),
    ("train --config-dir own experiment=own --cfg job -p encoder", 0, "depth: 3"),
    ("train hydra.searchpath=[file://own] encoder=mine --cfg job -p encoder", 0, "width: 7"),
    ("train encoder._target_=own_parts.Mine encoder.width=9 --cfg job -p encoder", 0, "width: 9"),
    ("train -cd own encoder=mine encoder.widht=9", 2, "width"),
    ("train -cd own experiment=own_mode", 2, "--multirun"),
    ("train -cp own -cn train", 2, "train"),
    ("train -cn evaluate --cfg job", 2, "checkpoint"),
    ("train hydra.job.name=other --cfg hydra -p hydra.job.name", 0, "other"),
    ("train hydra/launcher=basic --cfg hydra -p hydra.launcher", 0, "BasicLauncher"),
    ("train hydra/sweeper=basic --cfg hydra -p hydra.sweeper", 0, "BasicSweeper"),
    ("train learning_rate=1", 2, "here it is"),
    ("train per_device_train_batch_size=1", 2, "here it is"),
    ("train optimizer.lr=1,2", 2, "--multirun"),
    ("train seed=choice(1,2)", 2, "--multirun"),
    ("train sweep=seeds", 2, "--multirun"),
    ("train -m hydra/sweeper=basic hydra.sweep.dir=elsewhere seed=0,x", 2, "whole number"),
    ("train -m sede=0,1", 2, "seed"),
    ("train -m hydra/sweeper=basic hydra.sweep.dir=elsewhere optimizer.lr=${nowhere},1", 2, "nowhere"),
    ("train -m encoder=glob(nothing*)", 2, "glob(nothing*)"),
    ("train -m hydra/sweeper=basic hydra.sweep.dir=elsewhere encoder=noise,noize", 2, "noise"),
    ("train -m optimizer.lr=interval(0,1)", 2, "optuna"),
    ("train -m hydra/launcher=nothing seed=1,2", 2, "basic"),
    ("train -m name=a,b seed=1", 2, "name"),
    ("train --multirun --cfg job", 2, "at a time"),
    ("evaluate checkpoint=RUN --cfg job -p llm", 0, "num_blocks"),
    ("evaluate checkpoint=RUN llm.dtype=bfloat16 --cfg job -p llm.dtype", 0, "bfloat16"),
    ("evaluate checkpoint=RUN encoder=noise", 2, "not a choice of evaluate.py"),
    ("evaluate checkpoint=RUN intervention=skip_ffn,skip_attn", 2, "evaluate.py --multirun"),
    ("evaluate -m checkpoint=RUN intervention=skip_fffn,skip_attnn", 2, "skip_ffn"),
    ("sweep sweep=encoderz", 2, "encoders"),
    ("sweep seed=1", 2, "nothing to vary"),
    ("train rerun=RUN --cfg job -p data.num_train", 0, "21"),
    ("train rerun=nowhere", 2, "nowhere"),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder elsewhere with a config tree, a module of its own and a run."""
    for name, text in OWN.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OWN_SEED", "11")
    config = Path(__file__).resolve().parents[1] / "artefacts" / "run" / "result.json"
    found: dict[str, Any] = yaml.safe_load(config.read_text())
    found["config"]["data"]["num_train"] = 21
    write_json(tmp_path / "RUN" / "result.json", found)
    return tmp_path


@pytest.mark.parametrize(("line", "code", "said"), LINES, ids=[line for line, _, _ in LINES])
def test_a_command_line_does_what_hydra_says_or_is_one_line(
    line: str, code: int, said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *words = line.split()
    found = (
        sweep.main(words) if script == "sweep" else run_script(script, words, entry=lambda config: pytest.fail("ran"))
    )
    out, err = capsys.readouterr()
    assert found == code, out + err
    assert said in (out if code == 0 else err), out + err
    if code == 2:
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert not (workplace / "outputs").exists(), "nothing was to be written"


def test_the_table_holds_at_least_sixty_lines() -> None:
    assert len({line for line, _, _ in LINES}) >= 60


def test_a_hydra_block_of_an_experiment_of_ones_own_is_obeyed(workplace: Path) -> None:
    seen: list[Any] = []

    def entry(config: Any) -> None:
        import os

        seen.append((config["seed"], config["encoder"]["_target_"], os.environ.get("OWN_VARIABLE")))

    assert run_script("train", ["-cd", "own", "experiment=own"], entry=entry) == 0
    assert seen == [(5, "own_parts.Mine", "seen")]
    assert (workplace / "own_place" / ".hydra" / "config.yaml").is_file()


@pytest.mark.parametrize("launcher", ["ima", "basic"])
def test_a_multirun_composes_each_job_and_runs_each_once(
    launcher: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the launcher of Hydra in this process; with ours each job is a process, here one that only says its name."""
    seen: list[Any] = []
    if launcher == "ima":
        monkeypatch.setattr("ima.sweep.pool.command_of", lambda job, *_: [sys.executable, "-c", "pass"])
    words = ["-m", f"hydra/launcher={launcher}", "-cd", "own", "encoder=glob(efficientnet*)", "seed=range(0,2)"]
    code = run_script("train", words, entry=lambda config: seen.append((config["choices"]["encoder"], config["seed"])))
    if launcher == "basic":
        assert code == 0
        names = {name for name, _ in seen}
        assert names == {path.stem for path in (CONF / "encoder").glob("efficientnet*")} and len(seen) == 2 * len(names)
    else:
        assert code == 1 and "ended without a result" in capsys.readouterr().out


def test_compose_works_inside_a_hydra_application(workplace: Path) -> None:
    seen: list[Any] = []
    run_script("train", [], entry=lambda config: seen.append(compose(["seed=8"]).seed))
    assert seen == [8]
    with pytest.raises(UserError, match="seed"):
        compose(["sede=8"])


def test_a_finished_folder_and_a_foreign_one_stay_as_they_are(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "outputs").mkdir()
    (workplace / "RUN").rename(workplace / "outputs" / "RUN")
    folder = workplace / "outputs" / "RUN"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run_script("train", ["name=RUN", "seed=77"], entry=lambda config: pytest.fail("was run")) == 2
    assert "holds a run with another config" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


LONG = "x" * 300


@pytest.mark.parametrize(
    ("root", "arguments"),
    [
        ("train", f"data=coco data.folder={LONG} encoder=noise llm=tiny"),
        ("train", f"data=shapes encoder=noise llm=hf llm.path={LONG}"),
        ("train", f"data=hf_caption data.path={LONG} encoder=noise llm=tiny"),
        ("evaluate", f"checkpoint={LONG}"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(
    root: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["logger=none", "name=r", "trainer.accelerator=cpu"] if root == "train" else []
    assert run_script(root, [*arguments.split(), *more]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "File name too long (300 characters)" in lines[0] and LONG not in lines[0]
