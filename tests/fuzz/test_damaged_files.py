"""Every file that the project writes or reads, damaged at random: it gives the same numbers or is refused in one line.

Files without a checksum (text that people may edit, data of others) may give other numbers, but none that is NaN or
infinite.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpora_files
import fuzzing
import numpy as np
import pytest
import test_hub
import torch

import ima
from ima.alignment.cone_file import read_sums
from ima.config.compose import CONF, compose, plain
from ima.config.instantiation import build as made
from ima.data.corpora.hub import HubCaptions
from ima.data.decode import READERS
from ima.data.feature_cache import FeatureStore
from ima.interventions.prune.mask import Mask
from ima.interventions.prune.sums import Sums
from ima.models.llava import foreign_adapter
from ima.models.llm.load import hf
from ima.models.llm.load import tiny as tiny_llm
from ima.models.llm.tuning import trained_tensors
from ima.pipeline.assemble import assemble
from ima.pipeline.checkpoint import load_adapter, load_checkpoint, load_llm
from ima.pipeline.parts import Parts
from ima.report import load
from ima.report.build import write_report
from ima.report.collect import table_row
from ima.report.correlation import lines_of
from ima.report.page.decoded import decoded
from ima.runs.compare import compare
from ima.runs.find import run_config
from ima.runs.results import read_rows

pytestmark = pytest.mark.fuzz
TINY = ["llm=tiny", "llm.train=lora", "data=shapes", "data.num_train=8", "data.num_test=4", "data.size=32",
        "adapter.hidden=8", "adapter.grid=1", "encoder=random_efficientnet", "trainer.accelerator=cpu",
        "task.max_new_tokens=4", "logger=none"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A file, what reads it as a nested value, whether reading compares a checksum, and how far numbers may be off that
    are computed again (in other batches)."""

    path: Path
    read: Callable[[Path], Any]
    is_checked: bool = True
    tolerance: float = 0.0


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Artefact]]:
    place = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMA_CACHE", str(place / "cache"))
        patch.chdir(place)
        patch.setattr("ima.pipeline.run.write_report", lambda folders: folders[0] / "report.html")
        build(place)
        yield artefacts_of(place)


def build(place: Path) -> None:
    """A run, two of its evaluations, a mask and a feature cache, all tiny."""
    ima.fit([*TINY, "trainer.max_epochs=2", "name=run"])
    ima.evaluate(["checkpoint=outputs/run", "alignment=full", "name=full"])
    ima.evaluate(["checkpoint=outputs/run", "intervention=prune", "name=pruned", "alignment=none"])
    shutil.copytree(place / "outputs/run", place / "twin")
    for corpus in (corpora_files.coco, corpora_files.vqav2, corpora_files.audiocaps, corpora_files.msrvtt):
        (place / corpus.__name__).mkdir()
        corpus(place / corpus.__name__)
    for kind, (write, _, _) in test_hub.KINDS.items():
        (place / kind).mkdir()
        write(place / kind, "train")
    tiny = tiny_llm()
    tiny.model.save_pretrained(place / "llm")
    tiny.tokenizer.save_pretrained(place / "llm")
    projector = {f"model.mm_projector.{n}.{kind}": torch.ones(4, *[4] * (kind == "weight")) for n in (0, 2)
                 for kind in ("weight", "bias")}  # fmt: skip
    torch.save(projector, place / "mm_projector.bin")
    shutil.copytree(CONF, place / "conf")


