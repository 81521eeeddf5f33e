"""The rule of docs/architecture.md over the source of ima/: which room may import which, checked by `make lint`.

A room imports only rooms further down; rooms of one floor do not know each other. No module of ima is imported inside a
function except in cli and `ima/__init__`, no two modules import each other in a circle, and heavy libraries stay in the
rooms that need them. Reads the source only; nothing is imported. `python tests/rooms.py` prints what breaks the rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the top down; rooms of one line do not know each other.
FLOORS = (
    ("cli",),
    ("sweep",),
    ("pipeline",),
    ("alignment", "interventions", "report"),
    ("data",),
    ("models", "tasks", "config"),
    ("runs",),
    ("core",),
)
HEIGHT = {room: len(FLOORS) - floor for floor, rooms in enumerate(FLOORS) for room in rooms}
OPEN = ("cli", "__init__", "__main__")  # may import inside functions: commands and the lazy public API
# Library -> rooms that may import it at all; the second: rooms that may import it inside functions only.
LIBRARIES: dict[str, tuple[set[str], set[str]]] = {
    "torch": ({"models", "data", "alignment", "interventions", "pipeline", "cli"}, {"core"}),
    "transformers": ({"models", "interventions", "pipeline", "cli"}, {"core"}),
    "lightning": ({"pipeline", "cli"}, set()),
    "hydra": ({"config", "sweep", "cli", "pipeline"}, set()),
    "omegaconf": ({"config", "sweep", "cli"}, set()),
    "wandb": ({"cli"}, {"pipeline"}),
    "matplotlib": ({"report"}, set()),
}
MAX_LINES = 300
LONG: dict[str, str] = {}  # file -> why it may be longer


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "ima").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> Iterator[tuple[str, list[str], bool, int]]:
    """(module, names, whether it is inside a function or TYPE_CHECKING, line)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, [alias.name for alias in node.names], id(node) not in top, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], id(node) not in top, node.lineno


def arrows(known: dict[str, Path]) -> Iterator[tuple[str, str, bool, int]]:
    """(module, module of ima that it imports, inside, line)."""
    for module, path in known.items():
        for source, names, inside, line in imports_of(path):
            if source.split(".")[0] != "ima":
                continue
            targets = {f"{source}.{name}" if f"{source}.{name}" in known else source for name in names} or {source}
            for target in sorted(targets):
                yield module, target, inside, line


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Sets of modules that import each other, by Tarjan's algorithm."""
    graph: dict[str, list[str]] = {}
    for start, end in edges:
        graph.setdefault(start, []).append(end)
        graph.setdefault(end, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = []
            while not members or members[-1] != node:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def violations() -> list[str]:
    known = modules()
    out: list[str] = []
    edges: set[tuple[str, str]] = set()
    for module, target, inside, line in arrows(known):
        here, there = room_of(module), room_of(target)
        place = f"{known[module].relative_to(ROOT)}:{line}"
        if module != target:
            edges.add((module, target))
        if inside and here not in OPEN:
            out.append(f"{place}: imports {target} inside a function or TYPE_CHECKING")
        if here != there and there in HEIGHT and here in HEIGHT and HEIGHT[there] >= HEIGHT[here]:
            out.append(f"{place}: {here} may not know {there} ({target})")
    out += [f"circle: {', '.join(members)}" for members in circles(edges)]
    for module, path in known.items():
        for source, _, inside, line in imports_of(path):
            anywhere, lazily = LIBRARIES.get(source.split(".")[0], (None, set()))
            room = room_of(module)
            if anywhere is None or room in anywhere or (inside and room in lazily):
                continue
            out.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {source.split('.')[0]}")
    for path in known.values():
        name, num = str(path.relative_to(ROOT)), len(path.read_text(encoding="utf-8").splitlines())
        if num > MAX_LINES and name not in LONG:
            out.append(f"{name}: {num} lines, at most {MAX_LINES} without a reason in LONG")
    unknown = {room_of(module) for module in known} - set(HEIGHT) - {"__init__", "__main__"}
    return out + [f"ima/{room}: no room of FLOORS" for room in sorted(unknown)]


if __name__ == "__main__":
    found = violations()
    print("\n".join(found) if found else "rooms: the rule holds")
    sys.exit(bool(found))
