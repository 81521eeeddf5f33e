"""Run folders, mask headers and checkpoints that somebody else planted. Nothing of them runs.

Every bomb makes the file `canary` when it goes off; that they are live is shown by setting them off here.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from launcher import Launcher
from omegaconf import OmegaConf
from planted import TINY, Json, one_line, write_code, write_pickle

from ima.cli import export_llava
from ima.cli.masks import main as masks_main
from ima.cli.scripts import run_script
from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.trust import CONF, check_foreign, home_of, named_in, trusting
from ima.interventions.prune.mask import Mask
from ima.runs.find import run_config
from ima.runs.identity import config_hash


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def torch_load(folder: Path, canary: Path) -> Json:
    return {"_target_": "torch.load", "f": str(write_pickle(folder / "w.pt", canary)), "weights_only": False}


def torch_hub(folder: Path, canary: Path) -> Json:
    write_code(folder / "hub", "hubconf", canary, "def net(): return 1\n")
    return {"_target_": "torch.hub.load", "repo_or_dir": str(folder / "hub"), "model": "net", "source": "local"}


def copyfile(folder: Path, canary: Path) -> Json:
    (folder / "source").write_text("text")
    return {"_target_": "shutil.copyfile", "src": str(folder / "source"), "dst": str(canary)}


def file_handler(folder: Path, canary: Path) -> Json:
    return {"_target_": "logging.FileHandler", "filename": str(canary)}


def system(folder: Path, canary: Path) -> Json:
    return {"_target_": "os.system", "command": f"touch {canary}"}


def evaluated(folder: Path, canary: Path) -> Json:
    return {"_target_": "builtins.eval", "_args_": [f"open({str(canary)!r}, 'w')"]}


def through_ima(folder: Path, canary: Path) -> Json:
    """A name that a module of ours imports."""
    return copyfile(folder, canary) | {"_target_": "ima.core.files.shutil.copyfile"}


def helper_of_ima(folder: Path, canary: Path) -> Json:
    return {"_target_": "ima.core.files.write_json", "path": {"_target_": "pathlib.Path", "_args_": [str(canary)]},
            "value": 1}  # fmt: skip


def imported(folder: Path, canary: Path) -> Json:
    """Goes off at import."""
    write_code(folder, "planted_module", canary, "class Thing: pass\n")
    return {"_target_": "planted_module.Thing"}


LIVE = [torch_load, torch_hub, copyfile, file_handler, through_ima, helper_of_ima, imported]
BOMBS: list[Callable[[Path, Path], Json]] = [*LIVE, system, evaluated]  # the last two Hydra itself refuses by now
PLACES: dict[str, Callable[[Json, Json], None]] = {
    "encoder": lambda config, bomb: config.update(encoder=bomb),
    "adapter": lambda config, bomb: config.update(adapter=bomb | {"_partial_": True}),
    "llm": lambda config, bomb: config.update(llm=bomb),
    "encoder.modality": lambda config, bomb: config["encoder"].update(modality=bomb),
    "encoder.extra": lambda config, bomb: config["encoder"].update(extra={"deep": [{"deeper": [bomb]}]}),
    "data.num_train": lambda config, bomb: config["data"].update(num_train=bomb),
    "task": lambda config, bomb: config.update(task=bomb),
    "mixture": lambda config, bomb: config.update(
        mixture={"a": {"_target_": "ima.config.settings.Entry", "data": config["data"], "task": bomb}}
    ),
    "stage": lambda config, bomb: config.update(stage={"one": {"_target_": "ima.config.settings.Stage", "lr": bomb}}),
    "intervention": lambda config, bomb: config.update(intervention={"skip": bomb}),
    "alignment": lambda config, bomb: config.update(alignment=bomb),
    "evaluation.tracks": lambda config, bomb: config["evaluation"].update(tracks=[bomb]),
    "seed": lambda config, bomb: config.update(seed=bomb),
}


@functools.cache
def tiny_config() -> str:
    return json.dumps(OmegaConf.to_container(compose(TINY)))


def composed() -> Json:
    return dict(json.loads(tiny_config()))


def plant(folder: Path, config: Json, facts: Json | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"status": "ok", "config": config, "facts": facts or {}}))
    return folder


@pytest.mark.parametrize("bomb", LIVE, ids=lambda bomb: bomb.__name__)
def test_the_bombs_are_live(
    bomb: Callable[[Path, Path], Json], tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    instantiate(bomb(tmp_path, canary))
    sys.modules.pop("planted_module", None)
    assert canary.exists()


@pytest.mark.parametrize(
    ("bomb", "place"),
    [*((bomb, "encoder") for bomb in BOMBS), *((copyfile, place) for place in PLACES)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_run_folder_makes_nothing(
    bomb: Callable[[Path, Path], Json], place: str, tmp_path: Path, canary: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    node, config = bomb(tmp_path, canary), composed()
    PLACES[place](config, node)
    run = plant(tmp_path / "run", config)
    assert run_script("evaluate", [f"checkpoint={run}"], entry=lambda _: pytest.fail("was run")) == 2
    one_line(capsys.readouterr().err, str(run / "result.json"), place)
    assert not canary.exists() and "planted_module" not in sys.modules


def test_the_line_names_key_target_and_what_allows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed()
    config["encoder"] = {"_target_": "mine.encoders.Colours"}
    run = plant(tmp_path / "run", config)
    assert run_script("evaluate", [f"checkpoint={run}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {run}/result.json: encoder._target_: 'mine.encoders.Colours' is named neither in conf/ nor by you, so "
        "it is not made; where you trust it, write trust=[mine.encoders.Colours]\n"
    )


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"modality": "${oc.env:HOME}"}, "encoder.modality: '${oc.env:HOME}' refers to something"),
        ({"modality": "${oc.create:{_target_: os.system}}"}, "refers to something"),
        ({"${oc.env:HOME}": 1}, "refers to something"),
        ({"_target_": ["os.system"]}, "_target_: ['os.system'] is not taken from a file; allowed: a str"),
        ({"_target_": "os.system\nerror: all is well"}, "'os.system\\nerror: all is well' is named neither"),
        (
            {"_target_": "ima.pipeline.loggers.wandb.WandbMirror"},
            "'ima.pipeline.loggers.wandb.WandbMirror' is named neither",
        ),
        ({"_partial_": {"_target_": "os.getpid"}}, "encoder._partial_: "),
        ({"_args_": [1]}, "encoder._args_: [1] is not taken from a file"),
    ],
)
def test_what_is_no_plain_data_is_refused(
    node: Json, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed()
    config["encoder"] |= node
    assert run_script("evaluate", [f"checkpoint={plant(tmp_path / 'run', config)}"]) == 2
    one_line(capsys.readouterr().err, words)


def test_depth_is_no_way_round_it() -> None:
    deep: Any = {"_target_": "os.system"}
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(UserError, match=r"'os\.system' is named neither"):
        check_foreign({"a": deep}, "somewhere")


# -- what is allowed ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person's own package, and a run that was trained with its class."""
    write_code(tmp_path / "own" / "mine_trust", "encoders", tmp_path / "imported",
               "import os\nfrom os import system\nfrom ima.models.encoders.controls import NoiseEncoder\n"
               "class Own(NoiseEncoder):\n    pass\n\ndef make(dim: int = 3):\n    return Own(dim)\n")  # fmt: skip
    (tmp_path / "own" / "mine_trust" / "__init__.py").write_text("from mine_trust.encoders import Own\n")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    config: Any = OmegaConf.to_container(compose([*TINY, "encoder._target_=mine_trust.encoders.Own"]))
    return plant(tmp_path / "run", config)


