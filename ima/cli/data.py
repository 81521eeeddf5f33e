"""`python -m ima data data=folder data.path=DIR`: a first look at any data before something trains on it.

How many samples, media and groups each split has, how long texts are in tokens of the LLM, how large media are, what
cannot be read, what is there twice, what is on both sides of a split, and samples; as a table and as a page. No weights
are loaded. Option --all reads every medium (else 500 of a split), --out FILE says where the page goes. Exit code 1
where something is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.assets.registry import converted_folder, get_asset
from ima.core.commands import called_as
from ima.core.errors import UserError
from ima.core.files import write_atomic
from ima.core.network import hub_folder
from ima.core.signatures import signature
from ima.data.first_look import FirstLook, Spread, look_at

NUM_MEDIA = 500
FLAGS = ("--all", "--out")


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    out, everything, overrides = read(argv)
    from omegaconf import OmegaConf

    from ima.config.compose import compose
    from ima.config.instantiation import build
    from ima.report.page.first_look import look_page

    config: Any = OmegaConf.to_container(compose(overrides))
    count, unit = counter_of(config.get("llm") or {})
    looks = []
    for prefix, node in nodes_of(config).items():
        source = build({"data": lenient(node)}, "data", prefix)
        look = look_at(source, count, unit, None if everything else NUM_MEDIA)
        look.notes += heard(look, config.get("encoder") or {})
        looks.append(look)
        print("\n".join(lines_of(look)))
    target = out or Path(config["output_dir"]) / f"data-{file_name(looks)}.html"
    write_atomic(target, look_page(looks, " ".join([called_as() or "python -m ima", "data", *argv])))
    print(f"page       {target}")
    return 1 if any(look.problems for look in looks) else 0


def read(argv: Sequence[str]) -> tuple[Path | None, bool, list[str]]:
    """(--out, --all, overrides). Raises UserError."""
    words, overrides, out, everything = iter(argv), [], None, False
    for word in words:
        name, _, value = word.partition("=")
        if name == "--all":
            everything = True
        elif name == "--out":
            out = Path(value or next(words, ""))
            if not out.name:
                raise UserError("--out: give a file, --out page.html")
        elif word.startswith("-"):
            raise UserError(f"{word}: no such option; allowed: {', '.join(FLAGS)} and key=value")
        else:
            overrides.append(word)
    return out, everything, overrides


def nodes_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Prefix of its keys -> node of the data, of each entry of a mixture."""
    if config.get("mixture"):
        return {f"mixture.{name}.": entry["data"] for name, entry in config["mixture"].items()}
    return {"": config["data"]}


def lenient(node: dict[str, Any]) -> dict[str, Any]:
    """What is missing is told with the rest."""
    takes = "on_bad_medium" in signature(str(node["_target_"])).parameters
    return {**node, "on_bad_medium": "skip"} if takes else node


def counter_of(llm: Mapping[str, Any]) -> tuple[Callable[[str], int], str]:
    """How texts are counted, and what: tokens where the LLM's tokenizer is here, else words."""
    folder = hub_folder(str(llm.get("path") or "")) if llm.get("path") else None
    if str(llm.get("_target_")).endswith("smollm2"):
        folder = converted_folder(get_asset("smollm2"))
    if folder is not None and (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), "tokens"
    return lambda text: len(text.split()), "words"


def heard(look: FirstLook, encoder: Mapping[str, Any]) -> list[str]:
    """What of the sounds an encoder that hears a given time does not hear."""
    limit, seconds = encoder.get("seconds"), [one for split in look.splits for one in split.seconds]
    long = sum(one > float(limit) for one in seconds) if limit and look.modality == "audio" else 0
    return [f"{long} of {len(seconds)} sounds are longer than the {limit:g} s of encoder.seconds"] if long else []


def lines_of(look: FirstLook) -> list[str]:
    """A table for the terminal, then what is wrong and what is good to know."""
    asked = any(split.questions for split in look.splits)
    units = list(dict.fromkeys(unit for split in look.splits for unit in split.sizes))
    head = ["split", "samples", "media", "groups", f"{look.unit} of a text", *([f"{look.unit} asked"] * asked), *units]
    rows = [head]
    for split in look.splits:
        numbers = [split.num_samples, split.num_media, split.num_groups]
        cells = [split.texts, *([split.questions] * asked), *(split.sizes.get(unit) for unit in units)]
        rows.append([split.name, *map(str, numbers), *map(spread_text, cells)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    lines = [f"{look.name}: {look.modality}; lengths and sizes as least–middle–most"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    partly = [split for split in look.splits if split.num_looked_at < split.num_media]
    lines += [f"note       {split.num_looked_at} media of {split.name} were read; --all reads all" for split in partly]
    lines += [f"note       {line}" for line in look.notes]
    return lines + [f"problem    {line}" for line in look.problems]


def spread_text(found: Spread | None) -> str:
    if found is None:
        return "-"
    values = (found.low, found.median, found.high)
    return "–".join(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)


def file_name(looks: Sequence[FirstLook]) -> str:
    return re.sub(r"[^\w-]+", "-", "-".join(look.name for look in looks))[:100]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
