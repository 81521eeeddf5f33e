"""Where encoder weights come from and what their parts are called there.

Local checkpoint files, the model hub by way of timm, and the two embedded files with names of their own. Foreign
files are only ever read as weights, never unpickled freely.
"""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.network import hint
from ima.models.formats.onnx import OnnxGraph


def lite_key(key: str, places: list[str]) -> str:
    """Name in the package -> name in timm; `places[k]` is 'stage.index' of the k-th block."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inner = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    inner |= {f"_bn{i}": f"bn{i + 1}" for i in range(3)}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        part, kind = key.split(".")
        return f"{outer[part]}.{kind}"
    block = int(match[1])
    part = (first if block == 0 else inner)[match[2]]  # block 0 has no expansion
    return f"blocks.{places[block]}.{part}.{match[3]}"


def dinov2_weights(graph: OnnxGraph) -> dict[str, Tensor]:
    """The ONNX export kept some names and lost those of the matrices; the node that multiplies by one still has it."""
    weights = {}
    for name, array in graph.tensors.items():
        if name.startswith("backbone."):
            weights[name.removeprefix("backbone.")] = array
    positions: dict[str, Any] = {}
    for node in graph.nodes:
        stored = [name for name in node.inputs if name in graph.tensors]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/") and stored:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            weights[path.replace("/", ".") + ".weight"] = graph.tensors[stored[0]].T
        elif node.name in ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1"):
            positions[node.name] = graph.tensors[stored[0]]
    both = [positions[f"/backbone/embeddings/{name}"] for name in ("Concat_6", "Reshape_1")]
    weights["embeddings.position_embeddings"] = np.concatenate(both, axis=1)
    renamed = {}
    for name, array in weights.items():
        name = re.sub(r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj", name)
        name = name.replace("attention.output.dense", "attention.o_proj")
        renamed[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    return renamed


def download_weights(name: str, facts: dict[str, Any]) -> dict[str, Tensor]:
    """Pretrained weights by way of timm, from the hub's local cache where they lie there.

    The hub's own client asks again and again for most of a minute when there is no network, so that is found out
    first, with one question.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    hub_id = facts.get("hf_hub_id")
    cached = try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
    try:
        if isinstance(cached, str):
            model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": cached})
        else:
            if hub_id:
                with contextlib.suppress(urllib.error.HTTPError):  # any answer will do
                    urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub, the network and timm each have their own kinds
        raise UserError(
            f"encoder: the weights of {name} cannot be had ({type(error).__name__}); connect once, give "
            f"encoder.checkpoint=<local file>, or take an embedded encoder (efficientnet_lite0, focus_vit){hint()}"
        ) from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def read_checkpoint(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """A local weights file; the classifier is left out, since features are read before it."""
    from safetensors.torch import load_file

    weights: Any
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in many ways
        raise UserError(f"encoder.checkpoint={path}: cannot be read ({str(error).splitlines()[0]})") from error
    weights = next((weights[key] for key in ("state_dict", "model") if isinstance(weights.get(key), dict)), weights)
    own = model.state_dict().keys()
    return {key: value for key, value in weights.items() if key in own or not re.match(r"(classifier|head|fc)\.", key)}


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:2]]
        raise UserError(f"encoder: {source} do not fit {type(model).__name__}: {' '.join(lines)[:160]}") from error


def aisfx_weights(path: Path) -> dict[str, Tensor]:
    """The embedding network out of the checkpoint, a tuple (weights, numbers of classes); its heads have no names of
    classes and are left out. The numbers are numpy's: their kinds are allowed beside the weights, nothing else."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    allowed: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Int64DType]
    try:
        with torch.serialization.safe_globals(allowed):
            weights, _ = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in many ways
        raise UserError(f"{path}: not the checkpoint of aisfx ({str(error).splitlines()[0][:80]})") from error
    prefix = "embedding_net."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
