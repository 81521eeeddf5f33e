"""Weights and model folders that somebody else planted: pickles, and code of a model's own. Nothing of them runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launcher import Launcher
from planted import TINY, Pickled, one_line, write_code, write_pickle

from ima.core.errors import UserError


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


# -- pickles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth"])
def test_a_planted_projector_is_not_unpickled(name: str, tmp_path: Path, canary: Path, launcher: Launcher) -> None:
    path = write_pickle(tmp_path / name, canary)
    done = launcher.run("train", [*TINY, f"init={path}", f"output_dir={tmp_path}", "name=x"])
    assert done.code == 2 and not canary.exists()
    one_line(done.stderr.splitlines()[-1] + "\n", str(path), "cannot be read as weights")


def test_planted_weights_of_encoders_are_not_unpickled(tmp_path: Path, canary: Path) -> None:
    from ima.models.encoders.image import TimmImage
    from ima.models.encoders.weights import aisfx_weights

    for read in (lambda path: TimmImage("resnet10t", checkpoint=str(path)), aisfx_weights):
        with pytest.raises(UserError) as caught:
            read(write_pickle(tmp_path / "w.pth", canary))
        assert "\n" not in str(caught.value) and not canary.exists()


def test_pickles_beside_data_are_not_read(tmp_path: Path, canary: Path) -> None:
    """Nor is the loading script that the library once ran."""
    from ima.data.corpora.hub import HubCaptions

    folder = tmp_path / "corpus"
    write_code(folder, "corpus", canary)
    (folder / "train.pkl").write_bytes(pickle.dumps(Pickled(canary)))
    for splits in (None, {"train": "train*"}, {"train": "*.py"}):
        with pytest.raises(UserError):
            HubCaptions(str(folder), "image", "image", "caption", splits=splits)
    assert not canary.exists()


# -- model folders -----------------------------------------------------------------------------------------------------

REMOTE = """
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class C(PretrainedConfig):
    model_type = "planted"
class M(PreTrainedModel):
    config_class = C
class T(PreTrainedTokenizerFast):
    pass
"""
AUTO = {name: "planted_code.M" for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")}
AUTO |= {"AutoConfig": "planted_code.C", "AutoProcessor": "planted_code.T", "AutoFeatureExtractor": "planted_code.T"}
AUTO_TOKENIZER = {"AutoTokenizer": ["planted_code.T", "planted_code.T"]}


def model_folder(folder: Path, canary: Path, **facts: Any) -> Path:
    write_code(folder, "planted_code", canary, REMOTE)
    (folder / "config.json").write_text(json.dumps({"model_type": "planted", "auto_map": AUTO} | facts))
    for name in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        tokenizer = {"auto_map": AUTO_TOKENIZER | AUTO, "tokenizer_class": "T", "processor_class": "T"}
        (folder / name).write_text(json.dumps(tokenizer))
    return folder


def loaders() -> dict[str, Callable[[str], Any]]:
    from ima.models import hf_multimodal
    from ima.models.encoders.hf_audio import AudioTransformer
    from ima.models.encoders.hf_video import VideoTransformer
    from ima.models.encoders.llava import LlavaTower
    from ima.models.llm import load

    return {"llm": load.hf, "random": lambda path: load.hf(path, pretrained=False), "lmm": hf_multimodal.hf,
            "audio": AudioTransformer, "video": VideoTransformer, "llava": LlavaTower}  # fmt: skip


@pytest.mark.parametrize("kind", ["llm", "random", "lmm", "audio", "video", "llava"])
@pytest.mark.parametrize("stock", [None, "clap", "llava", "videomae"])
def test_code_in_a_model_folder_is_never_run(
    kind: str, stock: str | None, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by a person who says yes at the prompt. stock: the config is of a known type, all else is planted."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = model_folder(tmp_path / "model", canary, **({"model_type": stock} if stock else {}))
    with pytest.raises(UserError) as caught:
        loaders()[kind](str(folder))
    assert not canary.exists() and "\n" not in str(caught.value) and str(folder) in str(caught.value)
    if stock is None:
        assert "it needs Python code of its own (auto_map), which is never run" in str(caught.value)


def test_a_known_type_loads_as_transformers_has_it_whatever_lies_beside_it(tmp_path: Path, canary: Path) -> None:
    from ima.models.llm.facts import llm_facts as known
    from ima.models.llm.load import hf
    from ima.models.llm.tiny import tiny_model, tiny_tokenizer

    folder, tokenizer = tmp_path / "model", tiny_tokenizer(())
    tiny_model("llama", 32, 2, 0, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_code(folder, "planted_code", canary, REMOTE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO}))
    write_code(folder / "custom_generate", "generate", canary)
    assert hf(str(folder)).model.config.model_type == "llama"
    assert known({"_target_": "ima.models.llm.load.hf", "path": str(folder)}) is not None
    assert not canary.exists()


def test_a_training_on_a_model_folder_with_code_ends_in_a_line(
    tmp_path: Path, canary: Path, launcher: Launcher
) -> None:
    folder = model_folder(tmp_path / "model", canary)
    done = launcher.run("train", [*TINY, "llm=hf", f"llm.path={folder}", f"output_dir={tmp_path}", "name=x"])
    assert done.code == 2 and not canary.exists(), done.stderr
    one_line(done.stderr.splitlines()[-1] + "\n", str(folder), "never run")


def test_every_load_of_a_model_folder_says_that_nothing_remote_is_trusted() -> None:
    """By the source: a new call without it would ask at a terminal."""
    import ast

    package = Path(__file__).resolve().parents[2] / "ima"
    # folders and configs that this project writes itself
    own = {f"models/llm/{name}.py" for name in ("embedded", "gemma", "tiny")}
    found = 0
    for path in sorted(package.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            name, place = call.func.attr, ast.unparse(call.func.value)
            if name not in ("from_pretrained", "from_config", "load") and place != "pickle":
                continue
            text = ast.unparse(call)
            if name in ("from_pretrained", "from_config") and str(path.relative_to(package)) not in own:
                assert "**STOCK" in text, f"{path}:{call.lineno}"
                found += 1
            if text.startswith(("torch.load(", "torch.jit.load(", "pickle.", "yaml.load(")):
                assert "weights_only=True" in text, f"{path}:{call.lineno}"
            if text.startswith("np.load("):
                assert "allow_pickle=True" not in text, f"{path}:{call.lineno}"
    assert found >= 10
