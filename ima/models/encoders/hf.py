"""What the encoders of Hugging Face's transformers share: configs, weights and processors by path, and one layer.

A path is a local folder or a name on the hub. Hides what each library raises when something cannot be had or does not
fit (it becomes one line), and makes sure that no part of an encoder keeps random weights unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError, nearest
from ima.core.network import hint
from ima.core.trust import STOCK, reason_of
from ima.models.encoders.base import seeded

FINAL = -1  # the layer that stands for the network's own output, its last norm included


def cannot(path: str, what: str, error: Exception) -> UserError:
    reason = reason_of(error)
    if Path(path).exists():
        return UserError(f"encoder.path={path}: {what} cannot be loaded from that folder ({reason})")
    return UserError(
        f"encoder.path={path}: {what} is neither a folder here nor in the local hub cache ({reason}); download it "
        f"first (hf download {path}) or give a local folder{hint()}"
    )


def read_config(path: str, revision: str | None, known: dict[str, Any]) -> Any:
    """The model's own config; its `model_type` is one of `known`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, **STOCK)
    except Exception as error:  # the hub, the network, JSON and the config classes each have their own kinds
        raise cannot(path, "config.json", error) from error
    if config.model_type not in known:
        raise UserError(f"encoder.path={path}: holds a {config.model_type} model; {nearest(config.model_type, known)}")
    return config


def read_json(path: str, revision: str | None, name: str) -> dict[str, Any]:
    """A JSON file that lies beside the model's config."""
    from transformers.utils import cached_file

    try:
        found = cached_file(path, name, revision=revision)
        read: dict[str, Any] = json.loads(Path(str(found)).read_text())
    except Exception as error:
        raise cannot(path, name, error) from error
    if not isinstance(read, dict):
        raise UserError(f"encoder.path={path}: {name} holds no JSON object")
    return read


def read_processor(path: str, revision: str | None, part: str) -> dict[str, Any]:
    """What the checkpoint says about preparing media. part: image_processor or video_processor. Transformers writes a
    file for each processor, and since version 5 one file (processor_config.json) in which each has its own part."""
    try:
        return read_json(path, revision, "preprocessor_config.json")
    except UserError as missing:
        try:
            whole = read_json(path, revision, "processor_config.json")
        except UserError:
            raise missing from missing.__cause__
    found = whole.get(part, whole.get("image_processor"))
    if not isinstance(found, dict):
        raise UserError(f"encoder.path={path}: its processor_config.json has no {part}")
    return found


def load_model(name: str, path: str, config: Any, pretrained: bool, revision: str | None, seed: int) -> Any:
    """The class `name` of transformers with its weights (float32), or with random ones drawn from `seed`."""
    import transformers

    kind = getattr(transformers, name)
    if not pretrained:
        with seeded(seed):
            return kind(config)
    try:
        model, info = kind.from_pretrained(
            path, config=config, revision=revision, dtype=torch.float32, output_loading_info=True, **STOCK
        )
    except Exception as error:  # pickled files and full disks have kinds of their own, too
        raise cannot(path, "its weights", error) from error
    model.missing = tuple(sorted(info["missing_keys"]))
    return model


def check_complete(model: nn.Module, tower: nn.Module, path: str) -> None:
    """No parameter of the part that is kept was missing from the checkpoint."""
    kept = {id(parameter) for parameter in tower.parameters()}
    own = {name for name, parameter in model.named_parameters() if id(parameter) in kept}
    missing = [name for name in getattr(model, "missing", ()) if name in own]
    if missing:
        raise UserError(f"encoder.path={path}: its weights lack {missing[0]} and {len(missing) - 1} others")


def keep_layers(blocks: nn.ModuleList, layer: int) -> None:
    """Drop the blocks after `layer`; raises UserError where the network has no such layer."""
    if not FINAL <= layer <= len(blocks):
        raise UserError(f"encoder.layer={layer}: allowed are 0 to {len(blocks)}, or -1 for the output")
    if layer != FINAL:
        del blocks[max(layer, 1) :]


def read_layer(blocks: nn.ModuleList, layer: int, run: Callable[[], Tensor]) -> Tensor:
    """What `run` returns (FINAL), what enters the first block (0) or leaves block `layer` (from 1) while it runs."""
    if layer == FINAL:
        return run()
    seen: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = blocks[layer - 1].register_forward_hook(after)
    try:
        run()
    finally:
        handle.remove()
    return seen[0]
