"""Runs the scripts many times and pays for their imports once: a process that has imported everything and forks.

Started by the tests as `python tests/launcher.py`; reads one JSON request a line. Each child is what `python train.py
...` is after its imports, with its own output, environment and, where a test asks for it, a death by SIGKILL at a given
call of a function. The page is not drawn unless asked (tests of the report do that).
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120.0  # after that something hangs


@dataclass
class Started:
    """A run under way."""

    launcher: Launcher
    pid: int
    out: Path
    err: Path

    def wait(self, seconds: float = SECONDS) -> int:
        """Exit code; minus the signal for one that was killed, -999 for one that has not ended after `seconds`."""
        return int(self.launcher.ask({"wait": self.pid, "seconds": seconds})["code"])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


class Launcher:
    """The tests' side. `folder`: where outputs of the children are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_started = 0
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "WANDB_ERROR_REPORTING": "false"}
        environment |= {"IMA_CACHE": str(folder / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self, script: str, argv: list[str], env: dict[str, str] | None = None, die: str | None = None, call: int = 1,
        patch: str | None = None, report: bool = False, cwd: Path = ROOT,
    ) -> Started:  # fmt: skip
        """die: dotted name of a function at whose `call`-th call the child kills itself, before it is run. patch:
        dotted name of a function without arguments that the child calls first."""
        self.num_started += 1
        out, err = (self.folder / f"{self.num_started:03d}.{kind}" for kind in ("out", "err"))
        request = {"script": script, "argv": argv, "env": env or {}, "die": die, "call": call, "patch": patch}
        answer = self.ask(request | {"report": report, "out": str(out), "err": str(err), "cwd": str(cwd)})
        return Started(self, answer["pid"], out, err)

    def run(self, script: str, argv: list[str], **options: Any) -> Done:
        started = self.start(script, argv, **options)
        code = started.wait()
        return Done(code, started.out.read_text(), started.err.read_text())

    def close(self) -> None:
        self.process.communicate(timeout=60)  # busy machines take their time to unload everything


# -- the launcher's own side -------------------------------------------------------------------------------------------


def die_at(dotted: str, call: int) -> None:
    owner, name = find(dotted)
    original: Callable[..., Any] = getattr(owner, name)
    num_calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


def find(dotted: str) -> tuple[Any, str]:
    """(module or class, attribute)."""
    path, _, name = dotted.rpartition(".")
    try:
        return importlib.import_module(path), name
    except ModuleNotFoundError:
        owner, inner = find(path)
        return getattr(owner, inner), name


def child(request: dict[str, Any]) -> int:
    for stream, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(request[stream], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = [str(ROOT / f"{request['script']}.py"), *request["argv"]]
    import ima.pipeline.run
    from ima.cli import sweep
    from ima.cli.scripts import run_script

    if not request["report"]:
        ima.pipeline.run.write_report = lambda folders: folders[0] / "report.html"  # type: ignore[assignment]
    if request["die"]:
        die_at(request["die"], request["call"])
    if request["patch"]:
        owner, name = find(request["patch"])
        getattr(owner, name)()
    return (
        sweep.main(request["argv"]) if request["script"] == "sweep" else run_script(request["script"], request["argv"])
    )


def serve() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import timm  # noqa: F401 (imported for the children)
    import transformers
    import wandb  # noqa: F401

    import ima.pipeline.run  # noqa: F401

    _ = transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(json.dumps({"code": wait(request["wait"], request["seconds"])}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(request)
            except SystemExit as leave:
                code = int(leave.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)


def wait(pid: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        select.select([], [], [], 0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -999


if __name__ == "__main__":
    serve()
