"""Mixtures: one entry is the run of one task, bit for bit; shares, passes and batches are what the config says."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpora_files
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import Launcher
from omegaconf import OmegaConf
from report_runs import write_page

from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.types import Batch, MediaGroup, Role, Sample
from ima.data.loader import TrainLoader
from ima.data.mixture import Mixture, apportion
from ima.models.adapters.base import AdapterSet
from ima.models.adapters.linear import LinearAdapter
from ima.models.llm.load import tiny
from ima.models.multimodal import MultimodalModel
from ima.pipeline.fit import train
from ima.pipeline.run import quiet
from ima.runs.record import read_result
from ima.runs.results import read_rows

TINY = ["llm=tiny", "data=shapes", "data.num_train=20", "data.num_test=6", "adapter.hidden=16", "adapter.grid=1",
        "trainer.accelerator=cpu", "loader.batch_size=6", "task.max_new_tokens=4", "logger=none",
        "encoder=noise", "encoder.dim=8", "encoder.num_tokens=4"]  # fmt: skip
RUN = [*TINY, "trainer.max_epochs=2", "callbacks.checkpoint.every_num_steps=3", "evaluation.num_generated=3"]
SHAPES = "{_target_: ima.data.shapes.Shapes, num_train: 20, num_test: 6}"
CAPTION = "{_target_: ima.tasks.caption.CaptionTask, max_new_tokens: 4}"


def entry(data: str = SHAPES, task: str = CAPTION, **more: Any) -> str:
    rest = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{{_target_: ima.config.settings.Entry, data: {data}, task: {task}{rest}}}"


def noise(modality: str, num_tokens: int, dim: int = 8) -> str:
    target = "ima.models.encoders.controls.NoiseEncoder"
    return f"{{_target_: {target}, modality: {modality}, dim: {dim}, num_tokens: {num_tokens}}}"


def config_of(*overrides: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(compose(list(overrides)))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def curve(folder: Path, score: str) -> list[float]:
    return [row["value"] for row in read_rows(folder / "rows.jsonl") if row["score"] == score]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("passes", [1, 2])
def test_a_mixture_of_one_entry_trains_bit_for_bit_as_the_run_of_one_task(tmp_path: Path, passes: int) -> None:
    options = [*RUN, f"trainer.accumulate_grad_batches={passes}"]
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    first = train(config_of(*options), alone, "test")
    second = train(config_of(*options, f"mixture={{only: {entry()}}}"), mixed, "test")
    assert (alone / "adapter.safetensors").read_bytes() == (mixed / "adapter.safetensors").read_bytes()
    assert curve(alone, "train_loss") == curve(mixed, "train_loss") and len(curve(alone, "train_loss")) == 8
    renamed = {f"only/{name}": value for name, value in first.metrics.items() if name != "train/loss"}
    found = {name: value for name, value in second.metrics.items() if name.startswith("only/")}
    assert {k: v for k, v in renamed.items() if v == v} == {k: v for k, v in found.items() if v == v}
    said = [json.loads(line)["prediction"] for line in (alone / "predictions.jsonl").read_text().splitlines()]
    assert said == [json.loads(line)["prediction"] for line in (mixed / "predictions.jsonl").read_text().splitlines()]


# -- the schedule ------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 9), seed=st.integers(0, 9), kind=st.sampled_from(["mixed", "homogeneous"]),
       grouped=st.booleans())  # fmt: skip
def test_with_equal_weights_each_epoch_shows_each_sample_once(
    sizes: list[int], batch: int, seed: int, kind: Any, grouped: bool
) -> None:
    lengths = list(range(sum(sizes))) if grouped else None
    mixture = Mixture(sizes, batches=kind, lengths=lengths)
    for epoch in (0, 3):
        batches = mixture.batches(batch, seed, epoch)
        assert sorted(np.concatenate(batches)[:, 0].tolist()) == list(range(sum(sizes)))
        assert {int(draw) for part in batches for draw in part[:, 1]} == {epoch}
        assert len(batches) == mixture.num_batches(batch)
        assert all(np.array_equal(a, b) for a, b in zip(batches, mixture.batches(batch, seed, epoch), strict=True))
        if kind == "homogeneous":
            ends = np.cumsum(sizes)
            assert all(len({int(np.searchsorted(ends, i, "right")) for i in part[:, 0]}) == 1 for part in batches)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 9), data=st.data())
def test_with_weights_no_sample_comes_again_before_all_of_its_entry_came(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture(sizes, weights, temperature=data.draw(st.sampled_from([1.0, 2.0, 5.0])))
    assert sum(mixture.quotas) == sum(sizes)
    counts: Counter[int] = Counter()
    turns: Counter[tuple[int, int]] = Counter()
    for epoch in range(4):
        items = np.concatenate(mixture.batches(4, seed, epoch))
        assert len(items) == sum(sizes)
        counts.update(items[:, 0].tolist())
        turns.update(map(tuple, items.tolist()))
        assert max(turns.values()) == 1, "a sample twice in one pass"
        assert all(turn < counts[number] for number, turn in turns)
        for start, size in zip(mixture.starts, sizes, strict=True):
            seen = [counts[number] for number in range(start, start + size)]
            assert max(seen) - min(seen) <= 1


def test_shares_follow_weights_sizes_and_temperature() -> None:
    assert Mixture([100, 300]).quotas == [100, 300]
    assert Mixture([100, 300], [3, 1]).quotas == [200, 200]
    assert Mixture([100, 400], temperature=2.0).quotas == [167, 333]
    assert Mixture([100, 300], [0, 1]).quotas == [0, 400]
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]


class Ids:
    """In a collate's place: what of a batch the loader must not lose."""

    def __call__(self, items: Any) -> Batch:
        ids = torch.tensor([[int(sample.id)] for sample, _ in items])
        return Batch([sample for sample, _ in items], ids, torch.full_like(ids, 3), ids.clone())


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 9), kind=st.sampled_from(["mixed", "homogeneous"]), data=st.data())
def test_steps_and_batches_are_the_same_for_any_number_of_ranks(
    sizes: list[int], batch: int, kind: Any, data: st.DataObject
) -> None:
    world = data.draw(st.integers(1, batch))
    samples = [Sample(str(number), "train", "T0", "image", ("a",)) for number in range(sum(sizes))]
    ranks: list[Any] = [
        TrainLoader(samples, Ids(), batch, 0, rank, world, mixture=Mixture(sizes, batches=kind))  # type: ignore[arg-type]
        for rank in range(world)
    ]
    expected = Mixture(sizes, batches=kind)
    for epoch in range(2):
        steps = list(zip(*ranks, strict=True))
        assert len(steps) == len(ranks[0]) == expected.num_batches(batch)
        for parts, whole in zip(steps, expected.batches(batch, 0, epoch), strict=True):
            learned = [int(id) for part in parts for id in part.labels_BT.flatten() if id != -100]
            assert sorted(learned) == sorted(whole[:, 0].tolist())
            assert all(len(part) > 0 for part in parts)


