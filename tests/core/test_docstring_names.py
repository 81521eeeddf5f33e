"""What stands between back-ticks in docstrings, comments and documents exists: names, keys, files, commands, choices.

A span without a space is looked up whole; of a longer one (a command, a formula) the words that look like code are.
A word is known where `ima/` defines or spells it, conf/ has it as a key or choice, the repository has a file of that
name, or it stands in ELSEWHERE.
"""

from __future__ import annotations

import ast
import builtins
import functools
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ima.core.signatures import signature

# Names of other projects, of the shell, and of the published code.
ELSEWHERE = {"ar", "torchrun", "skip_block_prompt", "context_skip_block_prompt"}
NO_DOCUMENT = re.compile(r"\((?:methods|habits|defects)\b|\b(?:methods|habits|defects)(?:\.md)?:? \d")
ROOT = Path(__file__).parents[1].parent
FOLDERS = ("conf", "docs", "ima", "tests")
CODE = [*sorted((ROOT / "ima").rglob("*.py")), *(ROOT / f"{name}.py" for name in ("train", "evaluate", "sweep"))]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = "".join([*map(str, (ROOT / "conf").rglob("*.yaml")), *(path.read_text("utf-8") for path in DOCUMENTS)])
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
DOCUMENTED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what people read in a file: lines outside of code blocks, docstrings, comments."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        source = re.sub(r"(?ms)^```.*?^```", lambda code: "\n" * code[0].count("\n"), source)
        yield from enumerate(source.split("\n"), 1)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield from enumerate(text.split("\n"), node.body[0].lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@functools.cache
def known() -> tuple[set[str], list[re.Pattern[str]]]:
    """Words, and patterns of words that are put together while a program runs."""
    words, patterns = {*ELSEWHERE, *dir(builtins), *re.findall(r"(?m)^([\w-]+) *[:?]", MAKEFILE)}, []
    words |= set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    for path in [*ROOT.iterdir(), *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]:
        words |= {path.name, path.stem}
    for path in CODE:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        said = {id(n.body[0].value) for n in nodes if isinstance(n, DOCUMENTED) and ast.get_docstring(n)}  # type: ignore
        for node in nodes:
            # Functions, classes, parameters, keywords, attributes, imports.
            words |= {str(getattr(node, field, "")) for field in ("name", "asname", "arg", "attr")}
            match node:
                case ast.Name(id=name, ctx=ast.Store()):
                    words.add(name)
                case ast.Constant(value=str(text)) if id(node) not in said and " " not in text:
                    words |= {text, *re.findall(r"[\w.-]+", text)}
                case ast.JoinedStr(values=values):
                    parts = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"\w+" for p in values]
                    if re.search(r"[A-Za-z]{2}", "".join(parts).replace(r"\w+", "")):
                        patterns.append(re.compile("".join(parts)))
    for path in (ROOT / "conf").rglob("*.yaml"):
        words |= set(yaml_words(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return words, patterns


def yaml_words(node: object) -> Iterator[str]:
    """Keys and values; of targets their parameters, too."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield str(key)
        yield from yaml_words(value) if isinstance(value, dict | list) else (str(value),)
        if key == "_target_":
            yield from signature(value).parameters


@functools.cache
def is_known(word: str) -> bool:
    """Of a word with an open end, `_matched` or `context_`, that some known word goes on there."""
    words, patterns = known()
    if word.startswith(("_", ".")) or word.endswith("_"):
        return any(other.endswith(word.lstrip(".")) or f"{other}_".startswith(word) for other in words)
    return word in words or any(pattern.fullmatch(word) for pattern in patterns)


@functools.cache
def is_name(name: str) -> bool:
    """A module of ours and what it defines, a group of conf/ and a key of it, or parts that are all known."""
    parts = name.split(".")
    if parts[0] == "ima" and len(parts) > 1:
        places = ROOT.joinpath(*parts), ROOT.joinpath(*parts[:-1])
        whole, around = (place.is_dir() or place.with_suffix(".py").is_file() for place in places)
        return whole or (around and is_known(parts[-1]))
    if len(parts) == 2 and (ROOT / "conf" / parts[0]).is_dir() and not is_known(name):
        group = [*(ROOT / "conf" / parts[0]).glob("*.yaml"), *(ROOT / "conf").glob("*.yaml")]
        return any(parts[1] in yaml_words(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in group)
    return is_known(name) or all(map(is_known, parts))


def unknown_in(span: str) -> Iterator[str]:
    """What does not exist of a span."""
    words = re.sub(r"[\"']", " ", span).split()
    if words[:1] == ["make"] and len(words) > 1 and not re.search(rf"(?m)^{re.escape(words[1])}:", MAKEFILE):
        yield words[1]
    for word in words:
        word = re.sub(r"\(.*|\[[^]=]*\]$", "", word).rstrip(",:;").removeprefix("/")
        key, equals, value = word.partition("=")
        parts = [part for part in word.split("/") if len(part) > 1 and not re.search(r"[<>*…]|^\.+", part)]
        if equals:
            choices = re.findall(r"\w\w+", value.split("<")[0]) if (ROOT / "conf" / key).is_dir() else []
            missing = not is_name(key.lstrip("-+")) or not all(f"conf/{key}/{one}.yaml" in SHOWN for one in choices)
        elif "/" in word and word.split("/")[0] in FOLDERS and (Path(word).suffix or word.endswith("/")):
            missing = not any(ROOT.glob(re.sub(r"<\w+>|…", "*", word.rstrip("/"))))
        elif "/" in word:
            missing = not all(map(is_name, parts))
        else:
            name = word.lstrip("-.")
            looks = " " not in span or "_" in word or "." in name.strip(".")
            missing = bool(
                looks and len(word) > 1 and NAME.fullmatch(name) and not is_known(word) and not is_name(name)
            )
        if missing:
            yield word


@pytest.mark.parametrize("path", [*CODE, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_stands_between_back_ticks_exists(path: Path) -> None:
    found = []
    for number, text in texts_of(path):
        wrong = [f"`{span}`: no {word}" for span in re.findall(r"`([^`]+)`", text) for word in unknown_in(span)]
        wrong += [f"no such document: {text}"] if NO_DOCUMENT.search(text) else []
        found += [f"{path.relative_to(ROOT)}:{number}: {reason}" for reason in wrong]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("span", ["no_such(x)", "trainer.no_such", "trainer=no_such", "make no-such", "ima.no.such"])
def test_what_does_not_exist_is_found(span: str) -> None:
    assert list(unknown_in(span))