def artefacts_of(place: Path) -> dict[str, Artefact]:
    run, full, twin = place / "outputs/run", place / "outputs/full", place / "twin"
    config: Any = plain(compose([*TINY, "name=run"]))
    parts = assemble(config)
    adapter, llm = parts.adapter, parts.llm
    mask = next((place / "cache/masks").rglob("*.safetensors"))
    shard = next((place / "cache/features").rglob("*.safetensors"))
    sums = next((place / "cache/calibration").rglob("*.safetensors"))

    def weights(path: Path) -> Any:
        load_adapter(path, adapter)
        return {name: value.clone() for name, value in adapter.state_dict().items()}

    def tuned(path: Path) -> Any:
        load_llm(path.with_name("adapter.safetensors"), llm)
        return {name: value.clone() for name, value in trained_tensors(llm).items()}

    return {
        "result.json": Artefact(run / "result.json", read_run, is_checked=False),
        "rows.jsonl": Artefact(run / "rows.jsonl", lambda path: list(read_rows(path)), is_checked=False),
        "the page": Artefact(run / "rows.jsonl", read_page, is_checked=False),
        "predictions.jsonl": Artefact(
            run / "predictions.jsonl", lambda path: compare(path.parent, twin), is_checked=False
        ),
        "samples.jsonl": Artefact(run / "samples.jsonl", lambda path: load.read_samples(path)[0], is_checked=False),
        "adapter.safetensors": Artefact(run / "adapter.safetensors", weights),
        "adapter of an epoch": Artefact(run / "checkpoints/epoch-001.safetensors", weights),
        "LLM": Artefact(next(run.glob("*llm*.safetensors")), tuned),
        "checkpoint": Artefact(run / "checkpoints/last.safetensors", load_checkpoint),
        "sums": Artefact(full / "alignment.safetensors", lambda path: dataclasses.asdict(read_sums(path))),
        "mask": Artefact(mask, read_mask),
        "calibration": Artefact(sums, lambda path: vars(Sums.load(path)[0])),
        "examples.jsonl": Artefact(full / "examples.jsonl", lambda path: lines_of(path), is_checked=False),
        "features": Artefact(shard, features_reader(parts), tolerance=0.01),
        "decoded words": Artefact(full / "alignment.json", lambda path: decoded(path.parent), is_checked=False),
    } | inputs_of(place)


def inputs_of(place: Path) -> dict[str, Artefact]:
    """What people give."""
    read: dict[str, tuple[Path, Callable[[Path], Any]]] = {
        "captions": (place / "coco/dataset_coco.json", lambda path: texts_of("coco", path.parent)),
        "questions": (next((place / "vqav2").glob("*questions.json")), lambda path: texts_of("vqav2", path.parent)),
        "CSV": (place / "audiocaps/train.csv", lambda path: texts_of("audiocaps", path.parent)),
        "videodatainfo": (place / "msrvtt/train_val_videodatainfo.json", lambda path: texts_of("msrvtt", path.parent)),
        "picture": (next((place / "coco").rglob("*.jpg")), lambda path: pixels(READERS["image"](path, str(path)))),
        "PNG": (place / "outputs/run/media/T0-00.png", lambda path: pixels(READERS["image"](path, str(path)))),
        "sound": (next((place / "audiocaps").rglob("*.wav")), lambda path: wave(READERS["audio"](path, str(path)))),
        "clip": (next((place / "msrvtt").rglob("*.mp4")), lambda path: frames(READERS["video"](path, str(path)))),
        "JSONL table": (place / "jsonl/train.jsonl", table_reader("jsonl")),
        "Parquet table": (next((place / "parquet").glob("*.parquet")), table_reader("parquet")),
        "tar table": (place / "tar/train-0.tar", table_reader("tar")),
        "LLM's config": (place / "llm/config.json", lambda path: answer_of(hf(str(path.parent), dtype="float32"))),
        "tokenizer": (place / "llm/tokenizer.json", lambda path: answer_of(hf(str(path.parent), dtype="float32"))),
        "LLM's weights": (place / "llm/model.safetensors", lambda path: hf(str(path.parent), dtype="float32").name),
        "projector": (place / "mm_projector.bin", foreign_adapter),
        "experiment": (place / "conf/experiment/smoke.yaml", composed),
    }  # fmt: skip
    return {name: Artefact(path, reader, is_checked=False) for name, (path, reader) in read.items()}


@functools.lru_cache
def config_of(name: str, folder: Path) -> dict[str, Any]:
    return plain(compose(["llm=tiny", f"data={name}", f"data.folder={folder}"]))


def texts_of(name: str, folder: Path) -> Any:
    source = made(config_of(name, folder), "data")
    samples = [one for split in source.splits for one in source.samples(split)]
    return [(one.id, one.question, one.references, one.weights) for one in samples]


def composed(path: Path) -> Any:
    return plain(compose(["experiment=smoke"], conf=path.parents[1]))


