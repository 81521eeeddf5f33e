"""Batches, schedules, loaders and the feature store: nothing lost, nothing twice, nothing damaged unseen."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ima.data.feature_cache
from ima.core.errors import UserError
from ima.core.types import Batch, Role, Sample
from ima.data.collate import CachedMediaInputs, Collate, LiveMediaInputs, NoiseMediaInputs, NoMediaInputs
from ima.data.feature_cache import FeatureStore
from ima.data.loader import TrainLoader, eval_loader, schedule
from ima.models.encoders.base import Encoder, fingerprint_of
from ima.models.encoders.controls import NoiseEncoder
from ima.models.llm.load import tiny
from ima.tasks.caption import CaptionTask

P, Q, A, S0, PAD = (int(role) for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD))


class Grey:
    """Pictures of one grey each, told by the sample's number."""

    modality, splits, name = "image", ("train",), "grey"

    def __init__(self, num: int = 10) -> None:
        self.num = num
        self.num_rendered = 0

    @property
    def fingerprint(self) -> str:
        return "grey-1"

    def samples(self, split: str) -> list[Sample]:
        words = ("cat", "a dog", "an elephant", "two trees and a house")
        return [
            Sample(f"g/{i}", "train", "train", "image", (words[i % 4], f"{words[i % 4]} again"))
            for i in range(self.num)
        ]

    def medium(self, sample: Sample) -> Image.Image:
        self.num_rendered += 1
        return Image.new("RGB", (4, 4), (int(sample.id.split("/")[1]) * 3 % 256,) * 3)


class Means(Encoder):
    """Two tokens of width three: the grey value times constants."""

    modality, dim, num_tokens = "image", 3, 2

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.fingerprint = fingerprint_of(None, kind="means", scale=scale)
        self.preprocess = pixels
        self.largest_batch = 0
        self.freeze()

    def encode(self, x_B: torch.Tensor) -> torch.Tensor:
        self.largest_batch = max(self.largest_batch, len(x_B))
        factors = torch.tensor([[1.0, 0.3, 0.01], [-0.7, 2.0, 1e-3]])
        return x_B.mean((1, 2, 3))[:, None, None] * factors * self.scale


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32)) / 255


@pytest.fixture(scope="module")
def llm():  # type: ignore[no-untyped-def]
    return tiny()


def collate(llm, **options) -> Collate:  # type: ignore[no-untyped-def]
    return Collate(CaptionTask(prompt="see:"), llm, options.pop("percepts", NoMediaInputs()), **options)


# -- collate -----------------------------------------------------------------------------------------------------------


def test_roles_and_labels_by_hand(llm) -> None:  # type: ignore[no-untyped-def]
    batch = collate(llm)([(sample, 0) for sample in Grey(2).samples("train")])
    text, prompt = llm.encode(" cat"), llm.encode("see:")
    assert batch.ids_BT[0].tolist() == [*prompt, *text, llm.eos_id] + [llm.pad_id] * 2
    assert batch.roles_BT[0].tolist() == [Q] * 4 + [A] * 4 + [S0] + [PAD] * 2
    assert batch.labels_BT[0].tolist() == [-100] * 4 + [*text, llm.eos_id] + [-100] * 2
    assert batch.labels_BT[1].tolist() == [-100] * 4 + [*llm.encode(" a dog"), llm.eos_id]


def test_loss_on_text_supervises_the_prompt_too(llm) -> None:  # type: ignore[no-untyped-def]
    batch = collate(llm, loss_on="text")([(Grey(1).samples("train")[0], 0)])
    assert torch.equal(batch.labels_BT, batch.ids_BT)


def test_a_bos_is_special_and_never_supervised(llm) -> None:  # type: ignore[no-untyped-def]
    from ima.models.llm.frozen import FrozenLLM
    from ima.models.llm.tiny import tiny_model, tiny_tokenizer

    with_bos = FrozenLLM(tiny_model(), tiny_tokenizer(), bos="always")
    batch = collate(with_bos, loss_on="text")([(Grey(1).samples("train")[0], 0)])
    assert (batch.ids_BT[0, 0], batch.roles_BT[0, 0], batch.labels_BT[0, 0]) == (with_bos.bos_id, S0, -100)


def test_a_prompt_has_the_same_tokens_in_training_and_in_generation(llm) -> None:  # type: ignore[no-untyped-def]
    items = [(sample, 0) for sample in Grey(4).samples("train")]
    with_answers, without = collate(llm)(items), collate(llm, answers=False)(items)
    assert torch.equal(with_answers.ids_BT[:, : without.ids_BT.shape[1]], without.ids_BT)
    assert bool((without.roles_BT == Q).all()) and bool((without.labels_BT == -100).all())