def test_a_training_takes_any_class_of_ones_own(mine: Path) -> None:
    config = compose([*TINY, "encoder._target_=mine_trust.encoders.Own"])
    assert config.encoder._target_ == "mine_trust.encoders.Own" and config.trust == ["mine_trust.encoders.Own"]


@pytest.mark.parametrize("name", ["mine_trust", "mine_trust.encoders", "mine_trust.encoders.Own"])
def test_trust_lets_a_run_name_a_class_of_ones_own_without_importing_it(name: str, mine: Path) -> None:
    config = compose([f"checkpoint={mine}", f"trust=[{name}]"], "evaluate")
    assert config.encoder._target_ == "mine_trust.encoders.Own" and config.trust == [name]
    assert not (mine.parent / "imported").exists()


def test_what_the_command_line_names_is_trusted(mine: Path) -> None:
    config = compose([f"checkpoint={mine}", "encoder._target_=mine_trust.encoders.Own"], "evaluate")
    assert config.encoder._target_ == "mine_trust.encoders.Own"
    with pytest.raises(UserError, match=r"trust=\[mine_trust\.encoders\.Own\]"):
        compose([f"checkpoint={mine}"], "evaluate")


def test_a_group_that_is_chosen_again_is_not_read_from_the_run(tmp_path: Path) -> None:
    config = composed()
    config["task"] = {"_target_": "planted.Task"}
    run = plant(tmp_path / "run", config)
    found = compose([f"checkpoint={run}", "task=caption"], "evaluate")
    assert found.task._target_ == "ima.tasks.caption.CaptionTask"


