"""`python -m ima generate checkpoint=outputs/demo dog.png`: what a run's model says about files, asked by prompt=TEXT.

Pictures, sounds or clips, as the run was trained on; one line for each file.
"""

from __future__ import annotations

from collections.abc import Sequence

from ima.core.environment import prepare
from ima.core.errors import UserError, nearest

KEYS = {"checkpoint": "", "prompt": "", "entry": "", "device": "", "max_new_tokens": ""}
USAGE = "usage: python -m ima generate checkpoint=outputs/<run> FILE [FILE ...] [prompt=TEXT] [entry=NAME] [device=cpu]"


def main(argv: Sequence[str]) -> int:
    if not argv or "--help" in argv or "-h" in argv:
        print(f"{USAGE}\n\n{(__doc__ or '').strip()}")
        return 0
    options, files = read(argv)
    prepare()
    from ima.pipeline.api.runs import load_run

    model = load_run(options["checkpoint"]).load_model(options["device"] or None)
    num = int(options["max_new_tokens"]) if options["max_new_tokens"] else None
    for file in files:
        print(f"{file}: {model.generate(file, options['prompt'], options['entry'], num)}")
    return 0


def read(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(key=value options, files). Raises UserError for an unknown key and where the checkpoint or a file is missing."""
    options, files = dict(KEYS), []
    for text in argv:
        name, equals, value = text.partition("=")
        if equals and name.isidentifier():
            if name not in KEYS:
                raise UserError(f"{name}: no such key; {nearest(name, KEYS)}")
            options[name] = value
        elif text.startswith("-"):
            raise UserError(f"{text}: no such option; {USAGE}")
        else:
            files.append(text)
    if not options["checkpoint"]:
        raise UserError("checkpoint: missing; write checkpoint=outputs/<run>")
    if not files:
        raise UserError("no file is given; name pictures, sounds or clips after the checkpoint")
    if options["max_new_tokens"] and not options["max_new_tokens"].isdecimal():
        raise UserError(f"max_new_tokens: {options['max_new_tokens']!r} is no whole number")
    return options, files
