"""The `_target_` of loader, alignment, stage and mixture entries: classes of one's own are made like all others."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ima.config.compose import compose
from ima.config.instantiation import alignment_of, flags_of, loader_of
from ima.config.settings import Alignment, Entry, Loader, Stage
from ima.core.errors import UserError
from ima.pipeline.assemble import assemble, entries_of
from ima.pipeline.stages import apply_stage, stage_configs
from ima.runs.identity import config_hash

HERE = "test_settings_targets"
TINY = ["llm=tiny", "data=shapes", "data.num_train=20", "data.num_test=6", "adapter.hidden=16", "adapter.grid=1",
        "trainer.accelerator=cpu", "loader.batch_size=6", "task.max_new_tokens=4", "logger=none", "seed=7",
        "encoder=noise", "encoder.dim=8", "encoder.num_tokens=4"]  # fmt: skip
SHAPES = "{_target_: ima.data.shapes.Shapes, num_train: 20, num_test: 6}"
CAPTION = "{_target_: ima.tasks.caption.CaptionTask, max_new_tokens: 4}"


@dataclasses.dataclass(frozen=True)
class Patient(Loader):
    """As Loader, with batches twice as large, by a key of its own."""

    patience: int = 2

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"patience: {self.patience}; give 1 or more")
        object.__setattr__(self, "batch_size", self.batch_size * self.patience)


@dataclasses.dataclass(frozen=True)
class FewEntry(Entry):
    """An entry that takes a share of the limit that is given."""

    share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", int(20 * self.share))


@dataclasses.dataclass(frozen=True)
class ClippedStage(Stage):
    """A stage that sets one more key of the trainer."""

    lr: float | None = 1e-4
    gradient_clip_val: float | None = None


@dataclasses.dataclass(frozen=True)
class LastLayers(Alignment):
    layers: tuple[int, ...] | None = (1, 2)


class Own:
    """Compatible without deriving: it has every attribute of Loader."""

    def __init__(self, temperature: float = 1e-3) -> None:
        self.__dict__.update(dataclasses.asdict(Loader(batch_size=3, temperature=temperature)))


def config_of(*overrides: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(compose([*TINY, *overrides]))
    return dict(plain)


def test_a_loader_of_ones_own_is_made_and_its_keys_are_checked() -> None:
    config = config_of(
        f"loader._target_={HERE}.Patient", "loader.patience=3", "loader.batch_size=2", "evaluation.tracks=[T0]"
    )
    found = loader_of(config)
    assert isinstance(found, Patient) and found.batch_size == 6
    assert assemble(config).loader == found and assemble(config).evaluation.tracks == ("T0",)
    with pytest.raises(UserError, match=r"no 'patienze' in loader; did you mean patience"):
        config_of(f"loader._target_={HERE}.Patient", "loader.patienze=3")
    with pytest.raises(UserError, match=r"loader\.temperature: 0\.0 is out of range"):
        config_of(f"loader._target_={HERE}.Patient", "loader.temperature=0.0")


def test_what_it_refuses_is_one_line_with_its_key() -> None:
    with pytest.raises(UserError, match=r"^loader\.patience: 0; give 1 or more$"):
        loader_of(config_of(f"loader._target_={HERE}.Patient", "loader.patience=0"))


def test_a_class_with_the_same_attributes_will_do_and_another_is_refused() -> None:
    compatible = loader_of({"loader": {"_target_": f"{HERE}.Own", "temperature": 0.5}})
    assert isinstance(compatible, Own) and (compatible.temperature, compatible.batch_size) == (0.5, 3)
    with pytest.raises(UserError, match=r"^loader\._target_: 'ima.config.settings.Stage' makes nothing with .*Loader$"):
        loader_of({"loader": {"_target_": "ima.config.settings.Stage"}})


def test_alignment_entries_and_stages_of_ones_own_are_made() -> None:
    assert alignment_of(config_of(f"alignment._target_={HERE}.LastLayers")) == LastLayers(sites=("resid_post",))
    node = f"{{_target_: {HERE}.FewEntry, data: {SHAPES}, task: {CAPTION}, share: 0.25}}"
    config = config_of(f"mixture={{few: {node}}}")
    assert isinstance(entries_of(config)["mixture.few."], FewEntry)
    assert len(assemble(config).streams[0].all_samples("train")) == 5
    staged = config_of(f"stage={{one: {{_target_: {HERE}.ClippedStage, gradient_clip_val: 0.25}}}}")
    (_, only), = stage_configs(staged, "run")  # fmt: skip
    found = apply_stage(only)
    assert (found["optimizer"]["lr"], flags_of(found).gradient_clip_val, flags_of(found).max_epochs) == (1e-4, 0.25, 6)


def test_nodes_without_a_target_and_special_keys_are_what_they_were() -> None:
    assert loader_of({"loader": {"batch_size": 2}}) == Loader(batch_size=2)
    node = {"_target_": "ima.config.settings.Loader", "_partial_": True, "batch_size": 2}
    assert loader_of({"loader": node}) == Loader(batch_size=2)


def test_a_class_of_ones_own_is_another_run() -> None:
    hashes = {config_hash(config_of(*more)) for more in ([], [f"loader._target_={HERE}.Patient"])}
    assert len(hashes) == 2


def test_a_run_folder_names_no_loader_that_nobody_named_here(tmp_path: Path) -> None:
    from ima.core.files import write_json

    config = config_of(f"loader._target_={HERE}.Patient")
    write_json(tmp_path / "result.json", {"status": "ok", "config": config, "metrics": {}, "facts": {}})
    with pytest.raises(UserError, match=rf"loader\._target_: '{HERE}.Patient' is named neither"):
        compose([f"checkpoint={tmp_path}"], "evaluate")
    trusted = compose([f"checkpoint={tmp_path}", f"trust=[{HERE}]"], "evaluate")
    assert trusted.loader._target_ == f"{HERE}.Patient"


# -- draws -------------------------------------------------------------------------------------------------------------


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def weights(config: dict[str, Any]) -> list[torch.Tensor]:
    return [value.clone() for value in assemble(config).adapter.state_dict().values()]


def test_assembling_draws_from_the_runs_seed_and_leaves_the_callers_draws_alone() -> None:
    config = config_of()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first = weights(config)
    assert draws() == expected
    assert all(map(torch.equal, first, weights(config)))
    assert not all(map(torch.equal, first, weights(config_of("seed=8"))))


def test_initial_weights_are_those_that_a_seeded_process_draws() -> None:
    import lightning.pytorch as pl

    from ima.pipeline.assemble import build_channels, build_encoders

    config = config_of()
    parts = assemble(config)
    pl.seed_everything(config["seed"], verbose=False)
    by_hand = build_channels(config, build_encoders(config), parts.llm)[""].adapter.state_dict()
    assert all(torch.equal(value, by_hand[name]) for name, value in parts.adapter.state_dict().items())