def test_a_trusted_module_does_not_vouch_for_what_it_imports(mine: Path) -> None:
    with trusting(["mine_trust"]):
        for target in ("mine_trust.encoders.Own", "mine_trust.Own", "mine_trust.encoders.make"):
            check_foreign({"encoder": {"_target_": target}}, mine)
        for target in ("mine_trust.encoders.os.system", "mine_trust.encoders.system", "mine_trust_more.Own",
                       "mine_trust.encoders.NoiseEncoder.to", "mine_trust.nothing.Own"):  # fmt: skip
            with pytest.raises(UserError, match="is named neither"):
                check_foreign({"encoder": {"_target_": target}}, mine)
    assert home_of("mine_trust.Own") == "mine_trust.encoders" and not (mine.parent / "imported").exists()


def test_what_conf_names_is_allowed_and_no_logger() -> None:
    assert named_in(CONF, "ima.models.encoders.image.FocusViT") and named_in(CONF, "ima.config.settings.Entry")
    for target in (
        "ima.pipeline.loggers.wandb.WandbMirror",
        "ima.core.files.write_json",
        "ima.models.encoders.image",
        "torch.load",
        "",
    ):
        assert not named_in(CONF, target)


def test_ones_own_conf_needs_no_trust(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "encoder").mkdir(parents=True)
    (tmp_path / "conf" / "encoder" / "own.yaml").write_text("# mine\n_target_: mine_trust.encoders.Own\n")
    with trusting([], tmp_path / "conf"):
        assert set(run_config(str(mine), ["encoder"])) == {"encoder", "choices"}


def test_trust_changes_no_hash_and_is_not_taken_from_a_run(mine: Path) -> None:
    config = composed()
    assert config_hash(config) == config_hash(config | {"trust": ["mine"]})
    stored = json.loads((mine / "result.json").read_text())
    assert stored["config"]["trust"] == ["mine_trust.encoders.Own"]
    assert "trust" not in run_config(str(plant(mine.parent / "other", composed() | {"trust": ["os"]})))


def test_a_sweeps_evaluations_may_name_what_its_trainings_named(mine: Path) -> None:
    from ima.cli.sweep import plan

    argv = [*TINY, "encoder._target_=mine_trust.encoders.Own", "seed=1,2", "evaluations=[{epochs:[1]}]"]
    measured = [job for job, _ in plan(argv)[2]]
    assert measured and all("trust=[mine_trust.encoders.Own]" in job.overrides for job in measured)
    plain = plan([*TINY, "seed=1,2", "evaluations=[{epochs:[1]}]"])[2]
    assert not any("trust" in text for job, _ in plain for text in job.overrides)


