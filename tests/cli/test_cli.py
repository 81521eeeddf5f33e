"""The command line: what is taken, what is refused, and that a refusal is one short line before torch is there.

The config used here is a small one of its own (same groups, made-up classes), so that a change of the real leaves
does not change what these tests say. The real conf/ is checked in test_conf.py.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ima.cli import sweep
from ima.cli.scripts import run_script
from ima.cli.sweep import plan
from ima.config.compose import CONF, compose, plain
from ima.config.settings import Flags
from ima.config.synonyms import SYNONYMS
from ima.config.values import at, unknown
from ima.core.errors import UserError
from ima.core.moved_keys import MOVED_KEYS
from ima.core.signatures import signature

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture(scope="module", autouse=True)
def conf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cli")
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


# arguments -> what the line must name
MISTAKES = [
    ("encodr=base", "encoder"),
    ("encoder=bsae", "base"),
    ("encoder.dmi=3", "dim"),
    ("encoder.extra.x.y=3", "encoder.extra"),
    ("sede=1", "seed"),
    ("max_epochs=3", "trainer.max_epochs"),
    ("trainer.lr=fast", "a number"),
    ("trainer.max_epochs=2.5", "whole number"),
    ("trainer.max_epochs=-2", ">= -1"),
    ("trainer.accelerator=gpuu", "gpu"),
    ("trainer.tags=[1,{a:b}]", "a text"),
    ("encoder.pretrained=maybe", "true or false"),
    ("encoder.dropout=1.5", "0 to 1"),
    ("encoder.dropout=nan", "0 to 1"),
    ("encoder.zoom=9", "1 to 8"),
    ("encoder.size=medium", "small"),
    ("encoder.layers=3", "a list"),
    ("encoder.layers=[1,x]", "whole number"),
    ("encoder.dim=null", "whole number"),
    ("encoder.extra={a:b}", "a number"),
    ("encoder.extra=3", "a mapping"),
    ("encoder=named", "encoder.path: missing"),
    ("encoder=short", "encoder.path: missing"),
    ("encoder=typo", "Inherits"),
    ("encoder=nowhere", "cli_prats"),
    ("encoder=broken", "broken.yaml"),
    ("encoder=bare", "_target_"),
    ("encoder=reexported", "encoder.depth: missing"),
    ("encoder=", "base"),
    ("encoder=null", "base"),
    ("encoder=[base,named]", "several"),
    ("encoder=base,named", "--multirun"),
    ("seed=range(0,3)", "--multirun"),
    ("seed", "key=value"),
    ("=3", "key=value"),
    ("name=", "no folder name"),
    ("seed==3", "cannot be read"),
    ("seed=[1", "cannot be read"),
    ("seed=${sed}", "seed"),
    ("seed=-1", "0 to"),
    ("seed=4294967296", "0 to"),
    ("seed=true", "whole number"),
    ("seed.x=1", "seed"),
    ("resume=always", "auto"),
    ("name=../up", "name"),
    ("++encoder.dmi=3", "dim"),
    ("+seeed=3", "seed"),
    ("~encoder", "nothing is chosen"),
    ("~encoder.dmi", "dim"),
    ("~seeed", "seed"),
    ("+encoder.dim=3", "without '+'"),
    ("encoder@adapter=base", "encoder@adapter"),
    ("hydra/launcher=submitit", "basic"),
    ("hydra.run.dri=x", "dir"),
    ("hydra.mode=FOO", "RUN"),
    ("--cfg nothing", "job"),
    ("--info nothing", "plugins"),
    ("--resolve", "--cfg"),
    ("-cd nowhere", "no folder"),
    ("-cn trian", "train"),
    ("--experimental-rerun x", "rerun=outputs"),
    ("-sc query=bash", "COMP_LINE"),
    ("--trainer.lr=1", "args_no_hyphens"),
    ("seed=${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
    ("sweep=seeds", "--multirun"),
    ("experiment=dmeo", "demo"),
    ("experiment=wrong_key", "trainer"),
    ("experiment=wrong_group", "adaptr"),
    ("experiment=lost", "name"),
    ("intervention=[skip,prnue]", "prune"),
    ("intervention=skp", "skip"),
    ("intervention.skip.keep_ratio=0.1", "intervention.skip"),
    ("intervention=skip intervention.skip.keep_ratio=2", "0 to 1"),
    ("intervention=skip intervention.skip.at=[1]", "a list of 2"),
    ("alignment=none alignment.dim=3", "alignment=none"),
    ("adapter.width=3", "hidden"),
    ("adapter.hiden=3", "hidden"),
    ("--halp", "--help"),
    ("--trainer.learning_rate=1", "optimizer.lr"),
    ("learning_rate=1", "optimizer.lr"),
    ("trainer.num_train_epochs=1", "trainer.max_epochs"),
    ("experiment.seed=1", "write seed=value"),
    ("experiment=unmarked", "@package _global_"),
    ("experiment=itself", "include the file itself"),
    ("experiment=hinted", "Did you mean to override"),
    ("-x", "--cfg"),
    ("name=${llm}", "name: {_target_, anything} does not fit"),
    ("output_dir=${encoder}", "allowed: a single value"),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_gives_one_line_that_names_what_is_allowed(
    arguments: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_script("train", arguments.split(), entry=lambda config: pytest.fail("was run"))
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 400
    assert named in err, err
    assert "Traceback" not in err


def test_words_of_other_libraries_name_keys_that_are_there() -> None:
    """The answer names the key; so do the keys of before."""
    config, root = plain(compose([], "train", CONF)), signature("ima.config.roots.TrainConfig").parameters
    config["llm"] = {"_target_": "ima.models.llm.load.hf"}
    assert len(SYNONYMS) >= 50 and len(MOVED_KEYS) >= 25
    for key in [key for key, _ in SYNONYMS.values()] + list(MOVED_KEYS.values()):
        place, _, name = key.rpartition(".")
        node = functools.reduce(lambda node, part: node[part], place.split("."), config) if place else None
        assert name in (at(place, node["_target_"]).parameters if node else root), key
    words = [(word, key, "here it is|did you mean") for word, (key, _) in SYNONYMS.items()]
    words += [(old, key, "here it is") for old, key in MOVED_KEYS.items()]
    for number, (word, key, says) in enumerate(words):
        told = rf"^{re.escape(word)}: no such key; ({says}) {re.escape(key)}"
        place, _, name = word.rpartition(".")
        node = config.get(place) if place else None
        allowed = (
            at(place, node["_target_"]).parameters if isinstance(node, dict) and "_target_" in node else node or root
        )
        assert re.search(told, unknown(word, name, place, allowed, config)), word
        if number % 12 == 0:  # the whole way takes a third of a second
            with pytest.raises(UserError, match=told):
                compose([f"{word}=1"], "train", CONF)


def test_gpu_is_an_accelerator() -> None:
    import torch

    from ima.pipeline.assemble import device_of

    config = compose(["trainer.accelerator=gpu"], "train", CONF)
    assert config.trainer.accelerator == "gpu"
    if torch.cuda.is_available():
        assert device_of(Flags(accelerator="gpu")).type == "cuda"
    elif not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="'gpu' is not there"):
            device_of(Flags(accelerator="gpu"))


@pytest.mark.parametrize(
    ("root", "arguments", "said"),
    [
        ("train", ["llm"], "llm: not of the form key=value; did you mean llm? allowed"),
        ("sweep", ["sweep.params.seed=[1]"], "sweep.params.seed: sweep=<choice> takes a file of"),
        ("train", ["-m", "name=a,b", "seed=0,1"], "name: several values, but it is the sweep's own and has one"),
        ("evaluate", ["intervention=skip,prune"], "intervention: several values need a multirun; give"),
    ],
)  # fmt: skip
def test_advice_is_to_the_point(root: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = sweep.main(arguments) if root == "sweep" else run_script(root, arguments)
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_null_is_no_experiment_as_the_root_file_says_it() -> None:
    assert compose(["experiment=null", "name=r"]) == compose(["name=r"])
    assert compose(["experiment=demo", "experiment=null"]).seed == 0


def test_a_start_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    from ima.runs.find import find_adapter, run_folder

    with pytest.raises(UserError, match="^init: 'nowhere' does not exist"):
        run_folder("nowhere", "init")
    with pytest.raises(UserError, match="^init: '.*' is no run folder"):
        find_adapter(str(tmp_path), "init")


@pytest.mark.parametrize("word", ["tests", "docs", "conf", "train.py", "tset"])
def test_a_word_that_is_no_target_fails(word: str) -> None:
    done = subprocess.run(["make", word], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"no target '{word}'" in done.stderr, done.stderr


def test_the_suite_holds_at_least_25_mistakes() -> None:
    assert len({text for text, _ in MISTAKES}) >= 25


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


def test_a_config_file_of_another_encoding_is_named(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = conf / "encoder" / "latin.yaml"
    path.write_bytes("# for caf\u00e9s\n_target_: cli_parts.Base\n".encode("latin1"))
    try:
        code = run_script("train", ["encoder=latin"], entry=lambda config: pytest.fail("was run"))
    finally:
        path.unlink()
    assert code == 2 and f"error: {path}: not UTF-8: byte 0xe9 at offset 9; convert" in capsys.readouterr().err


def test_a_first_line_that_hydra_does_not_read_is_one_line_in_python_too(conf: Path) -> None:
    path = conf / "experiment" / "odd.yaml"
    path.write_text("# @pac\nseed: 7\n")
    try:
        with pytest.raises(UserError, match="^[^\n]*@pac[^\n]*$"):
            compose(["experiment=odd"], "train", conf)
    finally:
        path.unlink()
