"""A finished run as Python values: its config, metrics, rows and predictions, and its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ima.config.compose import compose, plain
from ima.core.errors import UserError
from ima.core.files import json_lines
from ima.core.trust import trusting
from ima.pipeline.api.models import LoadedModel, table
from ima.pipeline.assemble import assemble, device_of
from ima.pipeline.checkpoint import load_adapter, load_llm
from ima.pipeline.run import evaluate as run_evaluate
from ima.pipeline.run import evaluation_folder
from ima.pipeline.run import fit as run_fit
from ima.pipeline.stages import apply_stage
from ima.report.build import write_report
from ima.runs.find import PARTS, find_adapter, run_config, run_folder
from ima.runs.folders import run_name
from ima.runs.identity import with_dtype
from ima.runs.record import read_record, read_result
from ima.runs.results import read_rows

if TYPE_CHECKING:
    import pandas


class Run:
    """A run folder (outputs/<run>) or an evaluation's: its files as Python values, and its model."""

    def __init__(self, folder: str | Path, trust: Sequence[str] = ()) -> None:
        self.folder = run_folder(str(folder))
        self.checkpoint, self.trust = str(folder), tuple(trust)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json as it stands."""
        return read_result(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run, resolved; plain data."""
        return dict(self.result.get("config") or {})

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.result.get("metrics") or {})

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.result.get("facts") or {})

    @cached_property
    def rows(self) -> pandas.DataFrame:
        """rows.jsonl: one measured number a row (docs/alignment.md says what each column is)."""
        return table(read_rows(self.folder / "rows.jsonl"))

    @cached_property
    def predictions(self) -> pandas.DataFrame:
        """predictions.jsonl: one test example a row, with what the model said."""
        path = self.folder / "predictions.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: not there; the run has not ended yet")
        return table(line for _, line in json_lines(path))

    def load_model(self, device: str | None = None) -> LoadedModel:
        """The trained model, ready to answer. device: "cpu", "cuda", ...; as the run's trainer says where not given."""
        with trusting(self.trust, ask="ima.load_run(..., trust=['{}'])"):
            config = apply_stage(run_config(str(self.folder), PARTS), training=False)
            folder, adapter = find_adapter(self.checkpoint)
            config["llm"] = with_dtype(config["llm"], read_record(folder).facts, folder / "result.json")
            parts = assemble({**config, "intervention": {}, "alignment": None})
        load_adapter(adapter, parts.adapter)
        if parts.llm.trains != "none":
            load_llm(adapter, parts.llm)
            parts.llm.merge()
        place = torch.device(device) if device else device_of(parts.flags)
        model = parts.model(live=True).to(place).eval()
        return LoadedModel(folder.name, model, parts.streams)

    def report(self) -> Path:
        """Write the page again; its path."""
        return write_report([self.folder])


def load_run(folder: str | Path, trust: Sequence[str] = ()) -> Run:
    """A run folder or a file in it. trust: modules of yours that its config may name. Raises UserError where there is
    no run."""
    return Run(folder, trust)


def fit(overrides: Sequence[str] | Mapping[str, Any]) -> Run:
    """Train as `python train.py <overrides>` does, or with a config that `compose` has made; the run."""
    config = config_of(overrides, "train")
    if run_fit(config):
        raise UserError("the training did not end")
    return load_run(Path(config["output_dir"]) / run_name(config))


def evaluate(overrides: Sequence[str] | Mapping[str, Any]) -> Run:
    """Evaluate as `python evaluate.py <overrides>` does, or with a config that `compose` has made; the evaluation."""
    config = config_of(overrides, "evaluate")
    run_evaluate(config)
    return load_run(evaluation_folder(config))


def config_of(overrides: Sequence[str] | Mapping[str, Any], root: str) -> dict[str, Any]:
    if isinstance(overrides, dict):
        return dict(overrides)
    config: Any = overrides if isinstance(overrides, Mapping) else compose(list(overrides), root)
    return plain(config)
