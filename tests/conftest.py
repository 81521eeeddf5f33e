"""Environment and groups of the tests. What follows must be set before torch and the hub library are imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from launcher import Launcher

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core each: tiny models are not faster on more
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("WANDB_SILENT", "true")

REQUIRE_REAL = os.environ.get("IMA_REQUIRE_REAL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`real` tests run where the embedded models are; `stamps` tests also need Debian's pictures. Where models are
    required (`make test`), a missing one fails its tests by name; a machine that cannot have the pictures skips theirs,
    as the demo does there."""
    if not any("real" in item.keywords for item in items):
        return
    from ima.core.assets.registry import missing

    reasons = {line.split(":", 1)[0]: line for line in missing()}
    absent = {name: reasons.pop(name) for name in ("stamps", "scratch") if name in reasons}
    for item in items:
        lacking = [reason for name, reason in absent.items() if name in item.keywords]
        if lacking:
            item.add_marker(pytest.mark.skip(reason=f"not available here: {lacking[0]}"))
        elif "real" in item.keywords and reasons and not REQUIRE_REAL:
            item.add_marker(pytest.mark.skip(reason=f"not set up: {'; '.join(reasons)} (make setup)"))


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs of the scripts by one process that has imported everything."""
    started = Launcher(tmp_path_factory.mktemp("launcher"))
    yield started
    started.close()
