"""A run goes to the hub and comes back; without a token or a network its folder is written all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import HubServer, hub_server
from launcher import ROOT

from ima.cli.push import main, read
from ima.core.errors import UserError
from ima.runs.record import read_record, read_result

RUN = ROOT / "tests" / "artefacts" / "run"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


def call(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Its own process: addresses of the hub are read when its library is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=kept | env, capture_output=True, text=True, timeout=300
    )


def push(folder: Path, env: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    return call("-m", "ima", "push", f"checkpoint={RUN}", "repo=me/mine", f"out={folder}", *more, env=env)


READ = """
import json, sys
from ima.config.compose import compose, plain
from ima.runs.find import find_adapter
run, adapter = find_adapter(sys.argv[1])
print(json.dumps([str(run), adapter.name, plain(compose([f"checkpoint={sys.argv[1]}"], "evaluate"))]))
"""


def back(name: str, env: dict[str, str]) -> tuple[Path, str, dict[str, Any]]:
    """(folder, adapter's name, composed config of an evaluation)"""
    done = call("-c", READ, name, env=env)
    assert done.returncode == 0, done.stderr
    folder, adapter, config = json.loads(done.stdout.splitlines()[-1])
    return Path(folder), adapter, config


@pytest.mark.processes
def test_a_run_goes_up_and_comes_back(hub: HubServer, tmp_path: Path) -> None:
    done = push(tmp_path / "out", hub.env(tmp_path / "up"), "private=true", "license=mit")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[-1].startswith("uploaded: http://127.0.0.1:") and hub.private == {"me/mine": True}
    files = hub.repos["me/mine"]
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    }
    folder, adapter, config = back("hub:me/mine", hub.env(tmp_path / "down", token=None))
    assert (folder / adapter).read_bytes() == (RUN / "adapter.safetensors").read_bytes()
    _, _, here = back(str(RUN), hub.env(tmp_path / "down", token=None))
    for key in ("encoder", "adapter", "llm", "task", "data", "seed"):
        assert config[key] == here[key], key
    assert back("hub:me/mine@main", hub.env(tmp_path / "down"))[1] == adapter
    offline = hub.env(tmp_path / "down", token=None) | {"HF_HUB_OFFLINE": "1"}
    assert back("hub:me/mine", offline)[0] == folder, "from the cache"


@pytest.mark.processes
def test_an_evaluation_of_the_hubs_run_is_that_of_the_run_and_lies_in_outputs(hub: HubServer, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "up") | {"IMA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    assert push(tmp_path / "out", env).returncode == 0
    keys = ["alignment=none", "logger=none", f"output_dir={tmp_path}"]
    done = call("evaluate.py", "checkpoint=hub:me/mine", *keys, env=env)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("mine-evaluate-*")
    wanted = read_record(RUN).metrics
    assert read_record(folder).metrics["val/loss"] == pytest.approx(wanted["val/loss"], rel=1e-4)
    assert read_record(folder).metrics["T0/noun_accuracy"] == wanted["T0/noun_accuracy"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"HF_TOKEN": ""}, "no token"),
        ({"HF_HUB_OFFLINE": "1"}, "the hub is not asked"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub is not asked or not there"),
    ],
)
def test_without_token_or_network_the_folder_is_there(
    hub: HubServer, tmp_path: Path, env: dict[str, str], said: str
) -> None:
    done = push(tmp_path / "out", hub.env(tmp_path) | env)
    assert done.returncode == 0 and said in done.stdout.splitlines()[-1], done.stderr
    assert f"hf upload me/mine {tmp_path / 'out'}" in done.stdout and not hub.repos
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == (RUN / "adapter.safetensors").read_bytes()


@pytest.mark.processes
def test_what_cannot_be_had_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    for name, env, said in (
        ("hub:me/none", {}, "the hub has no hub:me/none"),
        ("hub:a/b/c", {}, "no name of the hub"),
        ("hub:me/none", {"HF_HUB_OFFLINE": "1"}, "offline=false asks it"),
    ):
        done = call("evaluate.py", f"checkpoint={name}", env=hub.env(tmp_path) | env)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and said in line, line
    hub.repos["me/empty"] = {"config.json": b"{}"}
    done = call("evaluate.py", "checkpoint=hub:me/empty", env=hub.env(tmp_path))
    assert done.returncode == 2 and "holds no run" in done.stderr
    refused = push(tmp_path / "out", hub.env(tmp_path, token="hf_wrong"))
    assert refused.returncode == 2 and "is whole" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_the_card_says_what_the_hub_reads_and_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([f"checkpoint={RUN}", "repo=me/mine", f"out={tmp_path}"]) == 0
    text = (tmp_path / "README.md").read_text()
    data = yaml.safe_load(text.split("---")[1])
    metrics = read_record(RUN).metrics
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("other", "ima", "image-to-text")
    (model,) = data["model-index"]
    found = {each["type"]: each for result in model["results"] for each in result["metrics"]}
    assert found["T0/noun_accuracy"]["value"] == metrics["T0/noun_accuracy"]
    low, high = metrics["T0/noun_accuracy/low"], metrics["T0/noun_accuracy/high"]
    assert found["T0/noun_accuracy"]["name"] == f"T0/noun_accuracy (95 %: {low:.3f} to {high:.3f})"
    assert "ima/mean" in found and "checkpoint=hub:me/mine" in text
    result = read_result(tmp_path)
    assert not result["machine"] and not result["git"] and "logger" not in result["config"]
    assert json.loads((tmp_path / "config.json").read_text()) == result["config"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["repo=me/mine"], "checkpoint: missing"),
        (["checkpoint=x"], "repo: missing"),
        (["checkpoint=x", "repo=a/b/c"], "no name of the hub"),
        (["checkpoint=x", "repo=me/mine", "private=1"], "true or false"),
        (["chekpoint=x"], "did you mean checkpoint"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(argv)


def test_a_run_that_has_not_ended_well_is_not_pushed(tmp_path: Path) -> None:
    record = read_record(RUN)
    record.status = "failed"
    record.write(tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="has not ended well"):
        main([f"checkpoint={tmp_path}", "repo=me/mine"])