def test_the_counts_of_before_that_ranks_changed() -> None:
    samples = [Sample(str(number), "train", "T0", "image", ("a",)) for number in range(44)]
    assert Mixture([44]).num_batches(7) == 7
    assert [len(TrainLoader(samples, Ids(), 7, 0, 0, world)) for world in (1, 2, 3, 7)] == [7] * 4  # type: ignore[arg-type]


def test_samples_of_similar_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 256)
    spread = [float(np.ptp(lengths[part[:, 0]])) for part in Mixture([256]).batches(8, 0, 0)]
    grouped = [float(np.ptp(lengths[part[:, 0]])) for part in Mixture([256], lengths=lengths).batches(8, 0, 0)]
    assert np.mean(grouped) < np.mean(spread) / 4


# -- batches -----------------------------------------------------------------------------------------------------------


def random_batch(seed: int = 0) -> tuple[MultimodalModel, Batch]:
    """Text of several lengths; pictures (K=2) and sounds (K=3): none, one or several, anywhere in the text."""
    torch.manual_seed(seed)
    llm = tiny(seed=seed)
    module = MultimodalModel(AdapterSet({"image": LinearAdapter(4, 32), "audio": LinearAdapter(5, 32)}), llm)
    lengths = [7, 3, 5, 9]
    ids = torch.randint(3, 259, (4, 9))
    roles = torch.full((4, 9), int(Role.PROMPT))
    for row, length in enumerate(lengths):
        ids[row, length:], roles[row, length:] = 0, int(Role.PAD)
    labels = torch.where(roles == Role.PAD, -100, ids)
    groups = [
        MediaGroup("image", [0, 2, 2], [2, 0, 5], torch.randn(3, 2, 4)),
        MediaGroup("audio", [0, 3], [2, 4], torch.randn(2, 3, 5)),
    ]
    samples = [Sample(f"s{row}", "train", "train", "image", ("x",)) for row in range(4)]
    return module, Batch(samples, ids, roles, labels, groups=groups)