def test_a_sample_without_a_target_is_named(llm) -> None:  # type: ignore[no-untyped-def]
    task = CaptionTask(prompt="")
    empty = Sample("g/empty", "train", "train", "image", ("",))
    with pytest.raises(UserError, match="g/empty.*nothing to learn"):
        Collate(task, llm, NoMediaInputs())([(empty, 0)])


def test_noise_is_fresh_in_each_epoch_of_training_and_fixed_in_evaluation(llm) -> None:  # type: ignore[no-untyped-def]
    noise, samples = NoiseMediaInputs(NoiseEncoder(dim=3, num_tokens=2)), Grey(2).samples("train")

    def seen(training: bool, draw: int) -> torch.Tensor:
        features = collate(llm, percepts=noise, training=training)([(s, draw) for s in samples]).features_BNE
        assert features is not None
        return features

    assert not torch.equal(seen(True, 0), seen(True, 1))
    assert torch.equal(seen(True, 1), seen(True, 1))
    assert torch.equal(seen(False, 0), seen(False, 1))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_splitting_a_batch_keeps_everything(llm, size: int) -> None:  # type: ignore[no-untyped-def]
    noise = NoiseMediaInputs(NoiseEncoder(dim=3, num_tokens=2))
    batch = collate(llm, percepts=noise)([(sample, 0) for sample in Grey(5).samples("train")])
    parts = batch.split(size)
    assert [len(part) for part in parts] == [len(batch.samples[i : i + size]) for i in range(0, 5, size)]
    assert [s.id for part in parts for s in part.samples] == [s.id for s in batch.samples]
    row = 0
    for part in parts:
        length = part.ids_BT.shape[1]
        assert part.features_BNE is not None and batch.features_BNE is not None
        for index in range(len(part)):
            for name in ("ids_BT", "roles_BT", "labels_BT"):
                assert torch.equal(getattr(part, name)[index], getattr(batch, name)[row, :length])
            assert bool((batch.roles_BT[row, length:] == PAD).all())
            assert torch.equal(part.features_BNE[index], batch.features_BNE[row])
            row += 1


# -- schedule and loaders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "size"), [(10, 3), (12, 4), (1, 5), (7, 1)])
def test_each_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone(num: int, size: int) -> None:
    batches = schedule(num, size, 3, 2)
    assert sorted(np.concatenate(batches).tolist()) == list(range(num))
    assert all(len(batch) == size for batch in batches[:-1])
    np.random.random(5)  # nobody else's random numbers are used up, and theirs do not matter
    assert all(np.array_equal(a, b) for a, b in zip(batches, schedule(num, size, 3, 2), strict=True))
    if num > 5:
        orders = [np.concatenate(schedule(num, size, *key)).tolist() for key in ((3, 2), (3, 3), (4, 2), (2, 3))]
        assert len({tuple(order) for order in orders}) == 4


def loader(llm, rank: int = 0, world: int = 1, num: int = 11, size: int = 4) -> TrainLoader:  # type: ignore[no-untyped-def]
    return TrainLoader(Grey(num).samples("train"), collate(llm, training=True), size, 7, rank, world)


def ids(batch: Batch) -> list[str]:
    return [sample.id for sample in batch.samples]


@pytest.mark.parametrize("stop", range(7))
def test_a_loader_resumed_anywhere_gives_the_rest_and_no_sample_twice(llm, stop: int) -> None:  # type: ignore[no-untyped-def]
    whole = loader(llm)
    epochs = [[ids(batch) for batch in whole] for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    first, seen = loader(llm), []
    for _ in range(3):
        for batch in first:
            seen.append(ids(batch))
            if len(seen) == stop:
                break
        if len(seen) >= stop:
            break
    if stop == 0:
        first = loader(llm)
        seen = []
    resumed = loader(llm)
    resumed.load_state_dict(first.state_dict())
    rest = [ids(batch) for batch in resumed]
    if resumed.epoch < 2:
        rest += [ids(batch) for batch in resumed]
    if resumed.epoch < 2:
        rest += [ids(batch) for batch in resumed]
    assert seen + rest == [batch for epoch in epochs for batch in epoch]
    for epoch in epochs:
        assert max(Counter(name for batch in epoch for name in batch).values()) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("num", [4, 5, 9, 11, 13])
def test_ranks_share_every_global_batch(llm, world: int, num: int) -> None:  # type: ignore[no-untyped-def]
    alone = loader(llm, 0, 1, num)
    ranks = [loader(llm, rank, world, num) for rank in range(world)]
    given = [list(rank) for rank in ranks]
    assert {len(part) for part in given} | {len(rank) for rank in ranks} == {len(alone)}, "a rank would wait for ever"
    assert all(len(batch) > 0 for part in given for batch in part)
    parts = [[ids(batch) if bool((batch.labels_BT != -100).any()) else [] for batch in part] for part in given]
    shared = [sorted(name for part in batches for name in part) for batches in zip(*parts, strict=True)]
    assert shared == [sorted(ids(batch)) for batch in alone]
    assert sorted(sum(shared, [])) == sorted(sample.id for sample in Grey(num).samples("train"))


def test_a_batch_smaller_than_the_ranks_and_an_empty_split_are_refused(llm) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="loader.batch_size: 2 .* 3 ranks"):
        loader(llm, 0, 3, size=2)
    with pytest.raises(UserError, match="train split is empty"):
        loader(llm, num=0)


