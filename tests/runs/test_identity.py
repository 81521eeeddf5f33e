"""The identity of a run: what changes the numbers changes the hash, and nothing else does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ima.config.compose import CONF, compose, default_groups
from ima.core import moved_names
from ima.core import signatures as schema
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.core.signatures import signature
from ima.runs import identity
from ima.runs.folders import is_finished, load_finished_or_clear
from ima.runs.identity import arguments_of, bare_name, canonical, config_hash, digest, with_dtype

SMOKE = ["experiment=smoke", "llm=tiny"]


def plain(*argv: str, root: str = "train") -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose(list(argv), root))
    return dict(config)


def of(*argv: str) -> str:
    return config_hash(plain(*SMOKE, *argv))


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output_dir=elsewhere",
        "overwrite=true",
        "logger=none",
        "trainer=cpu",
        "loader.num_workers=3",
        "trainer.devices=2",
        "llm.fast=false",
        "llm.compile=true",
        "llm.activation_budget=0.5",
        "optimizer.lr=0.002",  # a default, spelled out
        "optimizer.weight_decay=2e-2",
        "callbacks.checkpoint.every_num_steps=7",
        "llm.width=32",
        "llm.dtype=float32",
        "encoder.layer=-1",
        "seed=0",
        "init=null",
        "alignment.sites=[resid_post]",
        "intervention=[none]",
    ],
)
def test_places_speed_and_spelled_out_defaults_change_no_hash(override: str) -> None:
    assert of(override) == of()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optimizer.lr=0.003",
        "loader.batch_size=8",
        "loader.cache_dtype=float32",
        "llm.width=16",
        "llm.dtype=bfloat16",
        "llm=smollm2",
        "adapter=linear",
        "encoder.layer=3",
        "data.num_train=63",
        "alignment=none",
        "alignment=full",
        "intervention=[skip_ffn]",
        "mixture=[image_caption]",
        "init=outputs/other",
    ],
)
def test_what_changes_the_numbers_changes_the_hash(override: str) -> None:
    assert of(override) != of()


def test_the_order_of_what_stacks_counts_and_that_of_keys_does_not() -> None:
    assert of("intervention=[skip_ffn,drop]", "intervention.drop.start=2") != of(
        "intervention=[drop,skip_ffn]", "intervention.drop.start=2"
    )
    config = plain(*SMOKE)
    assert config_hash({key: config[key] for key in reversed(config)}) == config_hash(config)


def test_numbers_lists_and_paths_have_one_spelling() -> None:
    assert digest({"a": 1, "b": (1, 2.0)}) == digest({"b": [1.0, 2], "a": 1.0})
    assert digest(True) != digest(1) and digest("1") != digest(1) and digest(None) != digest("null")
    assert config_hash({"checkpoint": "outputs/a/", "seed": 0}) == config_hash({"checkpoint": "./outputs/a", "seed": 0})


BEFORE = "class Own:\n    def __init__(self, width: int, ratio: float = 0.5): ...\n"
AFTER = "START = (1, 2)\n" + BEFORE.replace("0.5)", "0.5, start: tuple = START, extra: dict | None = None)")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of a person's own, `own_identity`, that a test may write again."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_identity.py"
    schema.signature.cache_clear()
    schema.read_module.cache_clear()


def test_a_key_added_later_with_a_default_changes_no_hash(own: Path) -> None:
    hashes = []
    for text, more in [(BEFORE, {}), (AFTER, {}), (AFTER, {"start": [1, 2], "extra": None, "ratio": 0.5})]:
        own.write_text(text)
        schema.signature.cache_clear()
        schema.read_module.cache_clear()
        hashes.append(config_hash({"adapter": {"_target_": "own_identity.Own", "width": 3, **more}}))
    assert len(set(hashes)) == 1
    assert config_hash({"adapter": {"_target_": "own_identity.Own", "width": 3, "start": [1, 3]}}) != hashes[0]


def test_a_class_that_moves_keeps_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    now = config_hash({"llm": {"_target_": "ima.models.llm.load.tiny", "width": 16}})
    old = {"llm": {"_target_": "ima.once.upon.tiny", "width": 16, "family": "llama"}}
    monkeypatch.setattr(moved_names, "MOVED", {"ima.once.upon": "ima.models.llm.load"})
    schema.signature.cache_clear()
    assert config_hash(old) == now
    monkeypatch.setattr(identity, "KEPT_NAMES", {"tiny": "small"})
    assert canonical(old["llm"])["class"] == "small"
    schema.signature.cache_clear()


def test_classes_of_other_packages_are_told_apart_by_their_whole_name() -> None:
    assert bare_name("ima.adapters.PoolAdapter") == "PoolAdapter"
    assert bare_name("mine.adapters.PoolAdapter") == "mine.adapters.PoolAdapter"
    assert bare_name("ima.gone.for.good.Thing") == "Thing"


def targets(node: Any) -> set[str]:
    found = {node["_target_"]} if isinstance(node, dict) and "_target_" in node else set()
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return found.union(*map(targets, inner))


def test_no_two_choices_of_a_group_are_called_the_same() -> None:
    for group in default_groups("train", CONF):
        files = [yaml.safe_load(path.read_text()) for path in (CONF / group).glob("*.yaml")]
        names = set().union(*map(targets, files))
        assert len({bare_name(name) for name in names}) == len(names), group


def test_no_default_of_a_choice_is_source_that_cannot_be_read() -> None:
    for path in CONF.glob("*/*.yaml"):
        for target in targets(yaml.safe_load(path.read_text())):
            for parameter in signature(target).parameters.values():
                value = identity.default_of(parameter) if parameter.default is not schema.REQUIRED else None
                assert not isinstance(parameter.default, schema.Source) or value != str(parameter.default), target


def test_the_arguments_of_a_node_are_those_given_and_the_defaults() -> None:
    found = arguments_of({"_target_": "ima.adapters.PoolAdapter", "_partial_": True, "grid": 2})
    assert found == {"grid": 2, "hidden": 1024, "layout": "auto"}


def test_a_dtype_that_was_left_to_the_machine_is_that_of_the_facts() -> None:
    facts = {"llm_dtype": "bfloat16"}
    for given in ({}, {"dtype": "auto"}):
        assert with_dtype({"_target_": "ima.llm.load.smollm2", **given}, facts)["dtype"] == "bfloat16"
    assert with_dtype({"_target_": "ima.llm.load.smollm2", "dtype": "float32"}, facts)["dtype"] == "float32"
    assert "dtype" not in with_dtype({"_target_": "ima.models.llm.load.tiny"}, facts)
    assert with_dtype({"_target_": "ima.llm.load.smollm2"}, {}) == {"_target_": "ima.llm.load.smollm2"}


def result_of(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """As it was written before there was a rule of identity."""
    return {"status": "ok", "config": config, "config_hash": "0123456789ab", "metrics": {}} | changes


def test_a_finished_folder_from_before_is_recognised_by_its_config(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", result_of(plain(*SMOKE, "loader.num_workers=2")))
    before = (tmp_path / "result.json").read_bytes()
    assert is_finished(tmp_path, plain(*SMOKE))
    found = load_finished_or_clear(tmp_path, plain(*SMOKE))
    assert found is not None and found.status == "ok"
    with pytest.raises(UserError, match="another config.*overwrite=true"):
        load_finished_or_clear(tmp_path, plain(*SMOKE, "seed=1"))
    assert (tmp_path / "result.json").read_bytes() == before


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_an_unfinished_folder_from_before_is_refused_in_a_line_and_left_alone(tmp_path: Path, status: str) -> None:
    write_json(tmp_path / "result.json", result_of(plain(*SMOKE), status=status))
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path}: holds an unfinished run of an earlier version")
    ) as told:
        load_finished_or_clear(tmp_path, plain(*SMOKE))
    assert "overwrite=true" in str(told.value) and "\n" not in str(told.value)
    assert (tmp_path / "rows.jsonl").exists()
    assert load_finished_or_clear(tmp_path, plain(*SMOKE, "resume=never")) is None
    assert not (tmp_path / "rows.jsonl").exists()


def test_an_unfinished_folder_of_today_is_resumed(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"status": "failed"} | identity.identified(plain(*SMOKE)))
    assert load_finished_or_clear(tmp_path, plain(*SMOKE, "loader.num_workers=4")) is None


def test_a_sweep_is_named_by_what_is_given_in_whatever_order() -> None:
    from ima.cli.sweep import plan

    first, second = (plan(argv)[0] for argv in ([*SMOKE, "seed=0,1"], ["seed=0,1", *reversed(SMOKE), "overwrite=true"]))
    assert first == second
    assert plan([*SMOKE, "seed=0,2"])[0] != first
