"""`python -m ima push checkpoint=outputs/demo repo=user/name`: a run as a model of the Hugging Face hub.

Writes a folder first, always: adapter (and LLM, where it was trained) as safetensors, config, result and a card.
Uploads it where there is a token (HF_TOKEN, or `hf auth login`). `checkpoint=hub:user/name` and `init=hub:user/name`
read it back. Keys: checkpoint, repo, out (<run>/hub), private (false), license (other).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.core.environment import prepare
from ima.core.errors import UserError, nearest
from ima.core.files import read_object, write_atomic, write_json
from ima.core.metric_names import IMA_MEAN, is_limit, limits_of
from ima.core.network import is_offline, settle
from ima.runs.find import find_adapter
from ima.runs.hub import PREFIX
from ima.runs.record import RunRecord, read_record

USAGE = "usage: python -m ima push checkpoint=outputs/<run> repo=user/name [out=FOLDER] [private=true] [license=mit]"
KEYS = {"checkpoint": "", "repo": "", "out": "", "private": "false", "license": "other"}
FIGURE = Path("figures") / "ima_by_layer.png"
LEFT_OUT = ("logger", "output_dir", "overwrite", "resume", "trust", "offline")  # of the config: nobody else's business
EMBEDDED = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gemma3_270m": "google/gemma-3-270m",
    "qwen_coder_0_5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "qwen_coder_1_5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
}
TASKS = {"image": "image-to-text", "video": "video-text-to-text", "audio": "audio-text-to-text"}
MAX_METRICS = 40


def main(argv: Sequence[str]) -> int:
    if not argv or "--help" in argv or "-h" in argv:
        print(f"{USAGE}\n\n{(__doc__ or '').strip()}")
        return 0
    options = read(argv)
    prepare()
    run, adapter = find_adapter(options["checkpoint"])
    folder = Path(options["out"]) if options["out"] else run / "hub"
    write(run, adapter, folder, options["repo"], options["license"])
    print(f"written: {folder}")
    settle("auto", [options["repo"]])
    print(upload(folder, options["repo"], options["private"] == "true"))
    return 0


def read(argv: Sequence[str]) -> dict[str, str]:
    """key=value options. Raises UserError for one that is unknown, missing or no name of the hub."""
    options = dict(KEYS)
    for text in argv:
        name, equals, value = text.partition("=")
        if not equals or name not in KEYS:
            raise UserError(f"{text}: no such key; {nearest(name, KEYS)}; {USAGE}")
        options[name] = value
    for name in ("checkpoint", "repo"):
        if not options[name]:
            raise UserError(f"{name}: missing; {USAGE}")
    if options["private"] not in ("true", "false"):
        raise UserError(f"private={options['private']}: allowed: true or false")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(options["repo"])
    except HFValidationError as error:
        raise UserError(f"repo={options['repo']}: no name of the hub; write repo=user/name") from error
    return options


def write(run: Path, adapter: Path, folder: Path, repo: str, license: str) -> None:
    """The folder that is uploaded. Another run's files there are replaced."""
    record = read_record(run)
    if not record.is_ok:
        raise UserError(f"{run}: has not ended well ({record.status}); give the same command again, then push")
    record.config = {name: value for name, value in record.config.items() if name not in LEFT_OUT}
    record.git, record.machine, record.command = {}, {}, ""
    record.more.pop("wandb", None)
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("", ".llm"):
        source, target = adapter.with_suffix(f"{stem}.safetensors"), folder / f"adapter{stem}.safetensors"
        target.unlink(missing_ok=True)
        if source.is_file():
            shutil.copyfile(source, target)
    facts = read_object(adapter.with_suffix(".json")) if adapter.with_suffix(".json").is_file() else {}
    write_json(folder / "adapter.json", facts | {"config": record.config})
    write_json(folder / "config.json", record.config)
    has_figure = (run / FIGURE).is_file()
    if has_figure:
        shutil.copyfile(run / FIGURE, folder / FIGURE.name)
    write_atomic(folder / "README.md", card(record, repo, license, has_figure))
    record.write(folder)


