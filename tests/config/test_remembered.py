"""Files and trees that are read once: whoever composes gets what stands on disk now, and a tree of her own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from ima.config import folders, hydra_private, remembered
from ima.config.compose import CONF, compose
from ima.config.hydra_private import create_config_search_path, prepare
from ima.config.loader import Loader

NOISE = "_target_: ima.models.encoders.controls.NoiseEncoder\n"


def composed(*argv: str) -> Any:
    prepare()
    folders.register()
    return Loader(create_config_search_path(str(CONF))).load_configuration("train", list(argv), RunMode.RUN)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "own.yaml").write_text(f"{NOISE}dim: 8\n")
    return tmp_path


def test_a_file_that_was_changed_is_read_anew_though_its_size_and_time_are_the_same(own: Path) -> None:
    words = [f"hydra.searchpath=[file://{own}]", "encoder=own"]
    assert compose(words).encoder.dim == compose(words).encoder.dim == 8
    path = own / "encoder" / "own.yaml"
    before = path.stat()
    path.write_text(f"{NOISE}dim: 9\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert compose(words).encoder.dim == 9


def test_a_file_that_comes_or_goes_before_another_of_its_name_is_noticed(own: Path, tmp_path: Path) -> None:
    words = [f"hydra.searchpath=[file://{tmp_path / 'first'},file://{own}]", "encoder=own"]
    first = tmp_path / "first" / "encoder" / "own.yaml"
    first.parent.mkdir(parents=True)
    assert compose(words).encoder.dim == 8
    first.write_text(f"{NOISE}dim: 10\n")
    assert compose(words).encoder.dim == 10
    first.unlink()
    assert compose(words).encoder.dim == 8


def test_a_node_of_the_store_that_was_replaced_is_taken_anew(own: Path) -> None:
    for dim in (3, 4):
        ConfigStore.instance().store(
            "stored_noise", {"_target_": "ima.models.encoders.controls.NoiseEncoder", "dim": dim}, group="encoder"
        )
        assert compose(["encoder=stored_noise"]).encoder.dim == dim
    del ConfigStore.instance().repo["encoder"]["stored_noise.yaml"]


def test_what_is_done_to_one_tree_is_not_seen_in_the_next() -> None:
    words = ["experiment=demo", "llm=tiny"]
    first, second = composed(*words), composed(*words)
    assert first == second
    with open_dict(first):
        first.encoder = None
        first.trainer.max_epochs = 77
        first.hydra.job.name = "another"
    assert composed(*words) == second != first


def test_trees_are_those_that_hydra_makes_from_files_that_it_reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = ["experiment=demo"], ["encoder=clip_large"], ["mixture=[image_caption,audio_qa]", "llm=tiny"]
    for words in [*lists, *lists]:
        known = OmegaConf.to_container(composed(*words), resolve=False)
        with monkeypatch.context() as patch:
            patch.setattr(remembered, "FILES", {})
            patch.setattr(remembered.TREES, "pop", lambda key, default: default)
            patch.setattr(hydra_private, "choices_if_needed", hydra_private.ALL_CHOICES)
            assert OmegaConf.to_container(composed(*words), resolve=False) == known


def test_a_list_of_files_may_name_the_choice_of_another_group(own: Path) -> None:
    """Only then Hydra's map of all choices is made."""
    text = "defaults:\n  - /noises@_here_: for_${adapter}\n  - _self_\nnum_tokens: 3\n"
    (own / "encoder" / "own.yaml").write_text(text)
    (own / "noises").mkdir()
    for number, adapter in enumerate(("mlp", "pool"), 5):
        (own / "noises" / f"for_{adapter}.yaml").write_text(f"{NOISE}dim: {number}\n")
        encoder = composed(f"hydra.searchpath=[file://{own}]", "encoder=own", f"adapter={adapter}").encoder
        assert (encoder.dim, encoder.num_tokens) == (number, 3)


def test_no_more_trees_are_kept_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_TREES", 2)
    for encoder in ("noise", "focus_vit", "clip_large"):
        compose([f"encoder={encoder}"])
    assert len(remembered.TREES) == 2
