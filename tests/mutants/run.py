"""Mutants of `ima/`: one changed line each, and the tests that must fail because of it.

`python tests/mutants/run.py` (or `make mutants`) tells whether the tests still notice what they noticed when the list
was made, also after files moved or tests were thinned out. A mutant is a row of `mutants.tsv`: a piece of a line that
occurs exactly once below `ima/`, what it becomes, and the names of the tests that find it out (without `test_`). Files
are not named, so that code and tests may move. Each mutant is applied to a copy of the tree, its tests run there, and
the line is put back.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import queue
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("mutants.tsv")
ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".venv", ".git", "outputs", "wandb", "__pycache__", ".*_cache", "*.egg-info")
LIMIT_SECONDS = 600
FORKS = multiprocessing.get_context("forkserver")
# Must be set before the libraries are imported.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
LIBRARIES = ["torch", "transformers", "lightning.pytorch", "hydra", "scipy.stats", "pandas", "hypothesis", "pytest"]


@dataclass(frozen=True)
class Mutant:
    name: str
    original: str
    mutant: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    state: str  # killed, alive, not applicable
    note: str = ""


def read_table(path: Path = TABLE) -> list[Mutant]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Mutant(row["name"], row["original"], row["mutant"], tuple(row["tests"].split(","))) for row in rows]


def places(root: Path, text: str) -> list[Path]:
    """The files below ima/ that hold the text, one as often as it holds it."""
    return [path for path in sorted((root / "ima").rglob("*.py")) for _ in range(path.read_text("utf-8").count(text))]


def find_tests(root: Path, names: Iterable[str]) -> list[str]:
    """What pytest calls the tests of these names. Raises ValueError for a name that no file defines."""
    files = {path: path.read_text("utf-8") for path in sorted((root / "tests").rglob("test_*.py"))}
    found = []
    for name in names:
        define = re.compile(rf"^def test_{name}\(", re.MULTILINE)
        here = [f"{path.relative_to(root)}::test_{name}" for path, text in files.items() if define.search(text)]
        if not here:
            raise ValueError(f"no test is named test_{name}")
        found += here
    return list(dict.fromkeys(found))


def fault(root: Path, mutant: Mutant) -> str:
    """Why a mutant cannot be tried; empty where it can."""
    num = len(places(root, mutant.original))
    if num != 1:
        return f"its line is there {num} times: {mutant.original}"
    try:
        find_tests(root, mutant.tests)
    except ValueError as error:
        return str(error)
    return ""


def run_tests(root: Path, tests: Sequence[str], seconds: float = LIMIT_SECONDS) -> tuple[int, str]:
    """Exit code of pytest and the last lines of what it printed. Raises TimeoutError where it takes too long."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as said:
        process = FORKS.Process(target=pytest_in, args=(root, list(tests), said.name))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError
        return process.exitcode, "\n".join(said.read().strip().splitlines()[-12:])


def pytest_in(root: Path, tests: list[str], output: str) -> None:
    """Runs in a process of its own, forked from one that has imported the large libraries."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    sys.path[:0] = [str(root)]
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def try_mutant(root: Path, mutant: Mutant) -> Outcome:
    """`root` is a copy, in which the line is changed and put back."""
    if reason := fault(root, mutant):
        return Outcome(mutant, "not applicable", reason)
    (path,) = places(root, mutant.original)
    before = path.read_text("utf-8")
    try:
        write(path, before.replace(mutant.original, mutant.mutant))
        code, said = run_tests(root, find_tests(root, mutant.tests))
    except TimeoutError:
        return Outcome(mutant, "not applicable", f"its tests ran past {LIMIT_SECONDS} seconds")
    finally:
        write(path, before)
    if code in (0, 1):  # all passed, some failed
        return Outcome(mutant, "killed" if code else "alive")
    return Outcome(mutant, "not applicable", f"pytest ended with {code}:\n{said}")


def write(path: Path, text: str) -> None:
    """Also forgets the compiled file: two writes within a second may look the same to Python."""
    path.write_text(text, "utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def run(mutants: Sequence[Mutant], jobs: int) -> int:
    """Prints a line a mutant and returns the exit code: 0 where all are killed, else 1."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    FORKS.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for index in range(jobs):
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(index), ignore=LEFT_OUT)))
        names = dict.fromkeys(name for mutant in mutants if not fault(ROOT, mutant) for name in mutant.tests)
        if names:
            code, said = run_tests(Path(folder) / "0", find_tests(ROOT, names), LIMIT_SECONDS * len(names))
            if code:
                print(f"{said}\nthe tests fail without any mutant; mend them first")
                return 1

        def with_copy(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                return try_mutant(copy, mutant)
            finally:
                copies.put(copy)

        counts = {"killed": 0, "alive": 0, "not applicable": 0}
        with ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(with_copy, mutants):
                counts[outcome.state] += 1
                print(f"{outcome.state:15} {outcome.mutant.name:32} {outcome.note}".rstrip(), flush=True)
    print(f"{len(mutants)} mutants: {', '.join(f'{num} {state}' for state, num in counts.items())}")
    return int(counts["killed"] < len(mutants))


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--only", action="append", metavar="NAME", help="try this one; may be given several times")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at the same time")
    options = parser.parse_args()
    mutants = read_table()
    if unknown := set(options.only or ()) - {mutant.name for mutant in mutants}:
        parser.error(f"--only: no mutant is named {sorted(unknown)[0]!r}; --list shows the names")
    chosen = [mutant for mutant in mutants if not options.only or mutant.name in options.only]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}\n    {mutant.original}\n    {mutant.mutant}\n    {', '.join(mutant.tests)}")
        return 0
    return run(chosen, max(1, options.jobs))


if __name__ == "__main__":
    sys.exit(main())
