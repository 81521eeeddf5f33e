"""What `data=folder` chooses beside itself: encoder, adapter and task that fit what lies in the folder.

Chosen as if it had been typed, so that `--cfg job`, result.json and the hash of the run tell it. What a person typed,
or an experiment chooses, stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from ima.core.errors import prefix_errors
from ima.core.files import read_utf8
from ima.core.own_folder import FolderLook, look

OWN = "folder"  # the choice of the group data
LOOKED_AT = ("table", "media", "modality", "medium", "text", "question", "answer", "split", "group")
ENCODERS = {
    "image": {"encoder": "efficientnet_lite0", "adapter": "pool"},
    "video": {"encoder": "video_efficientnet", "adapter": "video"},
    "audio": {"encoder": "aisfx", "adapter": "pool"},
}
PROMPTS = {"image": "This is a picture of", "video": "In this video", "audio": "In this recording,"}
# Tokens that are generated: of a caption, of an answer, at least and at most; two for each word of the longest seen.
CAPTION_TOKENS, ANSWER_TOKENS, TOKENS_A_WORD = (12, 60), (8, 40), 2


def choices_for(own: FolderLook) -> dict[str, str]:
    """Groups and keys of the task, with the headline that the texts can be scored by: CIDEr-D or accuracy."""
    chosen = dict(ENCODERS[own.modality])
    if own.asks:
        metric = "vqa" if own.several else "exact"
        return chosen | {"task": "qa", "task.metric": metric, "task.max_new_tokens": tokens(own, ANSWER_TOKENS)}
    return chosen | {
        "task": "caption",
        "task.prompt": f"'{PROMPTS[own.modality]}'",
        "task.targets": "any",
        "task.headline": "cider_d",
        "task.max_new_tokens": tokens(own, CAPTION_TOKENS),
    }


def tokens(own: FolderLook, limits: tuple[int, int]) -> str:
    return str(min(limits[1], max(limits[0], TOKENS_A_WORD * own.num_words)))


def own_choices(overrides: Sequence[Override], root: str, places: Sequence[Path]) -> list[str]:
    """What is added to a command line with `data=folder data.path=...`; in an evaluation the task alone, and only where
    no run says it (`lmm=...`). places: where the groups' folders lie. Raises UserError for a folder that is no use."""
    given = {each.key_or_group: each for each in overrides}
    values = {key: plain(each) for key, each in given.items() if not each.is_sweep_override()}
    path = values.get("data.path")
    if values.get("data") != OWN or not isinstance(path, str) or "${" in path:
        return []
    if root == "evaluate" and values.get("lmm") is None:
        return []
    with prefix_errors("data"):
        own = look(path, **{key: values.get(f"data.{key}") for key in LOOKED_AT})
    taken = {*given, *chosen_by_experiments(values.get("experiment"), places)}
    chosen = choices_for(own)
    if root == "evaluate":
        chosen = {key: value for key, value in chosen.items() if key.startswith("task")}
    if "task" in taken and values.get("task") != chosen["task"]:
        chosen = {key: value for key, value in chosen.items() if not key.startswith("task")}
    return [f"{key}={value}" for key, value in chosen.items() if key not in taken]


def plain(override: Override) -> Any:
    return None if override.is_delete() else override.value()


def chosen_by_experiments(names: Any, places: Sequence[Path]) -> set[str]:
    """Groups that an experiment chooses a file of."""
    found: set[str] = set()
    for name in names if isinstance(names, list) else [names]:
        for path in (place / "experiment" / f"{name}.yaml" for place in places):
            if path.is_file():
                text = read_utf8(path)
                found |= set(re.findall(r"override /(\w+):", text))
    return found
