"""Environment and groups of the tests. What follows must be set before torch and the hub library are imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
from launcher import Launcher

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("WANDB_SILENT", "true")

REQUIRE_REAL = os.environ.get("IMA_REQUIRE_REAL") == "1"


def missing_assets() -> str:
    """Why the `real` tests cannot run here; empty when they can."""
    if importlib.util.find_spec("ima.assets") is None:
        return "ima.assets is not there"
    from ima import assets

    check = getattr(assets, "missing", None)
    return ", ".join(check()) if check is not None else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    real = [item for item in items if "real" in item.keywords]
    if not real or REQUIRE_REAL:
        return  # required: a missing part fails its tests by name instead of hiding them
    if reason := missing_assets():
        for item in real:
            item.add_marker(pytest.mark.skip(reason=f"not set up: {reason} (make setup)"))


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs of the scripts by one process that has imported everything."""
    started = Launcher(tmp_path_factory.mktemp("launcher"))
    yield started
    started.close()