def one_by_one(module: MultimodalModel, batch: Batch, row: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """The slow twin: one sample put together position by position."""
    x, roles, labels = [], [], []
    for column in range(batch.ids_BT.shape[1] + 1):
        for group in batch.groups:
            for index, (r, place) in enumerate(zip(group.rows, group.places, strict=True)):
                if r == row and place == column:
                    assert group.features_MNE is not None
                    p_KD = module.adapter_of(group.channel)(group.features_MNE[index : index + 1])[0]
                    x += list(p_KD)
                    roles += [int(Role.PERCEPT)] * len(p_KD)
                    labels += [-100] * len(p_KD)
        if column < batch.ids_BT.shape[1] and batch.roles_BT[row, column] != Role.PAD:
            x.append(module.llm.embed(batch.ids_BT[row : row + 1, column : column + 1])[0, 0])
            roles.append(int(batch.roles_BT[row, column]))
            labels.append(int(batch.labels_BT[row, column]))
    return torch.stack(x), roles, labels


@pytest.mark.parametrize("left", [False, True])
def test_media_stand_where_the_text_places_them(left: bool) -> None:
    module, batch = random_batch()
    x_BSD, roles_BS, labels_BS = module.splice(batch, left)
    for row in range(4):
        x, roles, labels = one_by_one(module, batch, row)
        real = roles_BS[row] != Role.PAD
        assert bool(real.int().diff().ge(0).all() if left else real.int().diff().le(0).all())
        assert roles_BS[row][real].tolist() == roles and labels_BS[row][real].tolist() == labels
        torch.testing.assert_close(x_BSD[row][real], x)


def test_a_batch_of_all_kinds_has_the_loss_and_the_gradient_of_its_samples_one_by_one() -> None:
    module, batch = random_batch()
    module.loss_sum(batch).backward()
    together = {name: p.grad.clone() for name, p in module.adapter.named_parameters() if p.grad is not None}
    module.zero_grad()
    losses = []
    for part in batch.split(1):
        loss = module.loss_sum(part)
        losses.append(float(loss.detach()))
        if loss.requires_grad:
            loss.backward()
    assert len(together) == 4 and sum(not part.media_groups() for part in batch.split(1)) == 1
    assert float(module.loss_sum(batch).detach()) == pytest.approx(sum(losses), rel=1e-5)
    for name, p in module.adapter.named_parameters():
        torch.testing.assert_close(p.grad, together[name], rtol=1e-4, atol=1e-6)


def test_the_common_case_and_the_general_one_give_the_same_sequences() -> None:
    from ima.models.splice import anywhere, in_front

    module, batch = random_batch()
    p_BKD = torch.randn(4, 3, 32)
    group = MediaGroup("", [0, 1, 2, 3], [0, 0, 0, 0])
    for fast, slow in zip(
        in_front(module.llm, batch, p_BKD), anywhere(module.llm, batch, [(group, p_BKD)]), strict=True
    ):
        assert torch.equal(fast, slow)


# -- runs --------------------------------------------------------------------------------------------------------------

SOUNDS, ALBUMS = (
    SHAPES.replace("ima.data.shapes.Shapes", f"mixed_sources.{name}") for name in ("SoundShapes", "Albums")
)
THREE = (
    "mixture={pictures: " + entry() + ", sounds: " + entry(SOUNDS, encoder=noise("audio", 3), weight=2.0)
    + ", albums: " + entry(ALBUMS, limit=7) + "}"
)  # fmt: skip
MIXED = [*RUN, THREE, "loader.temperature=2.0"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def whole(launcher: Launcher, outputs: Path) -> Path:
    done = launcher.run("train", [*MIXED, f"output_dir={outputs}", "name=whole"])
    assert done.code == 0, done.stderr
    return outputs / "whole"


def test_a_mixture_of_modalities_and_albums_is_measured_entry_by_entry(whole: Path) -> None:
    result = read_result(whole)
    assert list(result["facts"]["entries"]) == ["pictures", "sounds", "albums"]
    for name in ("pictures", "sounds", "albums"):
        for metric in ("val/loss", "ima/mean", "T0/noun_accuracy", "T1/cider_d", "blind/cider_d"):
            assert f"{name}/{metric}" in result["metrics"], (name, metric)
    assert result["facts"]["entries"]["albums"]["num_samples"]["train"] == 7
    rows = list(read_rows(whole / "rows.jsonl"))
    assert {row["track"] for row in rows if row["track"]} == {
        f"{name}/{track}" for name in ("pictures", "sounds", "albums") for track in ("T0", "T1", "blind")
    }
    assert {row["modality_a"] for row in rows if row["task"] == "sounds"} == {"audio", "text"}
    table = (whole / "tasks.csv").read_text().splitlines()
    assert len(table) == 4 and table[1].startswith("pictures,image,T0,noun_accuracy,0.")
    from safetensors.torch import load_file

    assert {key.split(".")[0] for key in load_file(whole / "adapter.safetensors")} == {"main", "sounds"}


TRUST = "trust=[mixed_sources]"  # the run names classes of ours, not of conf/
STEP = "ima.pipeline.callbacks.StepRecorder.on_train_batch_end"
SAVE = "ima.pipeline.callbacks.Checkpointer.on_train_batch_end"


@pytest.mark.parametrize(("die", "call"), [(STEP, 5), (SAVE, 8), (STEP, 10)])
def test_a_mixture_killed_in_the_middle_of_an_epoch_goes_on_with_what_is_left(
    launcher: Launcher, outputs: Path, whole: Path, die: str, call: int
) -> None:
    name = f"killed-{call}-{die.split('.')[-2]}"
    argv = [*MIXED, f"output_dir={outputs}", f"name={name}"]
    assert launcher.run("train", argv, die=die, call=call).code == -9
    done = launcher.run("train", argv)
    assert done.code == 0, done.stderr
    assert (outputs / name / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    assert curve(outputs / name, "train_loss") == curve(whole, "train_loss")
    assert read_result(outputs / name)["metrics"] == read_result(whole)["metrics"]


def test_evaluating_a_mixture_gives_the_numbers_of_its_end_and_one_of_its_tasks_can_be_asked_alone(
    launcher: Launcher, whole: Path
) -> None:
    done = launcher.run("evaluate", [f"checkpoint={whole}", TRUST, "name=again", f"output_dir={whole.parent}"])
    assert done.code == 0, done.stderr
    again, before = read_result(whole.parent / "again")["metrics"], read_result(whole)["metrics"]
    measured = {name: value for name, value in before.items() if not name.startswith("train/")}
    assert again == measured
    alone = [f"checkpoint={whole}", TRUST, "data=shapes", "data.num_train=20", "data.num_test=6", "name=alone",
             f"output_dir={whole.parent}"]  # fmt: skip
    done = launcher.run("evaluate", alone)
    assert done.code == 0, done.stderr
    one = read_result(whole.parent / "alone")["metrics"]
    assert one["val/loss"] == before["pictures/val/loss"] and one["T0/cider_d"] == before["pictures/T0/cider_d"]


def test_one_command_asks_the_published_benchmarks_in_their_official_files(
    launcher: Launcher, whole: Path, tmp_path: Path
) -> None:
    for name in ("vqav2", "gqa", "textvqa"):
        (tmp_path / name).mkdir()
        corpora_files.CORPORA[name](tmp_path / name)
    corpora_files.pope(tmp_path)
    corpora_files.coco(tmp_path / "coco")
    corpora_files.to_json(tmp_path / "coco" / "instances_val2014.json", corpora_files.COCO_INSTANCES)
    entries = {"vqav2": "vqav2", "gqa": "gqa", "textvqa": "textvqa", "textvqa_ocr": "textvqa", "pope": "",
               "coco_chair": "coco"}  # fmt: skip
    argv = [f"checkpoint={whole}", TRUST, f"mixture=[{','.join(entries)}]", f"output_dir={tmp_path}", "name=asked",
            *(f"mixture.{name}.data.folder={tmp_path / folder}" for name, folder in entries.items())]  # fmt: skip
    done = launcher.run("evaluate", argv)
    assert done.code == 0, done.stderr
    with open(tmp_path / "asked" / "tasks.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["entry"], line["track"], line["metric"]) for line in lines] == [
        ("vqav2", "val", "accuracy"), ("gqa", "test", "accuracy"), ("textvqa", "val", "accuracy"),
        ("textvqa_ocr", "val", "accuracy"), ("pope", "test", "accuracy"), ("coco_chair", "test", "cider_d"),
    ]  # fmt: skip
    assert all(float(line["value"]) >= 0 and -1 <= float(line["ima"]) <= 1 for line in lines[:1] + lines[2:4])
    assert lines[4]["yes_ratio"] and lines[4]["f1"] and not lines[4]["ima"], "POPE has no validation split"
    assert lines[5]["chair_s"] and "chair_i" in lines[5]
    assert lines[2]["ima"] != lines[3]["ima"], "the words of the picture are another text"
    html = write_page([tmp_path / "asked"]).read_text()
    assert all(f'<th scope="row">{name}</th>' in html for name in entries)


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        (f"mixture={{a: {entry(x=1)}}}", "no 'x' in mixture.a"),
        (f"mixture={{a: {entry(encoder='b')}}}", "no entry 'b' with an encoder of its own; none has one; add b"),
        (f"mixture={{a: {entry(SOUNDS)}}}", "mixture.a.encoder: NoiseEncoder is for image"),
        (f"mixture={{a: {entry(weight=-1.0)}}}", "mixture.a.weight: -1.0 is out of range"),
        (f"mixture={{a: {entry(SHAPES.replace('num_test: 6', 'num_test: 0'))}}}", "mixture.a.data.num_test: 0"),
        (f"mixture={{a: {entry(weight=0.0)}, b: {entry(weight=0.0)}}}", "mixture.a.weight: all weights are 0"),
        (f"mixture={{a: {SHAPES}}}", "mixture.a._target_: 'ima.data.shapes.Shapes' makes nothing with data, task"),
        (f"mixture={{main: {entry(encoder=noise('image', 3))}}}", "mixture.main: the run's own encoder"),
        ("mixture=[image_pope,image_pope]", "mixture: 'image_pope' is chosen twice"),
        ("mixture=[gqa]", "mixture.gqa.data.folder: data/gqa is not there"),
        (f"mixture={{a: {entry(alignment='none')}}}", "no 'alignment' in mixture.a"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_entry_is_one_line_that_names_its_key(
    mixture: str, said: str, tmp_path: Path, launcher: Launcher
) -> None:
    done = launcher.run("train", [*TINY, mixture, f"output_dir={tmp_path}", "name=r"])
    assert done.code == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(("key", "wrong"), [("alignment.split", "nosuch"), ("evaluation.tracks", "[T9]")])
def test_a_split_that_no_entry_has_is_refused_in_an_evaluation_too(
    key: str, wrong: str, tmp_path: Path, whole: Path, launcher: Launcher
) -> None:
    for script, argv in (("train", MIXED), ("evaluate", [f"checkpoint={whole}", TRUST])):
        done = launcher.run(script, [*argv, f"{key}={wrong}", f"output_dir={tmp_path}", f"name={script}"])
        assert done.code == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert f"{key}: no entry of the mixture has a split '{wrong.strip('[]')}'" in done.stderr


def test_a_name_that_would_leave_the_run_folder_is_no_name_of_an_entry() -> None:
    from ima.config.roots import check_mixture

    for name in ("../x", "a/b", "a.b", "", " "):
        with pytest.raises(UserError, match="no name of an entry"):
            check_mixture({name: {}})
    check_mixture({"image_vqa-2": {}})


def test_two_ranks_train_a_mixture_as_one_does(launcher: Launcher, tmp_path: Path) -> None:
    """Small batches: most of them lack a modality on one rank or on both."""
    from safetensors.torch import load_file
    from test_ddp import TWO, two_ranks

    stages = "stage={first: {_target_: ima.config.settings.Stage, entries: [pictures, sounds], max_epochs: 1}, " \
             "second: {_target_: ima.config.settings.Stage}}"  # fmt: skip
    argv = [*MIXED, stages, "loader.batch_size=2", "loader.eval_batch_size=3", "trainer.max_epochs=1", "alignment=none",
            "mixture.albums.limit=8", f"output_dir={tmp_path}"]  # fmt: skip
    done = launcher.run("train", [*argv, "name=one"])
    assert done.code == 0, done.stderr
    two_ranks(launcher, [*argv, *TWO, "name=two"])
    one, two = (read_result(tmp_path / name)["metrics"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)), name
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-4, msg=name)
    two_ranks(launcher, [*argv, *TWO, "name=two", "overwrite=true"])


def test_stages_follow_each_other_and_each_is_resumed(launcher: Launcher, tmp_path: Path, outputs: Path) -> None:
    stages = "stage={pretrain: {_target_: ima.config.settings.Stage, entries: [pictures], max_epochs: 1}, " \
             "instruct: {_target_: ima.config.settings.Stage}}"  # fmt: skip
    argv = [*MIXED, stages, f"output_dir={outputs}"]
    done = launcher.run("train", [*argv, "name=staged"])
    assert done.code == 0, done.stderr
    first, last = read_result(outputs / "staged" / "pretrain"), read_result(outputs / "staged")
    assert list(first["facts"]["entries"]) == ["pictures"] and len(last["facts"]["entries"]) == 3
    assert list(first["facts"]["start_norm"]) == ["main"] and list(last["facts"]["start_norm"]) == ["main", "sounds"]
    assert last["facts"]["start_norm"]["main"] == first["facts"]["start_norm"]["main"]
    starts = [row["value"] for row in read_rows(outputs / "staged" / "rows.jsonl")
              if row["score"] == "val_loss" and row["epoch"] == 0 and row["task"] == "pictures"]  # fmt: skip
    assert starts == [first["metrics"]["pictures/val/loss"]], "the second stage begins where the first ended"
    for die, call in ((STEP, 2), (STEP, 7)):  # in the first stage, in the second
        name = f"staged-{call}"
        assert launcher.run("train", [*argv, f"name={name}"], die=die, call=call).code == -9
        assert launcher.run("train", [*argv, f"name={name}"]).code == 0
        same = (outputs / name / "adapter.safetensors", outputs / "staged" / "adapter.safetensors")
        assert same[0].read_bytes() == same[1].read_bytes()
    again = launcher.run("train", [*argv, "name=staged"])
    assert again.code == 0 and again.stdout.count("finished already") == 2
    anew = launcher.run("train", [*argv, "name=staged", "overwrite=true"])
    assert anew.code == 0 and "finished already" not in anew.stdout
