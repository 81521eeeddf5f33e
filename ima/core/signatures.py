"""What a config node may hold, read from the source of its `_target_` without importing it.

The constructor's signature is the schema: parameter names, simple annotations, defaults. Importing the targets would
import torch (seconds), so the source is parsed instead. Hidden here: finding the file of a module that is not
imported, following re-exports and aliases, base classes, dataclass fields. What the source does not tell (an
annotation that is a class, `**kwargs`) is not checked. Ranges: `config.RANGES`, a literal `RANGES = {"name": (low,
high)}` in the class body (None for open), and the naming rule (`num_*` >= 0, `*_ratio` in [0, 1]).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.machinery
import sys
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.moved_names import current_name

REQUIRED = object()


class Source(str):
    """The text of a default that is no literal."""


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Range = tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter. `default` is REQUIRED, a literal, or the source text of a default that is no literal."""

    name: str
    annotation: ast.expr | None
    default: Any
    module: Module


@dataclasses.dataclass(frozen=True)
class Signature:
    """`open` tells that any further keyword is taken (`**kwargs`), so that names cannot be checked."""

    target: str
    parameters: dict[str, Parameter]
    open: bool
    ranges: dict[str, Range]


@dataclasses.dataclass(frozen=True)
class Module:
    name: str
    path: Path
    package: str  # what a relative import starts from
    names: dict[str, ast.stmt]

    def imported(self, name: str) -> tuple[str, str] | None:
        """(module, name there) when `name` comes from elsewhere."""
        statement = self.names.get(name)
        if not isinstance(statement, ast.ImportFrom):
            return None
        base = statement.module or ""
        if statement.level:
            parents = self.package.split(".")
            parents = parents[: len(parents) - statement.level + 1]
            base = ".".join([*parents, base] if base else parents)
        original = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
        return base, original


def find_module(name: str) -> tuple[Path, bool] | None:
    """(file, is it a package) of a module without importing it or its parents."""
    path: list[str] | None = None
    spec = None
    for part in name.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, path if path is not None else sys.path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else []
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin), spec.submodule_search_locations is not None


@functools.lru_cache(maxsize=256)
def read_module(name: str) -> Module | None:
    found = find_module(name)
    if found is None:
        return None
    path, is_package = found
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
    names: dict[str, ast.stmt] = {}
    collect(tree.body, names)
    return Module(name, path, name if is_package else name.rpartition(".")[0], names)


def collect(body: list[ast.stmt], names: dict[str, ast.stmt]) -> None:
    for statement in body:
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names[statement.name] = statement
            case ast.ImportFrom():
                for alias in statement.names:
                    names.setdefault(alias.asname or alias.name, statement)
            case ast.Assign():
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        names[target.id] = statement
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = statement
            case ast.If():
                collect(statement.body, names)
                collect(statement.orelse, names)
            case ast.Try():
                collect(statement.body, names)


def resolve(module: Module, name: str, depth: int = 8) -> tuple[Module, ast.stmt] | None:
    """The statement that defines `name`, followed through imports."""
    if name not in module.names or depth == 0:
        return None
    source = module.imported(name)
    if source is None:
        return module, module.names[name]
    place, _, original = current_name(f"{source[0]}.{source[1]}").rpartition(".")
    other = read_module(place)
    return resolve(other, original, depth - 1) if other else None


@functools.lru_cache(maxsize=256)
def signature(target: str) -> Signature:
    """Raises UserError where `target` names nothing, with the nearest names of the module. Old names of what has moved
    are those of today."""
    parts = current_name(target).split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = read_module(".".join(parts[:cut]))
        if module is not None:
            return signature_in(module, target, parts[cut:])
    package = ".".join(parts[:-1]) or target
    raise UserError(f"_target_: {target!r}: there is no module {package!r}")


def signature_in(module: Module, target: str, parts: list[str]) -> Signature:
    found = resolve(module, parts[0])
    if found is None and "site-packages" in module.path.parts:
        return Signature(target, {}, True, {})  # installed packages make names in ways that no parser sees
    if found is None or not isinstance(found[1], Definition):
        defined = [name for name, statement in module.names.items() if isinstance(statement, Definition)]
        public = [name for name in defined if not name.startswith("_")]
        raise UserError(f"_target_: {target!r}: no {parts[0]!r} in {module.name}; {nearest(parts[0], public)}")
    module, definition = found
    for part in parts[1:]:
        inner = method(definition, part) if isinstance(definition, ast.ClassDef) else None
        if inner is None:
            raise UserError(f"_target_: {target!r}: {definition.name!r} has no method {part!r}")  # type: ignore[attr-defined]
        definition = inner
    assert isinstance(definition, Definition)
    if isinstance(definition, ast.ClassDef):
        return class_signature(module, definition, target)
    is_method = len(parts) > 1 and not has_decorator(definition, "staticmethod")
    return function_signature(module, definition, target, skip_first=is_method)


def class_signature(module: Module, definition: ast.ClassDef, target: str) -> Signature:
    ranges = class_ranges(definition)
    init = method(definition, "__init__")
    if init is not None:
        return dataclasses.replace(function_signature(module, init, target, skip_first=True), ranges=ranges)
    parameters: dict[str, Parameter] = {}
    is_open = False
    for base in definition.bases:
        found = resolve(module, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            inherited = class_signature(*found, target)  # type: ignore[arg-type]
            parameters = {**inherited.parameters, **parameters}
            ranges = {**inherited.ranges, **ranges}
            is_open = is_open or inherited.open
    if has_decorator(definition, "dataclass"):
        for statement in definition.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if "ClassVar" in ast.unparse(statement.annotation):
                    continue
                name = statement.target.id
                parameters[name] = Parameter(name, statement.annotation, field_default(statement.value), module)
    return Signature(target, parameters, is_open, ranges)


def function_signature(
    module: Module, definition: ast.FunctionDef | ast.AsyncFunctionDef, target: str, skip_first: bool
) -> Signature:
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_first else 0 :]
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    parameters = {
        argument.arg: Parameter(argument.arg, argument.annotation, literal(default), module)
        for argument, default in pairs
    }
    return Signature(target, parameters, arguments.kwarg is not None, {})


def literal(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Source(ast.unparse(node))


def field_default(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("field", "dataclasses.field"):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        return literal(given.get("default", given.get("default_factory")))
    return literal(node)


def method(definition: ast.ClassDef, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
            return statement
    return None


def has_decorator(definition: Definition, name: str) -> bool:
    return any(name in ast.unparse(decorator) for decorator in definition.decorator_list)


def class_ranges(definition: ast.ClassDef) -> dict[str, Range]:
    for statement in definition.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id == "RANGES":
            return dict(ast.literal_eval(statement.value))  # type: ignore[attr-defined]
    return {}