def test_a_checkpoint_of_other_data_is_refused(llm) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="11 samples.*12"):
        loader(llm, num=12).load_state_dict(loader(llm).state_dict())


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("num", [1, 2, 7])
def test_evaluation_shows_each_sample_once_over_all_ranks(llm, world: int, num: int) -> None:  # type: ignore[no-untyped-def]
    samples = Grey(num).samples("train")
    seen = [
        name
        for rank in range(world)
        for batch in eval_loader(samples, collate(llm), 2, rank, world)
        for name in ids(batch)
    ]
    assert sorted(seen) == sorted(sample.id for sample in samples)


# -- feature store -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ima.data.feature_cache, "SHARD_SIZE", 4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.usefixtures("small_shards")
def test_cached_features_are_the_live_ones_rounded_to_the_stored_type(tmp_path: Path, dtype: str) -> None:
    source, encoder = Grey(10), Means()
    samples = source.samples("train")
    store = FeatureStore(tmp_path, source, encoder, dtype)
    assert store.ensure(samples, batch_size=3) == 10
    live = encoder(LiveMediaInputs(source, encoder)(samples, None)["media"])
    expected = live.to(getattr(torch, dtype)).float()
    order = [7, 0, 9, 3, 3]
    found = CachedMediaInputs(store)([samples[i] for i in order], None)["features_BNE"]
    assert torch.equal(found, expected[order])
    assert encoder.largest_batch == 10 and found.dtype == torch.float32


@pytest.mark.usefixtures("small_shards")
def test_only_what_is_missing_is_computed_and_batches_stay_small(tmp_path: Path) -> None:
    source, encoder = Grey(10), Means()
    samples = source.samples("train")
    store = FeatureStore(tmp_path, source, encoder)
    assert [store.ensure(samples[:6], batch_size=3), source.num_rendered] == [6, 6]
    assert [store.ensure(samples, batch_size=3), source.num_rendered] == [4, 10]
    again = FeatureStore(tmp_path, source, encoder)
    assert [again.ensure(samples), source.num_rendered] == [0, 10]
    assert torch.equal(again.read(samples), store.read(samples))
    assert encoder.largest_batch == 3


@pytest.mark.usefixtures("small_shards")
def test_samples_that_share_a_medium_share_its_features(tmp_path: Path) -> None:
    source = Grey(6)
    asked = [replace(s, id=f"{s.id}/{q}", medium_id=s.id) for q in range(3) for s in source.samples("train")]
    store = FeatureStore(tmp_path, source, Means())
    assert [store.ensure(asked), source.num_rendered, store.ensure(asked)] == [6, 6, 0]
    assert torch.equal(store.read(asked), store.read(source.samples("train")).repeat(3, 1, 1))
    noise = NoiseMediaInputs(NoiseEncoder(dim=3, num_tokens=2))
    first, again, other = noise([asked[0], asked[6], asked[1]], 2)["features_BNE"]
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.usefixtures("small_shards")
def test_no_more_than_a_shard_is_held_while_filling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = FeatureStore._write
    monkeypatch.setattr(
        FeatureStore, "_write", lambda self, ids, features: (written.append(len(features)), write(self, ids, features))
    )
    FeatureStore(tmp_path, Grey(19), Means()).ensure(Grey(19).samples("train"), batch_size=3)
    assert written == [4, 4, 4, 4, 3]


