"""LLaVA's files: projectors and Hugging Face LlavaForConditionalGeneration in, a run out as such a model.

`python -m ima.llava outputs/run --out folder` writes a folder that plain transformers loads, with a model card made
from the run's files. Hidden here: key names, the image token, what LLaVA can hold (an `mlp` adapter of ours over a
ViT of transformers) and what it cannot. `init=<file or folder>` reads their projectors.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima.adapters import Adapter, MlpAdapter
from ima.encoders.base import Encoder
from ima.errors import UserError
from ima.llm.frozen import FrozenLLM

IMAGE_TOKEN = "<image>"
# Their names of what is `up` and `proj` here (LLaVA's own files, transformers'), and the published ST connectors'.
NAMES = {
    r"(?:.*\.)?mm_projector\.0\.": "up.",
    r"(?:.*\.)?mm_projector\.2\.": "proj.",
    r"(?:.*\.)?multi_modal_projector\.linear_1\.": "up.",
    r"(?:.*\.)?multi_modal_projector\.linear_2\.": "proj.",
    r"(?:module\.)?connector\.0\.": "",
}


def is_foreign(path: Path) -> bool:
    """A projector or connector of somebody else's, or a folder with a whole LLaVA model."""
    return path.suffix in (".bin", ".pth", ".pt") or (path / "config.json").is_file()


def foreign_adapter(path: Path) -> dict[str, Tensor]:
    """Weights under the names that our adapters have. Raises UserError where the file holds no adapter."""
    tensors = folder_tensors(path) if path.is_dir() else pickled_tensors(path)
    found = {}
    for name, value in tensors.items():
        for pattern, ours in NAMES.items():
            if match := re.match(pattern, name):
                found[ours + name[match.end() :]] = value.float()
    if not found:
        raise UserError(f"{path}: holds no mm_projector, multi_modal_projector or connector.0; is it an adapter?")
    return found


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickled file, read as such and nothing else."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling has many kinds of its own
        raise UserError(f"{path}: cannot be read as weights ({str(error).splitlines()[0][:120]})") from error
    for key in ("model", "state_dict"):
        loaded = loaded.get(key, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not tensors by name")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The projector's tensors of a model folder (safetensors, in one file or many)."""
    from safetensors import SafetensorError, safe_open

    out: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                out |= {key: file.get_tensor(key) for key in file.keys() if "projector" in key}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return out


# -- out -------------------------------------------------------------------------------------------------------------


def tower_of(encoder: Encoder) -> tuple[Any, int, str]:
    """(a stock vision model, the layer that LLaVA reads, which of its tokens). Raises UserError for what it cannot
    hold."""
    from ima.encoders.image import FocusViT
    from ima.encoders.llava import LlavaTower

    if isinstance(encoder, LlavaTower):
        return encoder.model, encoder.layer, encoder.select
    if not isinstance(encoder, FocusViT) or encoder.layer < 0:
        raise UserError(
            f"encoder: LLaVA cannot hold {type(encoder).__name__}"
            f"{f' at layer {encoder.layer}' if isinstance(encoder, FocusViT) else ''}; it reads a hidden layer of a "
            "ViT of transformers: focus_vit (layer 0 to 12) or llava"
        )
    model = copy.deepcopy(encoder.model)
    model.layernorm = nn.LayerNorm(encoder.dim)  # never read, but stock models have one
    facts = model.config.to_dict() | {"num_hidden_layers": len(model.encoder.layer)}
    for name in (
        "stage_names",
        "out_features",
        "out_indices",
        "_out_features",
        "_out_indices",
    ):  # follow from the depth
        facts.pop(name, None)
    model.config = type(model.config).from_dict(facts)
    return model, encoder.layer, "full"


def llava_of(encoder: Encoder, adapter: Adapter, llm: FrozenLLM) -> tuple[Any, Any]:
    """(LlavaForConditionalGeneration, tokenizer) of our parts; weights are shared where they can be."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    if not isinstance(adapter, MlpAdapter):
        raise UserError(f"adapter: LLaVA cannot hold a {type(adapter).__name__}; it has two layers (adapter=mlp)")
    tower, layer, select = tower_of(encoder)
    llm.merge()
    tokenizer, text = copy.deepcopy(llm.tokenizer), llm.model
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id >= text.config.vocab_size:
        text = copy.deepcopy(text)
        text.resize_token_embeddings(image_id + 1, mean_resizing=False)
    kind: Any = LlavaConfig
    config = kind(
        vision_config=tower.config,
        text_config=text.config,
        image_token_id=image_id,
        vision_feature_layer=layer,
        vision_feature_select_strategy=select,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(getattr(text.config, "tie_word_embeddings", False)),
    )
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = text.base_model
    model.lm_head = text.get_output_embeddings()
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    projector.linear_1.load_state_dict(adapter.up.state_dict())
    projector.linear_2.load_state_dict(adapter.proj.state_dict())
    return model.eval().requires_grad_(False), tokenizer


def export(run: Path, out: Path) -> None:
    """A finished run as a LLaVA model folder. Raises UserError naming what LLaVA cannot hold."""
    from ima.checkpoint import load_adapter, load_llm
    from ima.config import run_config
    from ima.parts import assemble
    from ima.results import read_result, write_atomic
    from ima.stages import effective

    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; give another folder")
    config = effective(run_config(str(run)), training=False)
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
    write_atomic(out / "README.md", model_card(run.name, read_result(run)))


def processor_of(encoder: Encoder, config: Any, tokenizer: Any) -> Any:
    """What turns pictures and text into the model's input: as many image tokens as the tower has places."""
    from transformers import BitImageProcessor, LlavaProcessor

    preprocess: Any = encoder.preprocess
    patch, strategy = config.vision_config.patch_size, config.vision_feature_select_strategy
    grid = (preprocess.height // patch) * (preprocess.width // patch)
    pictures = BitImageProcessor(
        size={"height": preprocess.height, "width": preprocess.width},
        do_center_crop=False,
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=encoder.num_tokens - grid + (strategy == "default"),
        chat_template=tokenizer.chat_template,
    )


def model_card(name: str, result: dict[str, Any]) -> str:
    """What a reader of the folder must know, from the run's own files."""
    facts, config = result.get("facts", {}), result.get("config", {})
    metrics = {
        key: value for key, value in result.get("metrics", {}).items() if key.count("/") < 3 and value is not None
    }
    lines = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text", "---", "", f"# {name}", ""]
    lines += [f"- LLM: {facts.get('llm')} ({facts.get('llm_train', 'frozen')})", f"- encoder: {facts.get('encoder')}"]
    lines += [f"- adapter: {facts.get('adapter')}, {facts.get('num_trainable')} trained parameters"]
    lines += [
        f"- data: {facts.get('source')}",
        f"- command: `{result.get('command')}`",
        f"- seed: {config.get('seed')}",
    ]
    lines += [
        f"- git: {json.dumps(result.get('git'))}",
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ima.llava", description="Write a run as a LLaVA model folder.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    arguments = parser.parse_args()
    try:
        export(arguments.run, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