def card(record: RunRecord, repo: str, license: str, has_figure: bool) -> str:
    """README.md: metadata that the hub reads, then words for people."""
    from huggingface_hub import EvalResult, ModelCardData

    facts, metrics = record.facts, record.metrics
    shown = {name: value for name, value in metrics.items() if value is not None and is_shown(name)}
    source = str(facts.get("source") or "data")
    modality = str(facts.get("modality") or "image")
    task = TASKS.get(modality, "image-to-text")
    results = [
        EvalResult(task, slug(source), source, name, value, metric_name=f"{name}{interval(metrics, name)}")
        for name, value in list(shown.items())[:MAX_METRICS]
    ]
    data = ModelCardData(
        license=license,
        library_name="ima",
        pipeline_tag=task,
        tags=["ima", "implicit-multimodal-alignment", "adapter"],
        base_model=base_models(record) or None,
        datasets=datasets(record.config) or None,
        metrics=[name for name in shown][:MAX_METRICS],
        model_name=repo.rpartition("/")[2],
        eval_results=results or None,
    )
    names = [str(facts.get(key) or "?") for key in ("encoder", "adapter", "llm")]
    lines = [
        "---", data.to_yaml(), "---", "", f"# {repo}", "",
        f"An adapter ({names[1]}) that maps what the encoder {names[0]} gives into the language model {names[2]}, "
        f"trained with ima on {source} ({modality}). Implicit multimodal alignment (IMA) is how similar the "
        "perceptual and the textual tokens are inside the language model.", "",
        "```", f"python evaluate.py checkpoint={PREFIX}{repo}",
        f"python train.py init={PREFIX}{repo} ...                  # start from this adapter",
        f"python -m ima generate checkpoint={PREFIX}{repo} FILE", "```", "",
    ]  # fmt: skip
    if has_figure:
        lines += [f"![IMA by layer]({FIGURE.name})", ""]
    lines += ["| metric | value | 95 % interval |", "|---|---|---|"]
    lines += [f"| {name} | {value:.4g} | {interval(metrics, name).strip(' ()')} |" for name, value in shown.items()]
    lines += [
        "",
        f"Seed {record.seeds.get('seed')}. `config.json` is the whole config, `result.json` every metric.",
        "",
    ]
    return "\n".join(lines)


def is_shown(name: str) -> bool:
    """Headline numbers: scores of tracks, pooled alignment, losses."""
    return (
        name.startswith(("T", "test/", "val/", IMA_MEAN, "ima_gap")) and not is_limit(name) and not name.endswith("/se")
    )


def interval(metrics: Mapping[str, Any], name: str) -> str:
    low, high = (metrics.get(limit) for limit in limits_of(name))
    return "" if low is None or high is None else f" (95 %: {low:.3f} to {high:.3f})"


def slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text).strip("-")


def base_models(record: RunRecord) -> list[str]:
    """Names on the hub of the LLM and the encoder, as far as they have one."""
    config, found = record.config, []
    for group in ("llm", "encoder"):
        node = config.get(group) or {}
        path, kind = node.get("path"), str(node.get("_target_")).rpartition(".")[2]
        if isinstance(path, str) and path.count("/") == 1 and not Path(path).exists():
            found.append(path)
        elif kind in EMBEDDED:
            found.append(EMBEDDED[kind])
        elif node.get("name") and "checkpoint" in node:
            found.append(f"timm/{node['name']}")
    return found


def datasets(config: Mapping[str, Any]) -> list[str]:
    path = (config.get("data") or {}).get("path")
    return [path] if isinstance(path, str) and path.count("/") == 1 and not Path(path).exists() else []


def upload(folder: Path, repo: str, private: bool) -> str:
    """What to say: the address, or how to upload it. Raises UserError where the hub refuses."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    by_hand = f"hf upload {repo} {folder}"
    if is_offline():
        return f"not uploaded: the hub is not asked or not there; later: {by_hand}"
    if not get_token():
        return f"not uploaded: no token; hf auth login (or HF_TOKEN) and the same command, or later: {by_hand}"
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A run of ima")
        return f"uploaded: {api.endpoint}/{repo}"
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(f"repo={repo}: the hub refused or was lost ({reason}); the folder {folder} is whole") from error