def table_reader(kind: str) -> Callable[[Path], Any]:
    _, medium, text = test_hub.KINDS[kind]

    def read(path: Path) -> Any:
        source = HubCaptions(str(path.parent), "image", medium, text)
        samples = source.samples("train")
        return [(one.references, pixels(source.medium(one))) for one in samples]

    return read


def answer_of(llm: Any) -> Any:
    ids = llm.tokenizer("a picture", return_tensors="pt").input_ids
    return float(llm.model(input_ids=ids).logits.double().sum())


def pixels(image: Any) -> Any:
    return np.asarray(image)


def wave(sound: Any) -> Any:
    return (sound.wave, sound.rate, float(np.abs(sound.wave).max()))


def frames(clip: Any) -> Any:
    return [np.asarray(frame) for frame in clip.frames(range(0, clip.num_frames, 3))]


def read_run(path: Path) -> Any:
    run = ima.load_run(path.parent)
    row = table_row(load.load_run(path.parent, details=False))
    return {"config": run_config(str(path.parent)), "metrics": run.metrics, "facts": run.facts, "row": row}


def read_page(path: Path) -> Any:
    text = write_report([path.parent], path.parent.parent / "page.html").read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    return {}


def read_mask(path: Path) -> Any:
    mask = Mask.load(path)
    return {"density": mask.density, "bits": mask.bits, "facts": mask.facts, "shapes": mask.shapes}


def features_reader(parts: Parts) -> Callable[[Path], Any]:
    """Through the store, which computes anew what is damaged."""
    assert parts.store is not None
    samples, dtype = parts.source.samples("train"), parts.store.dtype

    def read(path: Path) -> Any:
        store = FeatureStore(path.parents[2], parts.source, parts.encoder, dtype)
        store.ensure(samples)
        return store.read(samples)

    return read


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    if isinstance(a, torch.Tensor):
        same_kind = isinstance(b, torch.Tensor) and a.dtype == b.dtype
        return same_kind and equal(a.float().numpy(), b.float().numpy(), tolerance)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.shape == b.shape and bool(np.allclose(a, b, tolerance, tolerance, True))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


NAMES = ["result.json", "rows.jsonl", "the page", "predictions.jsonl", "samples.jsonl", "examples.jsonl",
         "adapter.safetensors", "adapter of an epoch", "LLM", "checkpoint", "sums", "mask", "calibration", "features",
         "decoded words", "captions", "questions", "CSV", "videodatainfo", "picture", "PNG", "sound", "clip",
         "JSONL table", "Parquet table", "tar table", "LLM's config", "tokenizer", "LLM's weights", "projector",
         "experiment"]  # fmt: skip
# Where a case takes more than milliseconds.
NUM_CASES = {"the page": 12, "features": 12, "JSONL table": 30, "Parquet table": 30, "tar table": 30,
             "LLM's config": 40, "tokenizer": 40, "LLM's weights": 40, "experiment": 40}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_gives_the_same_numbers_or_one_line(
    name: str, artefacts: dict[str, Artefact], record_property: Callable[[str, str], None]
) -> None:
    artefact = artefacts[name]
    whole = artefact.path.read_bytes()
    wanted = artefact.read(artefact.path)
    cases = fuzzing.Cases(share=0.4 / len(NAMES))
    draw, number = random.Random(f"{fuzzing.SEED} {name}"), 0
    while number < NUM_CASES.get(name, 100) and not cases.is_over:
        number += 1
        what, content = fuzzing.damaged(whole, draw)
        artefact.path.write_bytes(content)
        with cases.case(f"{name} {number}: {what}"):
            found = artefact.read(artefact.path)
            same = equal(found, wanted, artefact.tolerance)
            cases.counts["same" if same else "other"] += 1
            if not same and artefact.is_checked:
                cases.fail(f"{name} {number}: {what}", "other numbers without a word")
            if odd := fuzzing.odd_numbers(found):
                cases.fail(f"{name} {number}: {what}", f"NaN or infinite: {odd[:3]}")
    artefact.path.write_bytes(whole)
    record_property("said", cases.said(f"damaged {name}", number))
    assert cases.failures == [], "\n".join(cases.failures)