# -- whole programs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("trust")
    done = launcher.run("train", [*TINY, "name=run", f"output_dir={top}"])
    assert done.code == 0, done.stdout + done.stderr
    return top / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy whose result.json may be changed."""
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


def change(run: Path, **changes: Any) -> None:
    result = json.loads((run / "result.json").read_text())
    for name, value in changes.items():
        result[name] |= value
    (run / "result.json").write_text(json.dumps(result))


def test_the_script_refuses_a_planted_run(run: Path, canary: Path, launcher: Launcher) -> None:
    change(run, config={"encoder": copyfile(run, canary)})
    done = launcher.run("evaluate", [f"checkpoint={run}"])
    assert done.code == 2 and done.stdout == "" and not canary.exists()
    one_line(done.stderr, "encoder._target_: 'shutil.copyfile'")
    assert not list(run.glob("evaluate-*"))


def test_facts_are_data_too(run: Path, canary: Path, launcher: Launcher, capsys: pytest.CaptureFixture[str]) -> None:
    """The dtype goes from the facts of a run into a node."""
    change(run, facts={"llm_dtype": copyfile(run, canary)})
    done = launcher.run("evaluate", [f"checkpoint={run}"])
    assert done.code == 2 and not canary.exists()
    one_line(done.stderr, "llm_dtype: {'_target_': 'shutil.copyfile'", "allowed: float32, bfloat16, float16")
    config = json.loads((run / "result.json").read_text())["config"]
    change(run, config={"llm": config["llm"] | {"dtype": "auto"}})
    assert masks_main(["make", str(run), "--method", "random", "--out", str(run / "masks")]) == 2
    one_line(capsys.readouterr().err, "llm_dtype: ")
    assert not canary.exists()


def test_a_run_that_calibrates_makes_nothing(run: Path, trained: Path, canary: Path, launcher: Launcher) -> None:
    change(run, config={"encoder": copyfile(run, canary)})
    prune = ["intervention=prune", f"intervention.prune.run={run}", "intervention.prune.num_examples=4"]
    train = [*TINY, *prune, f"output_dir={run.parent}", "name=x"]
    evaluate = [f"checkpoint={trained}", *prune, f"output_dir={run.parent}", "name=y"]
    for script, argv in (("train", train), ("evaluate", evaluate)):
        done = launcher.run(script, argv)
        assert done.code == 2 and not canary.exists(), done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        one_line(done.stderr.splitlines()[-1] + "\n", str(run), "encoder._target_: 'shutil.copyfile'")


@pytest.mark.parametrize("key", ["llm", "encoder"])
def test_the_commands_refuse_a_planted_run(
    key: str, run: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, config={key: copyfile(run, canary)})
    assert masks_main(["make", str(run), "--out", str(run / "masks")]) == 2
    one_line(capsys.readouterr().err, f"{key}._target_: 'shutil.copyfile'", "--trust shutil.copyfile")
    assert export_llava.main([str(run), "--out", str(run / "llava")]) == 2
    one_line(capsys.readouterr().err, f"{key}._target_: 'shutil.copyfile'", "--trust shutil.copyfile")
    assert not canary.exists()


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
@pytest.mark.parametrize("where", ["node", "nested", "dtype"])
def test_a_planted_mask_makes_nothing(
    where: str, bomb: Callable[[Path, Path], Json], tmp_path: Path, canary: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    node, tiny = bomb(tmp_path, canary), {"_target_": "ima.models.llm.load.tiny"}
    facts = {"node": {"llm_node": node}, "nested": {"llm_node": tiny | {"chat": [node]}},
             "dtype": {"llm_node": tiny, "dtype": node}}[where]  # fmt: skip
    path = tmp_path / "mask.safetensors"
    Mask.of({"model.layers.0.self_attn.q_proj": np.ones((4, 4), dtype=bool)}, facts).save(path)
    assert masks_main(["info", str(path)]) == 0
    capsys.readouterr()
    assert masks_main(["export", str(path), "--out", str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, str(path), "dtype" if where == "dtype" else "llm_node")
    assert not canary.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adapter.safetensors", "checkpoints/last.safetensors"])
def test_a_pickle_under_the_name_of_a_checkpoint_is_not_unpickled(
    name: str, run: Path, canary: Path, launcher: Launcher
) -> None:
    path = write_pickle(run / name, canary)
    done = launcher.run("evaluate", [f"checkpoint={path}"])
    assert done.code == 2 and not canary.exists()
    one_line(done.stderr.splitlines()[-1] + "\n", str(path))
