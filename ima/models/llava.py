"""LLaVA's files: projectors in, our parts out as a Hugging Face LlavaForConditionalGeneration.

Hidden here: key names, the image token, what LLaVA can hold (an `mlp` adapter of ours over a ViT of transformers) and
what it cannot. `init=<file or folder>` reads their projectors, `python -m ima export-llava` writes such a model.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.trust import reason_of
from ima.models.adapters.base import Adapter
from ima.models.adapters.linear import MlpAdapter
from ima.models.encoders.base import Encoder
from ima.models.encoders.image import FocusViT
from ima.models.encoders.llava import LlavaTower
from ima.models.llm.frozen import FrozenLLM

IMAGE_TOKEN = "<image>"
# Their names of what is `up` and `proj` here (LLaVA's own files, transformers'), and the published ST connectors'.
NAMES = {
    r"(?:.*\.)?mm_projector\.0\.": "up.",
    r"(?:.*\.)?mm_projector\.2\.": "proj.",
    r"(?:.*\.)?multi_modal_projector\.linear_1\.": "up.",
    r"(?:.*\.)?multi_modal_projector\.linear_2\.": "proj.",
    r"(?:module\.)?connector\.0\.": "",
}
# All of a projector: what is in it but not among `NAMES` would be lost without a word.
PROJECTOR = r"(?:.*\.)?(?:mm_projector\.|multi_modal_projector\.|connector\.\d)"


def is_foreign(path: Path) -> bool:
    """A projector or connector of somebody else's, or a folder with a whole LLaVA model."""
    is_run = (path / "result.json").is_file()  # one of ours from the hub has both
    return path.suffix in (".bin", ".pth", ".pt") or ((path / "config.json").is_file() and not is_run)


def foreign_adapter(path: Path) -> dict[str, Tensor]:
    """Weights under the names that our adapters have. Raises UserError where the file holds no adapter."""
    tensors = folder_tensors(path) if path.is_dir() else pickled_tensors(path)
    found = {}
    for name, value in tensors.items():
        matches = [(ours, match.end()) for pattern, ours in NAMES.items() if (match := re.match(pattern, name))]
        if matches:
            ours, end = matches[0]
            found[ours + name[end:]] = value.float()
        elif re.match(PROJECTOR, name):
            raise UserError(
                f"{path}: {name} has no place in an adapter of two layers (adapter=mlp): is it another kind?"
            )
    if not found:
        raise UserError(f"{path}: holds no mm_projector, multi_modal_projector or connector.0; is it an adapter?")
    return found


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickled file, read as such and nothing else."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling has many kinds of its own
        raise UserError(f"{path}: cannot be read as weights ({reason_of(error, 120)})") from error
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
