"""The site of README.md and docs/: `make docs` writes it to build/site, with MkDocs and its theme Material.

The pages are copied as they are, README as the first one; only the links between the two folders are changed. The site
asks no other site for fonts or scripts; its search needs a server, as browsers start no worker for a local file. Before
that, sentences of more than 30 words are listed, for a person to judge.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml
from links import ELSEWHERE, LINK, ROOT, pages, prose, text_of

LONG = 30  # words
# Heading of the menu -> pages of docs/. A page that is missing here is an error.
MENU = {
    "Begin": ["start", "python", "hydra", "data"],
    "Measure": ["alignment", "skipping", "masks", "claims", "glossary"],
    "Train": ["training", "multitask", "stampworld", "models", "gpu", "sweeps"],
    "Share": ["wandb", "hub", "security"],
    "Change": ["extending", "architecture"],
}


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) of paragraphs, items of lists and cells of tables."""
    line = 0
    for paragraph in re.split(r"(\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\. )))", prose(text)):
        start = line + 1 + len(paragraph) - len(paragraph.lstrip("\n"))
        line += paragraph.count("\n")
        for cell in paragraph.split("|") if paragraph.lstrip().startswith("|") else [paragraph]:
            words = " ".join(cell.split())
            for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z`\"*\[(])", words):
                yield start, sentence


def num_words(sentence: str) -> int:
    """Words, where a span of code and the text of a link count as they are read."""
    sentence = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", sentence))
    return len(re.findall(r"[^\W\d_][\w'’-]*", sentence))


def long_sentences(root: Path) -> list[str]:
    found = []
    for page in pages(root):
        if page.suffix == ".cff":
            continue
        for line, sentence in sentences(text_of(page)):
            if (number := num_words(sentence)) > LONG:
                found.append(f"{page.relative_to(root)}:{line}: {number} words: {sentence[:70]} ...")
    return found


def moved_links(text: str, page: Path, root: Path) -> tuple[str, set[Path]]:
    """The text with its links as they are in the site, and the files outside of docs/ that these need there."""
    needed: set[Path] = set()

    def moved(found: re.Match[str]) -> str:
        target = next(group for group in found.groups() if group)
        file, hash_, anchor = target.partition("#")
        if not file or ELSEWHERE.match(target):
            return found[0]
        goal = (page.parent / file).resolve().relative_to(root)
        if goal == Path("README.md"):
            goal = Path("index.md")
        elif goal.parts[0] == "docs":
            goal = goal.relative_to("docs")
        else:
            needed.add(goal)
        return found[0].replace(target, goal.as_posix() + hash_ + anchor)

    return LINK.sub(moved, text), needed


def write_source(root: Path, folder: Path) -> None:
    """The pages and what they need, where MkDocs reads them."""
    needed = {path.relative_to(root) for path in (root / "docs").iterdir() if path.suffix in (".svg", ".png")}
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        text, more = moved_links(page.read_text(encoding="utf-8"), page, root)
        goal = folder / ("index.md" if page.name == "README.md" else page.name)
        goal.write_text(text, encoding="utf-8")
        needed |= more
    for path in needed:
        goal = folder / (path.relative_to("docs") if path.parts[0] == "docs" else path)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, goal)


def build(root: Path, out: Path) -> int:
    """Write the site into out/site; returns the exit code of MkDocs. A page that the menu lacks is an error."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = out / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    (source / "docs").mkdir(parents=True)
    write_source(root, source / "docs")
    config = {
        "site_name": project["name"],
        "site_description": project["description"],
        "site_dir": str(out / "site"),
        "use_directory_urls": False,
        "theme": {"name": "material", "font": False, "features": ["navigation.sections", "content.code.copy"]},
        "plugins": ["search"],
        "markdown_extensions": ["tables", "toc", "pymdownx.superfences", "pymdownx.highlight"],
        "validation": {"nav": {"omitted_files": "warn"}, "links": {"anchors": "warn"}},
        "nav": [{project["name"]: "index.md"}, *({part: [f"{n}.md" for n in names]} for part, names in MENU.items())],
    }
    (source / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(source / "mkdocs.yml")]
    return subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode


def install() -> int:
    """The extra `docs`, where it is missing."""
    if importlib.util.find_spec("material"):
        return 0
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *extras["docs"]]
    return subprocess.run(pip).returncode


if __name__ == "__main__":
    found = long_sentences(ROOT)
    print("\n".join([*found, f"{len(found)} sentences of more than {LONG} words"]))
    code = install() or build(ROOT, ROOT / "build")
    done = "build/site/index.html; with its search: python -m http.server --directory build/site"
    print(f"error: no site, see above (code {code})" if code else done)
    sys.exit(code and 1)