def test_another_encoder_or_type_is_another_store(tmp_path: Path) -> None:
    stores = [FeatureStore(tmp_path, Grey(), Means(scale), kind) for scale, kind in ((1, "float32"), (2, "float32"))]
    assert len({store.folder for store in [*stores, FeatureStore(tmp_path, Grey(), Means(), "float16")]}) == 3


def shards(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("*.safetensors"))


@pytest.mark.usefixtures("small_shards")
def test_what_a_killed_writer_left_is_ignored_and_cleared_away(tmp_path: Path) -> None:
    source, samples = Grey(6), Grey(6).samples("train")
    store = FeatureStore(tmp_path, source, Means())
    store.ensure(samples[:4])
    (path,) = shards(tmp_path)
    leftover, theirs = path.with_name(f".{path.name}.x1y2abcd.ima-tmp"), path.with_name(".notes")
    leftover.mkdir()
    for half in (leftover / path.name, leftover / ".tmpAbC", theirs):
        half.write_bytes(path.read_bytes()[:50])
    again = FeatureStore(tmp_path, source, Means())
    assert again.ensure(samples) == 2
    assert torch.equal(again.read(samples[:4]), store.read(samples[:4]))
    assert not leftover.exists() and theirs.is_file()


DAMAGES = {
    "empty": lambda raw: b"",
    "torn in the length": lambda raw: raw[:5],
    "torn in the header": lambda raw: raw[:40],
    "torn in the rows": lambda raw: raw[:-3],
    "longer": lambda raw: raw + b"x",
    "no header": lambda raw: raw[:8] + b"[" * (len(raw) - 8),
    "an absurd length": lambda raw: b"\xff" * 8 + raw[8:],
    "another file": lambda raw: b"PK\x03\x04" * 30,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("small_shards")
def test_a_damaged_shard_costs_one_line_and_is_computed_again(tmp_path: Path, damage: str, capsys) -> None:  # type: ignore[no-untyped-def]
    source, samples = Grey(8), Grey(8).samples("train")
    store = FeatureStore(tmp_path, source, Means())
    store.ensure(samples)
    expected = store.read(samples)
    first, second = shards(tmp_path)
    first.write_bytes(DAMAGES[damage](first.read_bytes()))
    again = FeatureStore(tmp_path, source, Means())
    assert again.ensure(samples) == 4
    assert torch.equal(again.read(samples), expected)
    warning = capsys.readouterr().err.splitlines()
    assert len(warning) == 1 and str(first) in warning[0] and "computed again" in warning[0]


def test_features_that_overflow_are_refused_naming_the_key(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, Grey(), Means(scale=1e6), "float16")
    with pytest.raises(UserError, match="loader.cache_dtype.*float32"):
        store.ensure(Grey().samples("train"))
    assert shards(tmp_path) == []
    FeatureStore(tmp_path, Grey(), Means(scale=1e6), "float32").ensure(Grey().samples("train"))


def fill(folder: Path, counts: multiprocessing.SimpleQueue, ready) -> None:  # type: ignore[no-untyped-def,type-arg]
    torch.set_num_threads(1)
    ready.wait()
    store = FeatureStore(folder, Grey(40), Means())
    counts.put(store.ensure(Grey(40).samples("train"), batch_size=2))
    assert len(store.missing(Grey(40).samples("train"))) == 0
    os._exit(0)


def test_two_processes_that_fill_one_store_make_one_copy(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    counts, ready = context.SimpleQueue(), context.Barrier(2)
    fillers = [context.Process(target=fill, args=(tmp_path, counts, ready)) for _ in range(2)]
    for filler in fillers:
        filler.start()
    for filler in fillers:
        filler.join(60)
        assert filler.exitcode == 0
    assert sorted([counts.get(), counts.get()]) == [0, 40]
    assert len(shards(tmp_path)) == 1
    store = FeatureStore(tmp_path, Grey(40), Means())
    assert store.missing(Grey(40).samples("train")) == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_shard_whose_numbers_changed_is_refused_once_and_then_computed_again(tmp_path: Path, dtype: str) -> None:
    """One bit, the length as it was: only the checksum tells."""
    source, samples = Grey(4), Grey(4).samples("train")
    store = FeatureStore(tmp_path, source, Means(), dtype)
    store.ensure(samples)
    expected = store.read(samples)
    (path,) = shards(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    damaged = FeatureStore(tmp_path, source, Means(), dtype)
    assert damaged.ensure(samples) == 0
    with pytest.raises(UserError, match="checksum"):
        damaged.read(samples)
    again = FeatureStore(tmp_path, source, Means(), dtype)
    assert again.ensure(samples) == 4 and torch.equal(again.read(samples), expected)
