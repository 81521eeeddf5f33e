"""Links of README.md, docs/, CITATION.cff and the notebooks lead somewhere: files, headings, pages that nobody names.

`python tests/links.py` prints each link that does not, and each page of docs/ to which no other page leads; `make lint`
runs it. Addresses of other sites are not asked.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]: (\S+)", re.MULTILINE)
ELSEWHERE = re.compile(r"(?:https?|mailto|data):")
FENCE = re.compile(r"(?ms)^( *)(```|~~~).*?^\1\2`*$")


def prose(text: str) -> str:
    """The text with blank lines in place of code blocks."""
    return FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)


def text_of(path: Path) -> str:
    """Markdown of a file; of a notebook that of its text cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page: lower case, spaces as `-`, no punctuation, repeated ones numbered."""
    found: dict[str, int] = {}
    out = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"(?m)^#{1,6} +(.*?) *#*$", prose(text)):
        words = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = found.get(name, 0)
        found[name] = number + 1
        out.add(f"{name}-{number}" if number else name)
    return out


def links(text: str) -> Iterator[tuple[int, str]]:
    """(line, target), without code: neither blocks nor spans."""
    text = re.sub(r"`[^`\n]+`", lambda span: " " * len(span[0]), prose(text))
    for found in LINK.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, next(group for group in found.groups() if group)


def pages(root: Path) -> list[Path]:
    named = [root / "README.md", root / "CITATION.cff", *(root / "docs").glob("*.md")]
    return sorted(path for path in [*named, *(root / "notebooks").glob("*.ipynb")] if path.is_file())


def broken(root: Path) -> list[str]:
    """One line each; none where all is well."""
    wrong, reached = [], set()
    for page in pages(root):
        name = page.relative_to(root)
        for line, target in links(text_of(page)):
            if ELSEWHERE.match(target):
                continue
            file, _, anchor = target.partition("#")
            goal = (page.parent / file).resolve() if file else page
            if not goal.is_relative_to(root) or not goal.exists():
                wrong.append(f"{name}:{line}: {target}: no such file in the repository")
                continue
            if goal != page:
                reached.add(goal)
            if anchor and (goal.suffix != ".md" or anchor not in anchors(text_of(goal))):
                wrong.append(f"{name}:{line}: {target}: no such heading in {goal.relative_to(root)}")
    alone = [path for path in pages(root) if path.parent.name == "docs" and path not in reached]
    return wrong + [f"{path.relative_to(root)}: no page leads to it" for path in alone]


if __name__ == "__main__":
    found = broken(ROOT)
    print("\n".join(found) or "links: all lead somewhere")
    sys.exit(bool(found))
