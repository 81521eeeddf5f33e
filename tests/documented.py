"""The commands of README.md and docs/, and a checkout in which they run as written, on small parts.

The checkout is a copy whose files in conf/ ask for less: fewer samples, nouns and epochs, lists of sweeps cut short, a
random LLM of as many blocks in place of SmolLM2, no W&B. Nothing else differs, and no command is changed. `python` in
it is a small program that hands what it was called with to a process which has imported everything and forks: 80
commands pay for the imports once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ima.core.signatures import signature

ROOT = Path(__file__).resolve().parent.parent
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh", "console")
INLINE = re.compile(r"`((?:python|make|torchrun|pip|ima) [^`…]+)`")
STARTS = re.compile(r"(\w+=\S* )*(python|make|torchrun|srun|sbatch|pip|ima)\b")


# -- what is documented ------------------------------------------------------------------------------------------------


def documents() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def fenced(text: str) -> list[str]:
    """Of the blocks of a document each line; a loop, a continued line, an assignment with the line after it are one."""
    blocks = [block for language, block in FENCED.findall(text) if language in SHELL]
    return [command for block in blocks for command in statements(block)]


def inline() -> list[str]:
    """What stands in back-ticks in running text, commands and mere names of commands."""
    texts = [FENCED.sub("", text) for text in documents()]
    return unique(" ".join(command.split()) for text in texts for command in INLINE.findall(text))


def unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def statements(block: str) -> Iterator[str]:
    pending: list[str] = []
    for line in block.replace("\\\n", " ").splitlines():
        line = " ".join(re.sub(r"\s# .*$", "", line).removeprefix("$ ").split())
        inside = bool(pending)
        if not (inside or STARTS.match(line) or re.match(r"for |\w+=\S+$", line)):
            continue
        pending.append(line)
        opened = pending[0].startswith("for ") and line != "done"
        if not opened and not re.fullmatch(r"\w+=\S+", line):
            yield "\n".join(pending)
            pending = []


# -- a checkout of small parts -----------------------------------------------------------------------------------------

AT_MOST = {"num_train": 8, "num_val": 4, "num_test": 4, "num_t0": 4, "num_t1": 4, "num_t2": 4, "views": 1,
           "views_t0": 1, "views_t1": 1, "limit": 8, "eval_limit": 4, "max_epochs": 1, "num_scale_samples": 4,
           "num_reservoir": 4, "num_vocabulary_layers": 2, "num_tsne_layers": 1, "max_new_tokens": 4}  # fmt: skip
SOURCES = ("ima.data.stampworld.", "ima.data.shapes.", "ima.tasks.")
SMALL_LLM = {"_target_": "ima.models.llm.load.tiny", "family": "llama", "width": 16, "num_blocks": 30}
NOUNS = ["apple", "car", "cat", "dog"]  # of single stamps, whose number sets that of the pictures
LISTS = ("epochs", "runs", "checkpoint", "intervention.prune.run")


def smaller(node: Any) -> Any:
    """The same node, asking for less."""
    if isinstance(node, list):
        return [smaller(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: smaller(value) for key, value in node.items()}
    for key, value in out.items():
        if key in AT_MOST and isinstance(value, int):
            out[key] = min(value, AT_MOST[key])
        elif key in LISTS and isinstance(value, list):
            out[key] = value[:2] if key != "epochs" else value[:1]
    if out.get("nouns") == "few" and "views" in out:
        out["nouns"] = NOUNS
    target = str(out.get("_target_", ""))
    if target.startswith("ima.models.llm.load.smollm2"):
        return SMALL_LLM | {key: out[key] for key in ("seed",) if key in out}
    if target.startswith(SOURCES):
        known = signature(target).parameters
        out |= {key: most for key, most in AT_MOST.items() if key in known and key not in out}
        if "nouns" in known:
            out["nouns"] = NOUNS if target.endswith(".StampSingle") else "few"
    return out


def shorter(sweeper: dict[str, Any]) -> dict[str, Any]:
    """A sweep with two values of its first list, one of each other, two of its points and of their evaluations, far
    apart."""
    out = dict(sweeper)
    if "params" in out:
        out["params"] = {key: value[: 1 if at else 2] for at, (key, value) in enumerate(out["params"].items())}
    if "points" in out:
        out["points"] = out["points"][:: (len(out["points"]) + 1) // 2]
        kept = {text for point in out["points"] for text in point}
        of_these = [each for each in out.get("evaluations") or [] if each.get("of") in kept]
        if of_these:
            out["evaluations"] = of_these[:: (len(of_these) + 1) // 2]
    return out


def shrink(conf: Path) -> None:
    for path in conf.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        head = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
        node = smaller(yaml.safe_load(text) or {})
        if "sweeper" in node.get("hydra", {}):
            node["hydra"]["sweeper"] = shorter(node["hydra"]["sweeper"])
        if path.name == "train.yaml":
            node["defaults"] = [
                {"logger": "none"} if item == {"logger": "offline"} else item for item in node["defaults"]
            ]
        path.write_text(head + (yaml.safe_dump(node, sort_keys=False) if node else ""), encoding="utf-8")


SECONDS = 900  # after that a command hangs, also on a busy machine


@dataclass
class Done:
    code: int
    text: str


class Place:
    """A checkout of small parts at `folder`, and the process that runs its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ima", "conf", "docs", "tests"):
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
        for path in ROOT.iterdir():
            if path.is_file() and path.name != ".git":
                shutil.copy(path, folder)
        shrink(folder / "conf")
        self.bin = folder / ".venv" / "bin"
        self.bin.mkdir(parents=True)
        self.socket = folder / ".venv" / "socket"
        for name in ("python", "python3"):
            (self.bin / name).write_text(SHIM.format(python=sys.executable, socket=str(self.socket), alone=ALONE))
            (self.bin / name).chmod(0o755)
        self._set_up()
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "tests/documented.py"), str(self.socket), str(folder)],
            cwd=folder, env=self.environment() | {"PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdout.readline().strip() == "ready"

    def _set_up(self) -> None:
        """As `make setup` leaves it: its record, and a cache of its own with the embedded models and pictures."""
        from ima.cli.install import fingerprint
        from ima.core.cache import cache_dir

        record = {"fingerprint": fingerprint(), "root": str(self.folder), "assets": str(self.folder / "cache")}
        (self.folder / ".venv/.ima-setup.json").write_text(json.dumps(record))
        (self.folder / ".venv/pyvenv.cfg").write_text("")
        (self.folder / "cache").mkdir()
        for path in cache_dir().glob("*"):
            if path.name not in ("features", "masks", "calibration", "locks"):
                (self.folder / "cache" / path.name).symlink_to(path)

    def environment(self) -> dict[str, str]:
        own = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "IMA_CACHE": str(self.folder / "cache")}
        own |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        own |= {"WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **own}

    def run(self, command: str, draw: bool = False, **more: str) -> Done:
        """By bash, as a person types it. draw: pages of runs and sweeps too, which take four times as long as the
        rest. more: of the environment; libraries read it when they are imported, so that `python` is then a process
        of its own."""
        own = self.environment() | more | ({ALONE: "1"} if more else {}) | ({} if draw else {NO_PAGES: "1"})
        shell = subprocess.Popen(
            ["bash", "-c", command], cwd=self.folder, env=own, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = shell.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)  # the processes that the server made for it see that and end
            said = f"no end after {SECONDS} s\n{shell.communicate()[0]}"
        return Done(shell.returncode, said)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


# -- `python` in it ----------------------------------------------------------------------------------------------------

ALONE, NO_PAGES = "IMA_DOCS_ALONE", "IMA_DOCS_NO_PAGES"
SHIM = """#!{python} -IS
import json, os, socket, sys
if {alone!r} in os.environ:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as line:
    line.connect({socket!r})
    call = dict(argv=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ), me=sys.argv[0])
    socket.send_fds(line, [b"f"], [0, 1, 2])
    line.sendall(json.dumps(call).encode() + b"\\n")
    code = line.makefile().readline()
sys.exit(int(code) if code else 137)
"""


def serve(address: str, place: Path) -> None:
    """Fork for every call; the child is what `python ARGUMENTS` is after its imports."""
    sys.path.remove(str(place / "tests"))
    import timm  # noqa: F401 (imported for the children)
    import transformers
    import wandb  # noqa: F401

    import ima.cli.masks
    import ima.pipeline.run
    import ima.sweep.run  # noqa: F401

    assert Path(ima.cli.masks.__file__).is_relative_to(place), "this checkout, not the one that is installed"
    _ = transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while True:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(line)
            line.close()


def answer(line: socket.socket) -> None:
    """In the child; does not return."""
    _, files, _, _ = socket.recv_fds(line, 1, 3)
    call = json.loads(line.makefile().readline())
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.setsid()
    threading.Thread(target=end_with, args=(line,), daemon=True).start()
    os.environ.clear()
    os.environ.update(call["env"])
    os.chdir(call["cwd"])
    code = 1
    with contextlib.suppress(BaseException):
        code = run(call["me"], call["argv"])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    with contextlib.suppress(OSError):
        line.sendall(f"{code}\n".encode())
    os._exit(code)


def end_with(line: socket.socket) -> None:
    """Kill this process and what it started when whoever called it has been killed."""
    with contextlib.suppress(OSError):
        line.recv(1)
    os.killpg(0, signal.SIGKILL)


def run(me: str, argv: list[str]) -> int:
    """The exit code of `python ARGUMENTS`."""
    if NO_PAGES in os.environ:
        import ima.pipeline.run
        import ima.sweep.run

        ima.pipeline.run.write_report = lambda folders: folders[0] / "report.html"  # type: ignore[assignment]
        ima.sweep.run.write_report = lambda folders, out: out  # type: ignore[assignment]
    sys.executable = me if os.path.isabs(me) else str(Path.cwd() / me)
    first = argv[0] if argv else ""
    if first not in ("-m", "-c") and not first.endswith(".py"):
        os.execv(os.path.realpath(sys._base_executable), ["python", *argv])  # type: ignore[attr-defined]
    try:
        if first == "-c":
            sys.argv = ["-c", *argv[2:]]
            exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as leave:
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        return int(leave.code or 0) if not isinstance(leave.code, str) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def options(text: str, names: Mapping[str, str]) -> str:
    """A command with its placeholders replaced."""
    for name, value in names.items():
        text = text.replace(name, value)
    return text


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
