"""Environment and groups of the tests. What follows must be set before torch and the hub library are imported."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import groups
import pytest
from launcher import Launcher

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core each: tiny models are not faster on more
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if not os.environ.get("IMA_FUZZ_SEED"):  # workers inherit it
    os.environ["IMA_FUZZ_SEED"] = str(random.SystemRandom().randrange(2**32))
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("WANDB_SILENT", "true")

REQUIRE_REAL = os.environ.get("IMA_REQUIRE_REAL") == "1"
REQUIRE_ALL = os.environ.get("IMA_REQUIRE_ALL") == "1"  # `make test-all`: what cannot be had is a failure, not a skip
LEFT_OUT = pytest.StashKey[Counter[str]]()
SENT = "left_out_groups"  # by which name a worker of xdist sends its count


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    for name, (what, _) in groups.GROUPS.items():
        config.addinivalue_line("markers", f"{name}: {what}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever runs scripts by the launcher is of the group `processes`. `real` tests run where the embedded models
    are; `stamps` tests also need Debian's pictures. Where models are required (`make test`), a missing one fails its
    tests by name; a machine that cannot have the pictures skips theirs, as the demo does there."""
    for item in items:
        if "launcher" in getattr(item, "fixturenames", ()) and groups.group_of(item) is None:
            item.add_marker("processes")
    if REQUIRE_ALL or not any("real" in item.keywords for item in items):
        return
    from ima.core.assets.registry import missing

    reasons = {line.split(":", 1)[0]: line for line in missing()}
    absent = {name: reasons.pop(name) for name in ("stamps", "scratch") if name in reasons}
    for item in items:
        lacking = [name for name in absent if name in item.keywords]
        if lacking:
            reason = f"not available here: {absent[lacking[0]]} ({groups.NEEDS[lacking[0]]})"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif "real" in item.keywords and reasons and not REQUIRE_REAL:
            item.add_marker(pytest.mark.skip(reason=f"not set up: {'; '.join(reasons)} ({groups.NEEDS['real']})"))


# -- what was not run is said last, by whoever started the tests; workers of xdist send their count --------------------


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[LEFT_OUT].update(groups.counts(items))


def pytest_sessionfinish(session: pytest.Session) -> None:
    sent: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent[SENT] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects everything: the counts of one are those of all."""
    node.config.stash[LEFT_OUT] |= Counter(getattr(node, "workeroutput", {}).get(SENT, {}))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    yield
    skipped = Counter(groups.reason_of(report) for report in terminalreporter.stats.get("skipped", []))
    for kind in ("passed", "failed"):
        for report in terminalreporter.stats.get(kind, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == "said":
                    terminalreporter.write_line(str(value))
    for line in groups.last_lines(config.stash[LEFT_OUT], skipped):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Hydra's applications, run in this process, leave handlers that write to this test's closed streams."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(level)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs of the scripts by one process that has imported everything."""
    started = Launcher(tmp_path_factory.mktemp("launcher"))
    yield started
    started.close()
