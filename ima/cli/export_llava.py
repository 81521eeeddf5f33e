"""`python -m ima export-llava outputs/run --out folder`: a run as a LLaVA model folder that plain transformers loads.

With a model card made from the run's files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.core.trust import trusting
from ima.models.llava import llava_of, processor_of
from ima.runs.identity import with_dtype
from ima.runs.record import RunRecord, read_record


def export(run: Path, out: Path) -> None:
    """A finished run as a LLaVA model folder. Raises UserError naming what LLaVA cannot hold."""
    from ima.core.files import write_atomic
    from ima.pipeline.assemble import assemble
    from ima.pipeline.checkpoint import load_adapter, load_llm
    from ima.pipeline.stages import apply_stage
    from ima.runs.find import PARTS, run_config

    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; give another folder")
    config = apply_stage(run_config(str(run), PARTS), training=False)
    config["llm"] = with_dtype(config["llm"], read_record(run).facts, run / "result.json")
    parts = assemble({**config, "intervention": {}, "alignment": None})
    if list(parts.channels) != [""]:
        raise UserError(f"{run}: has {len(parts.channels)} adapters, LLaVA holds one; export a run of pictures alone")
    channel = parts.channels[""]
    load_adapter(run / "adapter.safetensors", channel.adapter)
    if parts.llm.trains != "none":
        load_llm(run / "adapter.safetensors", parts.llm)
    model, tokenizer = llava_of(channel.encoder, channel.adapter, parts.llm)
    if parts.llm.chat is not None:
        tokenizer.chat_template = parts.llm.chat.template
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor_of(channel.encoder, model.config, tokenizer).save_pretrained(out)
    write_atomic(out / "README.md", model_card(run.name, read_record(run)))


def model_card(name: str, record: RunRecord) -> str:
    """What a reader of the folder must know, from the run's own files."""
    facts = record.facts
    metrics = {key: value for key, value in record.metrics.items() if key.count("/") < 3 and value is not None}
    lines = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text", "---", "", f"# {name}", ""]
    lines += [f"- LLM: {facts.get('llm')} ({facts.get('llm_train', 'frozen')})", f"- encoder: {facts.get('encoder')}"]
    lines += [f"- adapter: {facts.get('adapter')}, {facts.get('num_trainable')} trained parameters"]
    lines += [
        f"- data: {facts.get('source')}",
        f"- command: `{record.command}`",
        f"- seed: {record.config.get('seed')}",
    ]
    lines += [
        f"- git: {json.dumps(record.git)}",
        "",
        "Weights of the LLM and the encoder keep their licences.",
        "",
    ]
    lines += [
        "| metric | value |",
        "|---|---|",
        *(f"| {key} | {value:.4g} |" for key, value in sorted(metrics.items())),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ima export-llava", description="Write a run as a LLaVA model folder."
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE", help="of yours, which it may name")
    arguments = parser.parse_args(argv)
    try:
        with trusting(arguments.trust, ask="--trust {}"):
            export(arguments.run, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0
