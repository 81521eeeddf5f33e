"""The doctor tells what a config needs against what is there: near enough, in seconds, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ima.cli import doctor, llm_sizes
from ima.cli.doctor import downloads, encoder_tokens, hub_folder, needs, report
from ima.cli.llm_sizes import EMBEDDED, PUBLISHED, llm_size
from ima.cli.memory import GIB, Size, Training, training_memory
from ima.config.compose import CONF, choices_of, compose

ROOT = Path(__file__).resolve().parents[2]
# As published: billions of weights.
KNOWN = {"llama2": 6.74, "llama3": 8.03, "mistral": 7.25, "vicuna": 6.74, "phi3": 3.82, "pythia": 6.86, "opt": 6.66,
         "opt_350m": 0.331, "qwen2_5": 7.62, "qwen3": 8.19, "smollm3": 3.08, "gemma3": 3.88}  # fmt: skip


def config_of(*overrides: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(compose(list(overrides)))
    return dict(plain)


@pytest.mark.parametrize("choice", KNOWN)
def test_sizes_of_choices_that_are_not_here_are_near_the_published_ones(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_sizes, "hub_folder", lambda name: None)
    size = llm_size(config_of(f"llm={choice}")["llm"])
    assert size is not None and size.num_weights / 1e9 == pytest.approx(KNOWN[choice], rel=0.1)


def test_every_checkpoint_that_a_choice_names_has_a_size() -> None:
    texts = [path.read_text() for path in (CONF / "llm").glob("*.yaml")]
    assert {name for text in texts for name in re.findall(r"^path: (\S+/\S+)$", text, re.MULTILINE)} == set(PUBLISHED)


def test_the_embedded_model_has_the_weights_that_it_has() -> None:
    assert EMBEDDED["smollm2"].num_weights == pytest.approx(134_515_008, rel=0.01)


def test_a_local_config_is_better_than_the_table(tmp_path: Path) -> None:
    facts = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 100, "num_attention_heads": 8,
             "num_key_value_heads": 2, "vocab_size": 500}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert llm_size({"_target_": "ima.models.llm.load.hf", "path": str(tmp_path)}) == Size(3, 64, 100, 500, 0.25)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": facts}))
    assert llm_size({"_target_": "ima.models.llm.load.hf", "path": str(tmp_path)}) == Size(3, 64, 100, 500, 0.25)


def test_a_model_in_the_hub_cache_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert downloads(config_of("llm=vicuna")) == ["llm: hf download lmsys/vicuna-7b-v1.5"]
    snapshot = tmp_path / "models--lmsys--vicuna-7b-v1.5" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub_folder("lmsys/vicuna-7b-v1.5") == snapshot and downloads(config_of("llm=vicuna")) == []
    assert "encoder" in downloads(config_of("encoder=clip_large"))[0]
    assert downloads(config_of("encoder=noise")) == []


def test_more_samples_and_larger_batches_need_more() -> None:
    small = needs(config_of("data=shapes", "data.num_train=100", "data.num_test=1"))
    large = needs(config_of("data=shapes", "data.num_train=1000", "data.num_test=1", "loader.batch_size=32"))
    for name in ("activations", "feature cache"):
        assert (large[name] or 0) > (small[name] or 0) > 0
    assert small["LLM weights"] == large["LLM weights"]
    assert needs(config_of("encoder=noise"))["feature cache"] is None


# Peaks that were measured: Vicuna-7B's shapes, 16 x (576 + 48) tokens in bf16 on an H100.
PEAKS = {(False, 1.0): 53.5, (True, 1.0): 41.6, (True, 0.5): 27.7, (True, 0.3): 23.7}


@pytest.mark.parametrize(("compiled", "budget"), PEAKS)
def test_memory_of_a_step_is_near_the_measured_peak(compiled: bool, budget: float) -> None:
    how = Training(16, 624, 32, 2, compiled=compiled, budget=budget)
    found = sum(training_memory(PUBLISHED["lmsys/vicuna-7b-v1.5"], how).values()) / GIB
    assert found == pytest.approx(PEAKS[compiled, budget], rel=0.15)


def test_what_learns_needs_gradients_and_two_moments_that_shards_share() -> None:
    size = PUBLISHED["lmsys/vicuna-7b-v1.5"]
    plain, lora, whole, shared = (
        training_memory(size, Training(16, 624, 32, each, train, shards=shards))
        for each, train, shards in ((2, "none", 1), (2, "lora", 1), (4, "all", 1), (4, "all", 8))
    )
    assert plain["gradients"] == plain["optimizer"] == 0 < lora["optimizer"] == 2 * lora["gradients"]
    assert whole["LLM weights"] == whole["gradients"] == whole["optimizer"] / 2 == 8 * shared["gradients"]
    assert shared["activations"] == whole["activations"] > 2 * plain["activations"]
    # peft's count for rank 16 at all linear maps of Vicuna-7B
    assert lora["gradients"] / 4 == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))


def test_the_doctor_says_which_budget_fits_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("llm=vicuna", "trainer=gpu", "loader.batch_size=32", "encoder=clip_large", "adapter=mlp")
    for free, said in ((80, ""), (36, "llm.activation_budget=0.5 fits"), (10, "a smaller llm, fewer rows")):
        card = [("RAM", 2e12, 2e12), ("card", free * GIB, free * GIB)]
        monkeypatch.setattr(doctor, "devices", lambda card=card: card)
        lines = [line for line in report(config)[0] if "memory needed" in line]
        assert len(lines) == bool(said) and all(said in line for line in lines)


def test_what_cannot_run_here_is_said_and_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: [("RAM", 8e9, 4e9)])
    monkeypatch.setattr(doctor, "missing", lambda: ["stamps: not fetched", "aisfx: not installed"])
    monkeypatch.setattr(doctor, "hub_folder", lambda name: None)
    lines, ready = report(config_of("llm=llama2", "trainer=gpu"))
    problems = [line for line in lines if line.startswith("problem")]
    assert not ready and len(problems) == 4, problems
    for line, named in zip(problems, ("trainer.accelerator", "memory needed", "hf download", "stamps"), strict=True):
        assert named in line
    assert report(config_of("data=shapes"))[1]
    assert doctor.main(["llm=llama2"]) == 1 and doctor.main(["lm=llama2"]) == 2
    assert "error: lm" in capsys.readouterr().err


def test_a_folder_that_is_not_there_and_a_wrong_track_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "downloads", lambda config: [])
    monkeypatch.setattr(doctor, "missing", lambda: [])
    monkeypatch.setattr(doctor, "devices", lambda: [("RAM", 8e12, 4e12)])
    for words, said in (
        (["experiment=published_coco", "data.folder=nowhere"], "data.folder: nowhere is not there"),
        (["data=shapes", "evaluation.tracks=[T7]"], "evaluation.tracks"),
    ):
        lines, ready = report(config_of(*words))
        (problem,) = [line for line in lines if line.startswith("problem")]
        assert said in problem and not ready


@pytest.mark.parametrize("choice", [name for name in choices_of("encoder", CONF) if encoder_tokens(name)])
def test_encoders_state_tokens_and_width(choice: str) -> None:
    tokens, width = encoder_tokens(choice) or (0, 0)
    assert 0 < tokens < 5000 and 300 < width < 5000


def test_no_torch_is_imported() -> None:
    code = "import sys, ima.cli.doctor; ima.cli.doctor.main(['data=shapes']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


GPU_PAGE = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
TABLE = re.findall(
    r"^\| `(experiment=[^`]+)`.*?\| ([\d.]+) \| ([\d.]*) ?\| ([\d.]+) \| (\d+) \|$", GPU_PAGE, re.MULTILINE
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_table_of_the_gpu_page_is_what_it_adds_up(row: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "hub_folder", lambda name: None)
    command, weights, learning, activations, total = row
    found = needs(config_of(*command.split()))
    of = {name: (found.get(name) or 0) / 1e9 for name in ("LLM weights", "gradients", "optimizer", "activations")}
    wanted = [float(weights), float(learning or 0), float(activations), int(total)]
    assert [round(of["LLM weights"], 1), round(of["gradients"] + of["optimizer"], 1), round(of["activations"], 1),
            round(sum(of.values()))] == wanted  # fmt: skip


def test_readme_takes_its_numbers_from_that_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## What fits on which GPU")[1].split("\n\n")[1]
    cells = [line.split("|")[-2] for line in readme.splitlines()[2:]]
    named = {number for cell in cells for number in re.findall(r"\d+", cell)}
    assert len(TABLE) == 10 and named and named <= {row[-1] for row in TABLE}
