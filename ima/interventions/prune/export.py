"""A pruned checkpoint that plain transformers loads, and 2:4 sparse weights for the GPUs that multiply them faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ima.core.errors import UserError
from ima.core.files import temporary_beside, write_json
from ima.interventions.prune.apply import check_fit, masked
from ima.interventions.prune.mask import Mask
from ima.models.llm.frozen import FrozenLLM


def export(mask: Mask, name: str, folder: Path, load: Callable[[], FrozenLLM]) -> Path:
    """config.json, safetensors and tokenizer with the pruned weights zero, whole or not at all; the mask's provenance
    beside them in mask.json. load: gives the LLM that the mask was made for. Raises UserError where the folder is
    taken."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already and is not empty; give another --out")
    llm = load()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_beside(folder) as temporary:
            with masked(llm, mask, name):
                llm.model.save_pretrained(temporary)
            llm.tokenizer.save_pretrained(temporary)
            write_json(temporary / "mask.json", mask.facts)
            temporary.chmod(0o755)
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; free some space or give another --out") from error
    return folder


def complaint_sparse(llm: FrozenLLM, mask: Mask) -> str:
    """Why 2:4 products cannot run here; "" where they can."""
    if mask.facts.get("pattern") != "2:4":
        return f"the mask's pattern is {mask.facts.get('pattern', 'unstructured')}, 2:4 is needed (pattern=2:4)"
    if not torch.cuda.is_available():
        return "no CUDA GPU here; 2:4 weights are multiplied faster by GPUs of compute capability 8.0 and later only"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    if llm.dtype not in (torch.float16, torch.bfloat16):
        return f"weights are {llm.dtype}; use llm.dtype=bfloat16"
    return ""


@contextmanager
def semi_structured(llm: FrozenLLM, mask: Mask, name: str = "mask") -> Iterator[None]:
    """The LLM under a 2:4 mask whose zeros are not multiplied. Raises UserError where that cannot be. For inference:
    nothing can be differentiated through these weights."""
    from torch.sparse import to_sparse_semi_structured

    reason = complaint_sparse(llm, mask)
    if reason:
        raise UserError(f"{name}: semi-structured sparsity: {reason}")
    linears = check_fit(llm, mask, name)
    dense: dict[str, Any] = {}
    with masked(llm, mask, name):
        try:
            for path, linear in linears.items():
                dense[path] = linear.weight
                sparse: Any = to_sparse_semi_structured(linear.weight.detach().clone())
                linear.weight = nn.Parameter(sparse, requires_grad=False)
            with (
                torch.inference_mode()
            ):  # under no_grad alone torch takes such products apart, which it cannot for these
                yield
        finally:
            for path, weight in dense.items():
                weight.data = weight.data.to(linears[path].weight.device)
                linears[path].weight = weight
