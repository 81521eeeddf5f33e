"""Values against annotations and ranges: the part of `schema` that says yes or no.

`fit` takes a plain value and the annotation of its parameter and gives the value back, as the type that was asked for
(3 becomes 3.0 where a float is needed, 7 becomes "7" where a string is). Messages name the key, what was found, what
is allowed.
"""

from __future__ import annotations

import ast
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.signatures import Module, Parameter, Range, resolve

CONTAINERS = {"list", "List", "Sequence", "Iterable", "Collection", "tuple", "Tuple", "set", "frozenset"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
PATHS = {"Path", "PathLike", "os.PathLike", "pathlib.Path"}
SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
# Ranges of names that mean the same everywhere.
RANGES: dict[str, Range] = {
    "seed": (0, 2**32 - 1),
    "batch_size": (1, None),
    "image_size": (1, None),
    "lr": (0, None),
    "weight_decay": (0, None),
    "dropout": (0, 1),
    "temperature": (0, None),
    "max_epochs": (0, None),
    "max_steps": (-1, None),
}


class ValueMismatch(Exception):
    """What is allowed, for the message."""


def fit(key: str, value: Any, parameter: Parameter, ranges: dict[str, Range]) -> Any:
    """The value as the annotation wants it. Raises UserError naming `key`."""
    try:
        value = convert(value, parameter.annotation, parameter.module)
    except ValueMismatch as misfit:
        raise UserError(f"{key}: {show(value)} does not fit; {misfit}") from None
    check_range(key, parameter.name, value, ranges)
    return value


def check_range(key: str, name: str, value: Any, ranges: dict[str, Range]) -> None:
    low, high = ranges.get(name) or RANGES.get(name) or by_name(name)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        if not ((low is None or item >= low) and (high is None or item <= high)):  # nan is outside of every range
            if low is None and high is None:
                continue
            bounds = f"{low} to {high}" if None not in (low, high) else f">= {low}" if high is None else f"<= {high}"
            raise UserError(f"{key}: {show(item)} is out of range; allowed: {bounds}")


def by_name(name: str) -> Range:
    """The naming rule of the project: counts start with num_, ratios end in _ratio."""
    if name.endswith("_ratio"):
        return (0, 1)
    return (0, None) if name.startswith("num_") else (None, None)


def show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)


def convert(value: Any, annotation: ast.expr | None, module: Module) -> Any:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if annotation is None or (isinstance(value, dict) and "_target_" in value):
        return value  # a node of its own: checked against its own signature
    options = alternatives(annotation)
    if len(options) > 1:
        return convert_any(value, options, module)
    match annotation:
        case ast.Constant(value=None):
            if value is None:
                return None
            raise ValueMismatch("allowed: null")
        case ast.Name(id=name) if name in SCALARS:
            return scalar(value, name)
        case ast.Subscript(value=head, slice=inside):
            return subscript(value, ast.unparse(head).rpartition(".")[2], inside, module)
    name = ast.unparse(annotation)
    if name in PATHS:
        return scalar(value, "str")
    if name.rpartition(".")[2] in CONTAINERS | MAPPINGS:
        return subscript(value, name.rpartition(".")[2], None, module)
    return named(value, name, module)


def alternatives(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*alternatives(annotation.left), *alternatives(annotation.right)]
    if isinstance(annotation, ast.Subscript):
        head = ast.unparse(annotation.value).rpartition(".")[2]
        if head == "Optional":
            return [annotation.slice, ast.Constant(value=None)]
        if head == "Union":
            return list(annotation.slice.elts) if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return [annotation]


def convert_any(value: Any, options: list[ast.expr], module: Module) -> Any:
    """The first alternative that fits, exact types before conversions (str | int keeps 3 a number)."""
    exact = [name for name, kind in SCALARS.items() if type(value) is kind]
    options = sorted(options, key=lambda option: ast.unparse(option) not in exact)
    allowed = []
    for option in options:
        try:
            return convert(value, option, module)
        except ValueMismatch as misfit:
            allowed.append(str(misfit).removeprefix("allowed: "))
    raise ValueMismatch("allowed: " + " or ".join(dict.fromkeys(allowed)))


def scalar(value: Any, name: str) -> Any:
    words = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}
    kind = SCALARS[name]
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and type(value) in (int, float):
        return str(value)
    raise ValueMismatch(f"allowed: {words[name]}")


def subscript(value: Any, head: str, inside: ast.expr | None, module: Module) -> Any:
    if head == "Literal":
        assert inside is not None
        return one_of(value, [ast.literal_eval(item) for item in items_of(inside)])
    if head == "Annotated" and inside is not None:
        return convert(value, items_of(inside)[0], module)
    if head in CONTAINERS:
        if not isinstance(value, list):
            raise ValueMismatch("allowed: a list, [a,b]")
        kinds = [item for item in items_of(inside) if ast.unparse(item) != "..."] if inside is not None else [None]
        if len(kinds) > 1:
            if len(kinds) != len(value):
                raise ValueMismatch(f"allowed: a list of {len(kinds)}")
            return [convert(item, kind, module) for item, kind in zip(value, kinds, strict=True)]
        return [convert(item, kinds[0], module) for item in value]
    if head in MAPPINGS:
        if not isinstance(value, dict):
            raise ValueMismatch("allowed: a mapping, {a:1}")
        kinds = items_of(inside) if inside is not None else []
        if len(kinds) == 2:
            return {key: convert(item, kinds[1], module) for key, item in value.items()}
    return value


def is_mapping(annotation: ast.expr | None) -> bool:
    """Whether a parameter takes a mapping with names of the user's own."""
    options = alternatives(annotation) if annotation is not None else []
    heads = [option.value if isinstance(option, ast.Subscript) else option for option in options]
    return any(ast.unparse(head).rpartition(".")[2] in MAPPINGS for head in heads)


def items_of(node: ast.expr) -> list[Any]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def one_of(value: Any, allowed: list[Any]) -> Any:
    if any(value == item and type(value) is type(item) for item in allowed):
        return value
    names = ["null" if item is None else str(item) for item in allowed]
    raise ValueMismatch(nearest(str(value), names))


def named(value: Any, name: str, module: Module) -> Any:
    """A name of the module: an alias of an annotation, an enumeration, or a class about which nothing is said."""
    found = resolve(module, name) if name.isidentifier() else None
    if found is None:
        return value
    other, statement = found
    if isinstance(statement, ast.Assign):
        return convert(value, statement.value, other)
    if isinstance(statement, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in statement.bases):
        pairs = [(item.targets[0], item.value) for item in statement.body if isinstance(item, ast.Assign)]
        return one_of(value, [ast.literal_eval(item) for target, item in pairs if isinstance(target, ast.Name)])
    return value
