"""`offline`: who decides whether the hub is asked, and that nobody is asked where nothing of it is wanted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ima.config.compose import compose, plain
from ima.config.hub_names import hub_names
from ima.core import network
from ima.core.network import VARIABLE, hint, settle


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # so that it is put back
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("offline", "before", "names", "online", "after"),
    [
        ("auto", None, [], True, "1"),
        ("auto", None, ["a/b"], True, "0"),
        ("auto", None, ["a/b"], False, "1"),
        ("auto", "0", [], False, "0"),
        ("auto", "1", ["a/b"], True, "1"),
        (None, None, ["a/b"], True, "0"),
        (True, "0", ["a/b"], True, "1"),
        (False, "1", [], False, "0"),
        ("false", None, [], False, "0"),
    ],
)
def test_who_decides(
    offline: str | bool | None, before: str | None, names: list[str], online: bool, after: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import huggingface_hub.constants

    monkeypatch.setattr(network, "is_online", lambda: online)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    settle(offline, names)
    assert os.environ[VARIABLE] == after
    if before is None or offline != "auto":
        assert huggingface_hub.constants.HF_HUB_OFFLINE is (after == "1"), "also where it was imported before"


def test_a_machine_is_online_where_the_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert network.is_online()
    assert not network.is_online()


def test_the_hint_names_the_switch_only_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    assert "offline=false" in hint()
    monkeypatch.setenv(VARIABLE, "0")
    assert hint() == ""


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], []),
        (["llm=opt_350m"], ["facebook/opt-350m"]),
        (["encoder=clip_large"], ["timm/vit_large_patch14_clip_224.openai"]),
        (["encoder=clip_large", "encoder.pretrained=false"], []),
        (["encoder=videomae", "llm=pythia"], ["MCG-NJU/videomae-large", "EleutherAI/pythia-6.9b"]),
        (["init=hub:me/mine"], ["me/mine"]),
        (["data=hf_caption", "data.path=some/table"], ["some/table"]),
        (["llm=hf", "llm.path=tests"], []),
    ],
)
def test_what_a_config_wants_of_the_hub(overrides: list[str], names: list[str]) -> None:
    assert hub_names(plain(compose(overrides))) == names


def test_what_the_cache_has_is_not_wanted(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--facebook--opt-350m" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub_names(plain(compose(["llm=opt_350m"]))) == []
