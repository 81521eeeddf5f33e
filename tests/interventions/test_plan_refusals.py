"""A wrong plan is one line and exit code 2 before anything is loaded, also where only the LLM tells it is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ima.cli.scripts import run_script
from ima.config.compose import compose
from ima.models.llm.facts import LlmFacts, llm_facts
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.tiny import FAMILY_NAMES, tiny_model, tiny_tokenizer
from ima.pipeline import assemble as parts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line_of(capsys: pytest.CaptureFixture[str], arguments: list[str], entry: Any) -> str:
    code = run_script("train", arguments, entry=entry)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


# What the constructors' signatures tell: refused without importing torch.
BY_SIGNATURE = [
    ("skip_ffn", "ratio=1.2", "0.0 to 1.0"),
    ("skip_ffn", "ratio=much", "a number"),
    ("skip_ffn", "part=fnn", "ffn"),
    ("skip_ffn", "select=nrom", "norm"),
    ("skip_ffn", "phase=prefil", "prefill"),
    ("skip_ffn", "visibility=gone", "hidden"),
    ("skip_ffn", "blocks=3", "a list"),
    ("skip_ffn", "blocks=[1,x]", "whole number"),
    ("skip_ffn", "heads=[1.5]", "whole number"),
    ("skip_ffn", "start=-1", ">= 0"),
    ("skip_ffn", "evry=2", "every"),
    ("isolate", "num_blocks=0", ">= 1"),
    ("parallel", "norm=ln2", "ln1"),
    ("merge", "every=1", ">= 2"),
    ("drop", "start=0", ">= 1"),
    ("exit", "leaving=everybody", "context"),
    ("entropy", "threshold=-1", ">= 0"),
]


@pytest.mark.parametrize(("name", "setting", "named"), BY_SIGNATURE, ids=[f"{a} {b}" for a, b, _ in BY_SIGNATURE])
def test_what_the_signature_tells_is_refused_when_it_is_composed(
    name: str, setting: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"intervention={name}", f"intervention.{name}.{setting}"]
    line = line_of(capsys, arguments, lambda config: pytest.fail("was run"))
    assert f"intervention.{name}.{setting.partition('=')[0]}" in line and named in line


# What takes the constructor, or the number of blocks: SmolLM2 has 30, a tiny model 3.
BY_MODEL = [
    ("skip_ffn", ["roles=[percpt]"], "intervention.skip_ffn.roles: 'percpt'"),
    ("skip_ffn", ["roles=[]"], "intervention.skip_ffn.roles: empty"),
    ("skip_ffn", ["heads=[1]"], "intervention.skip_ffn.heads"),
    ("skip_ffn", ["part=heads", "heads=[9]"], "heads 0 to 8"),
    ("skip_ffn", ["visibility=hidden"], "intervention.skip_ffn.visibility"),
    ("skip_ffn", ["phase=decode"], "intervention.skip_ffn.phase"),
    ("skip_ffn", ["blocks=[4,30]"], "blocks 0 to 29"),
    ("skip_ffn", ["blocks=[]"], "blocks 0 to 29"),
    ("skip_ffn", ["start=30"], "stop <= 30"),
    ("skip_block", ["stop=31"], "stop <= 30"),
    ("skip_block", ["select=similar", "ratio=0.5", "start=0"], "start=1"),
    ("isolate", ["num_blocks=31"], "smollm2 has 30 blocks"),
    ("parallel", ["blocks=[30]"], "blocks 0 to 29"),
    ("merge", ["blocks=[29]"], "blocks 0 to 29"),
    ("drop", ["start=30"], "start=30 stop=30"),
    ("exit", ["block=29"], "0 to 28"),
    ("entropy", ["part=heads"], "intervention.entropy.part"),
    ("entropy", ["stop=40"], "stop <= 30"),
]


@pytest.mark.parametrize(("name", "settings", "named"), BY_MODEL, ids=[f"{a} {b}" for a, b, _ in BY_MODEL])
def test_what_the_llm_tells_is_refused_before_anything_is_loaded(
    name: str, settings: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = parts.build

    def only_interventions(config: Any, what: str, prefix: str = "") -> Any:
        assert prefix == "intervention.", f"{what} was built"
        return build(config, what, prefix)

    monkeypatch.setattr(parts, "build", only_interventions)
    arguments = [f"intervention={name}", *(f"intervention.{name}.{setting}" for setting in settings)]
    line = line_of(capsys, arguments, parts.assemble)
    assert line.startswith(f"error: intervention.{name}") and named in line


@pytest.mark.parametrize(
    ("family", "name", "settings", "named"),
    [
        ("gpt_neox", "parallel", ["start=0"], "side by side by themselves"),
        ("olmo2", "parallel", ["start=0", "norm=ln1"], "olmo2 blocks have no norm"),
        ("opt_350m", "skip_ffn", ["start=0"], "norms its stream"),
        ("opt_350m", "exit", ["block=0"], "norms its stream"),
    ],
)
def test_what_a_family_lacks_is_refused_before_anything_is_loaded(
    family: str, name: str, settings: list[str], named: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    llm = ["llm=tiny", f"llm.family={family}"]
    arguments = [*llm, f"intervention={name}", *(f"intervention.{name}.{setting}" for setting in settings)]
    monkeypatch.setattr("ima.models.llm.load.tiny", lambda **_: pytest.fail("was loaded"))
    assert named in line_of(capsys, arguments, parts.assemble)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_is_known_of_a_model_before_it_is_loaded_is_so(family: str) -> None:
    node = {"_target_": "ima.models.llm.load.tiny", "family": family, "num_blocks": 4}
    llm = FrozenLLM(tiny_model(family, num_blocks=4), tiny_tokenizer(), name=f"tiny-{family}")
    before, loaded = llm_facts(node), llm.facts
    assert before is not None
    names = ("name", "model_type", "num_blocks", "num_heads", "stream_norms", "parallel")
    assert [getattr(before, name) for name in names] == [getattr(loaded, name) for name in names]
    assert loaded.model_type == llm.table.model_type and loaded.num_blocks == llm.num_blocks
    assert loaded.stream_norms == bool(llm.table.family.stream_norms)
    assert loaded.parallel == llm.table.family.parallel


def test_a_checkpoint_is_known_by_its_config_file(tmp_path: Path) -> None:
    tiny_model("qwen3", num_blocks=5).config.save_pretrained(tmp_path)
    found = llm_facts({"_target_": "ima.models.llm.load.hf", "path": str(tmp_path)})
    assert found is not None and (found.model_type, found.num_blocks, found.num_heads) == ("qwen3", 5, 4)
    assert llm_facts({"_target_": "ima.models.llm.load.hf", "path": str(tmp_path / "nothing")}) is None
    assert llm_facts({"_target_": "somebody.else"}) is None


@pytest.mark.real
def test_what_is_known_of_the_embedded_llm_is_so() -> None:
    from ima.models.llm.load import smollm2

    config = compose(["llm=smollm2"])
    loaded = smollm2("float32").facts
    assert llm_facts(config.llm) == LlmFacts(loaded.name, loaded.model_type, loaded.num_blocks, loaded.num_heads)


def test_the_script_refuses_in_one_line() -> None:
    arguments = ["intervention=skip_ffn", "intervention.skip_ffn.ratio=1.2"]
    done = subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: intervention.skip_ffn.") and done.stderr.count("\n") == 1
