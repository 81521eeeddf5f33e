"""Mistakes of a person on the command line: one line that names what is allowed, before anything runs."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_conf import own_conf

from ima.cli import sweep
from ima.cli.scripts import run_script
from ima.config.compose import CONF, compose, plain
from ima.config.settings import Flags
from ima.config.synonyms import SYNONYMS
from ima.config.values import at, unknown
from ima.core.errors import UserError
from ima.core.moved_keys import MOVED_KEYS
from ima.core.signatures import signature

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_conf(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


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


def test_a_start_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    from ima.runs.find import find_adapter, run_folder

    with pytest.raises(UserError, match="^init: 'nowhere' does not exist"):
        run_folder("nowhere", "init")
    with pytest.raises(UserError, match="^init: '.*' is no run folder"):
        find_adapter(str(tmp_path), "init")


@pytest.mark.parametrize("word", ["tests", "doc", "conf", "train.py", "tset"])
def test_a_word_that_is_no_target_fails(word: str) -> None:
    done = subprocess.run(["make", word], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"no target '{word}'" in done.stderr, done.stderr


def test_the_suite_holds_at_least_25_mistakes() -> None:
    assert len({text for text, _ in MISTAKES}) >= 25


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
