"""Training is what a plain loop would do, and a run killed anywhere ends as one that was not."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import training_faults
from launcher import Launcher
from omegaconf import OmegaConf
from stamps import draw_stamps

from ima.config.compose import compose
from ima.core.errors import UserError
from ima.core.types import ROW_FIELDS, ROW_SCHEMA
from ima.data.collate import Collate
from ima.data.loader import schedule
from ima.models.llm.tuning import weight_sum
from ima.pipeline.assemble import assemble
from ima.pipeline.checkpoint import load_adapter, read_checked
from ima.pipeline.fit import train
from ima.pipeline.init_adapters import scale_adapter_output
from ima.pipeline.run import quiet
from ima.runs.record import read_result
from ima.runs.results import read_rows

TINY = ["llm=tiny", "data=shapes", "data.num_train=20", "data.num_test=6", "adapter.hidden=16", "adapter.grid=1",
        "trainer.accelerator=cpu", "loader.batch_size=6", "task.max_new_tokens=4", "logger=none"]  # fmt: skip
NOISE = [*TINY, "encoder=noise", "encoder.dim=8", "encoder.num_tokens=4"]
CACHED = [*TINY, "encoder=random_efficientnet"]
# Four steps an epoch, three epochs; a checkpoint after every third step and at each epoch's end.
RUN = [*NOISE, "trainer.max_epochs=3", "callbacks.checkpoint.every_num_steps=3", "evaluation.num_generated=3"]


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


# -- against a loop written by hand ------------------------------------------------------------------------------------


def plain_loop(config: dict[str, Any], num_steps: int) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """The slow twin: stock model, full logits, one sample at a time; (losses, learning rates, weights)."""
    parts = assemble(config)
    batch_size, llm, adapter = parts.loader.batch_size, parts.llm, parts.adapter
    rate, schedule_of = config["optimizer"], config["scheduler"]
    samples = parts.source.samples("train")
    scale_adapter_output(parts, samples)
    steps_per_epoch = math.ceil(len(samples) / batch_size)
    total = steps_per_epoch * config["trainer"]["max_epochs"]
    warmup = max(1, round(schedule_of["warmup_ratio"] * total))
    groups = [
        {"params": [p for p in adapter.parameters() if p.dim() > 1], "weight_decay": rate["weight_decay"]},
        {"params": [p for p in adapter.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate["lr"])
    losses, rates = [], []
    collate = Collate(parts.task, llm, parts.percepts, training=True)
    for step in range(num_steps):
        epoch, position = divmod(step, steps_per_epoch)
        chosen = schedule(len(samples), batch_size, config["seed"], epoch)[position]
        if step < warmup:
            factor = schedule_of["warmup_from"] + (1 - schedule_of["warmup_from"]) * step / warmup
        else:
            falling = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
            factor = schedule_of["final_ratio"] + (1 - schedule_of["final_ratio"]) * falling
        for group in optimizer.param_groups:
            group["lr"] = rate["lr"] * factor
        summed, count = torch.zeros(()), 0
        for index in chosen.tolist():
            batch = collate([(samples[index], epoch)])
            assert batch.features_BNE is not None
            p_BKD = adapter(batch.features_BNE)
            x_BSD = torch.cat([p_BKD, llm.model.get_input_embeddings()(batch.ids_BT)], dim=1)
            logits = llm.model(inputs_embeds=x_BSD).logits[0, p_BKD.shape[1] - 1 : -1]
            summed = summed + F.cross_entropy(logits, batch.labels_BT[0], reduction="sum")
            count += int((batch.labels_BT != -100).sum())
        loss = summed / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()
        losses.append(float(loss.detach()))
        rates.append(rate["lr"] * factor)
    return losses, rates, adapter.state_dict()


def curve(folder: Path, score: str) -> list[float]:
    return [row["value"] for row in read_rows(folder / "rows.jsonl") if row["score"] == score]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("passes", [1, 6, 2])
def test_training_is_what_a_plain_loop_does_however_many_passes_make_a_step(tmp_path: Path, passes: int) -> None:
    config = config_of(*NOISE, "trainer.max_epochs=2", "alignment=none", f"trainer.accumulate_grad_batches={passes}",
                       "evaluation.generate_every_num_epochs=0", "optimizer.lr=1e-2")  # fmt: skip
    result = train(config, tmp_path, "test")
    losses, rates, weights = plain_loop(config, 8)
    assert curve(tmp_path, "train_loss") == pytest.approx(losses, rel=1e-5)
    assert curve(tmp_path, "lr") == pytest.approx(rates, rel=1e-9)
    assert result.metrics["train/loss"] == curve(tmp_path, "train_loss")[-1]
    assert losses[-1] < losses[0], "nothing was learnt"
    found = assemble(config).adapter
    load_adapter(tmp_path / "adapter.safetensors", found)
    told = json.loads((tmp_path / "adapter.json").read_text())["adapter_checksum"]
    assert read_checked(tmp_path / "adapter.safetensors")[1]["checksum"] == told == result.facts["adapter_checksum"]
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5, msg=name)


def test_rows_that_were_changed_before_a_resume_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*NOISE, "trainer.max_epochs=2", "callbacks.checkpoint.every_num_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr("ima.pipeline.callbacks.Export.on_train_end", training_faults.pull_the_plug_at_the_end)
        with pytest.raises(RuntimeError, match="plug"):
            train(config, tmp_path, "test")
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 4
    for changed in ([], lines[:-1], lines[1:], lines + lines, [*lines, lines[3]]):
        path.write_text("".join(changed))
        with pytest.raises(UserError, match=rf"rows.jsonl: {len(changed)} rows up to step \d+, the run had written"):
            train(config, tmp_path, "test")
    path.write_text("".join(lines))
    assert train(config, tmp_path, "test").is_ok


@pytest.mark.usefixtures("one_thread")
def test_only_the_adapter_learns() -> None:
    parts = assemble(config_of(*NOISE))
    module, before = parts.module().train(), weight_sum(parts.llm)
    assert not parts.llm.training
    trained = [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]
    assert trained and all(name.startswith("adapter.") for name in trained)
    batch = Collate(parts.task, parts.llm, parts.percepts, training=True)(
        [(sample, 0) for sample in parts.source.samples("train")[:3]]
    )
    module.model.loss_sum(batch).backward()
    assert {name for name, parameter in module.model.named_parameters() if parameter.grad is not None} == set(trained)
    optimizer = module.configure_optimizers()["optimizer"]
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in parts.adapter.parameters()}
    optimizer.step()
    assert weight_sum(parts.llm) == before


@pytest.mark.usefixtures("one_thread")
def test_a_changed_llm_is_noticed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ima.pipeline.callbacks import StepRecorder

    def flip(self: Any, trainer: Any, module: Any, *_: Any) -> None:
        weight = next(module.llm.parameters()).data
        weight.view(-1).view(torch.int32)[5] ^= 1

    monkeypatch.setattr(StepRecorder, "on_train_batch_end", flip)
    with pytest.raises(AssertionError, match="frozen LLM changed"):
        train(config_of(*NOISE, "trainer.max_epochs=1", "alignment=none", "data.num_train=6"), tmp_path, "test")


# -- runs, whole and killed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def whole(launcher: Launcher, outputs: Path) -> Path:
    """The run that nothing happened to."""
    done = launcher.run("train", [*RUN, f"output_dir={outputs}", "name=whole"])
    assert done.code == 0, done.stderr
    return outputs / "whole"


Key = tuple[Any, ...]
KEY = ("score", "epoch", "step", "split", "layer_a", "layer_b", "role_a", "role_b", "variant", "track", "site")


def rows_of(folder: Path) -> dict[Key, tuple[Any, ...]]:
    """Rows by what they are about; fails on duplicates."""
    rows = list(read_rows(folder / "rows.jsonl"))
    counts = Counter(tuple(row[field] for field in KEY) for row in rows)
    assert max(counts.values()) == 1, counts.most_common(3)
    rest = [field for field in ROW_FIELDS if field not in (*KEY, "run")]
    return {tuple(row[field] for field in KEY): tuple(row[field] for field in rest) for row in rows}


def assert_same_run(folder: Path, whole: Path) -> None:
    assert (folder / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    assert rows_of(folder) == rows_of(whole)
    found, expected = read_result(folder), read_result(whole)
    assert found["status"] == "ok" and found["metrics"] == expected["metrics"]
    assert found["facts"].keys() == expected["facts"].keys()
    assert found["facts"]["start_norm"] == expected["facts"]["start_norm"]
    for name in ("predictions.jsonl", "samples.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    leftovers = [path for path in folder.rglob(".*") if path.is_file()]
    assert leftovers == []


STEP, SAVE = (
    "ima.pipeline.callbacks.StepRecorder.on_train_batch_end",
    "ima.pipeline.callbacks.Checkpointer.on_train_batch_end",
)
MEASURE, PREDICT = "ima.pipeline.evaluator.Evaluator.teacher_forced", "ima.pipeline.evaluator.Evaluator.predict"
DEATHS = {
    "while loading": ("ima.pipeline.fit.assemble", 1),
    "in the first measurement": (MEASURE, 1),
    "before the first checkpoint": (STEP, 2),
    "just before a checkpoint": (SAVE, 3),
    "in the middle of an epoch": (STEP, 6),
    "after the last step of an epoch, before its checkpoint": (SAVE, 8),
    "at the border of an epoch": (MEASURE, 2),
    "while scoring at a border": (PREDICT, 2),
    "in the last epoch": (STEP, 11),
    "in the last measurement": (PREDICT, 6),
    "while writing what is shown": ("ima.pipeline.record.write_all_predictions", 1),
    "while writing the export": ("ima.pipeline.callbacks.Export.on_train_end", 1),
    "while a file takes its place": ("ima.core.files.os.replace", 7),
}


@pytest.mark.parametrize("when", DEATHS)
def test_a_run_killed_anywhere_and_started_again_ends_as_one_that_was_not(
    launcher: Launcher, outputs: Path, whole: Path, when: str
) -> None:
    name = when.replace(" ", "-").replace(",", "")
    argv = [*RUN, f"output_dir={outputs}", f"name={name}"]
    die, call = DEATHS[when]
    killed = launcher.run("train", argv, die=die, call=call)
    assert killed.code == -9, killed.stderr
    assert read_result(outputs / name)["status"] == "running"
    resumed = launcher.run("train", argv)
    assert resumed.code == 0 and resumed.stderr == "", resumed.stderr
    assert_same_run(outputs / name, whole)


@pytest.mark.parametrize("die", [MEASURE, SAVE, STEP])
def test_a_run_killed_at_every_border_still_arrives(launcher: Launcher, outputs: Path, whole: Path, die: str) -> None:
    """Each start gets one epoch further before it is killed: at the next border, after its last step, in its first."""
    argv = [*RUN, f"output_dir={outputs}", f"name=borders-{die.rpartition('.')[2]}-{die.split('.')[-2]}"]
    calls = {MEASURE: (2, 2, 2), SAVE: (5, 5, 5), STEP: (5, 5, 5)}[die]
    codes = [launcher.run("train", argv, die=die, call=call).code for call in calls]
    assert codes[:2] == [-9, -9]
    assert launcher.run("train", argv).code == 0
    assert_same_run(Path(argv[-2].partition("=")[2]) / argv[-1].partition("=")[2], whole)


def test_a_run_killed_again_and_again_from_outside_at_random_still_arrives(
    launcher: Launcher, outputs: Path, whole: Path
) -> None:
    argv, folder = [*RUN, f"output_dir={outputs}", "name=random"], outputs / "random"
    draw = random.Random(1)
    for _ in range(3):
        target = len(list(read_rows(folder / "rows.jsonl"))) + draw.randint(1, 60)
        started = launcher.start("train", argv)
        end = time.monotonic() + 60
        while len(list(read_rows(folder / "rows.jsonl"))) < target and time.monotonic() < end:
            if (folder / "result.json").is_file() and read_result(folder)["status"] == "ok":
                break
        time.sleep(draw.random() * 0.1)
        started.kill()
        started.wait()
    assert launcher.run("train", argv).code == 0
    assert_same_run(folder, whole)


def test_a_cached_run_killed_while_encoding_goes_on_with_the_same_features(
    launcher: Launcher, outputs: Path, tmp_path: Path
) -> None:
    argv = [*CACHED, f"output_dir={outputs}", "trainer.max_epochs=1", "data.num_train=8", "data.num_test=2"]
    clean = launcher.run("train", [*argv, "name=cached"], env={"IMA_CACHE": str(tmp_path / "a")})
    assert clean.code == 0, clean.stderr
    env = {"IMA_CACHE": str(tmp_path / "b")}
    killed = launcher.run("train", [*argv, "name=cached-k"], env=env, die="ima.data.feature_cache.FeatureStore._write")
    assert killed.code == -9
    assert launcher.run("train", [*argv, "name=cached-k"], env=env).code == 0
    assert_same_run(outputs / "cached-k", outputs / "cached")
    # and live encoding, without a cache, is the same up to the rounding of the stored features
    live = launcher.run("train", [*argv, "name=live", "loader.cache_features=false"], env=env)
    assert live.code == 0, live.stderr
    assert curve(outputs / "live", "train_loss") == pytest.approx(curve(outputs / "cached", "train_loss"), rel=1e-3)


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_rows_and_result_have_the_fields_that_others_rely_on(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "rows.jsonl").read_text().splitlines()]
    promised = {"run", "step", "epoch", "split", "track", "task", "dataset_a", "dataset_b", "modality_a", "modality_b",
                "layer_a", "layer_b", "site", "role_a", "role_b", "score", "variant", "value", "se", "n"}  # fmt: skip
    for line in lines:
        assert promised <= line.keys() == set(ROW_FIELDS)
        assert line["schema"] == ROW_SCHEMA and line["run"] == "whole" and line["task"] == "caption"
    assert {line["step"] for line in lines if line["score"] == "train_loss"} == set(range(1, 13))
    layers = {(line["epoch"], line["layer_a"]) for line in lines if line["score"] == "sim" and line["site"]}
    assert {(epoch, layer) for epoch in range(4) for layer in range(4)} <= layers
    assert {line["epoch"] for line in lines if line["score"] == "val_loss"} == {0, 1, 2, 3}
    assert {line["track"] for line in lines if line["score"] == "cider_d"} == {"T0", "T1", "blind"}
    result = read_result(whole)
    keys = {"status", "config", "metrics", "versions", "git", "seeds", "wall_seconds"}
    assert keys <= result.keys() and result["status"] == "ok" and result["seeds"] == {"seed": 0}
    headline = {"ima/mean", "val/loss", "train/loss", "T0/noun_accuracy", "T1/cider_d", "blind/cider_d"}
    assert headline <= result["metrics"].keys()
    files = {path.name for path in (whole / "checkpoints").iterdir()}
    kinds = ("safetensors", "json")
    assert files == {"last.safetensors"} | {f"epoch-00{epoch}.{kind}" for epoch in (1, 2, 3) for kind in kinds}


def test_evaluating_a_run_gives_the_numbers_of_its_end_to_the_digit(launcher: Launcher, whole: Path) -> None:
    done = launcher.run("evaluate", [f"checkpoint={whole}"])
    assert done.code == 0 and done.stderr == "", done.stderr
    (folder,) = whole.glob("evaluate-*")
    measured, trained = read_result(folder)["metrics"], read_result(whole)["metrics"]
    assert measured == {name: value for name, value in trained.items() if name != "train/loss"}
    ends = [dict(row, run="", step=0) for row in read_rows(whole / "rows.jsonl") if row["epoch"] == 3]
    assert [dict(row, run="", step=0) for row in read_rows(folder / "rows.jsonl")] == ends
    assert (folder / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    again = launcher.run("evaluate", [f"checkpoint={whole}"])
    assert again.code == 0 and "evaluated already" in again.stdout


def test_the_adapter_of_an_earlier_epoch_can_be_evaluated(launcher: Launcher, whole: Path, tmp_path: Path) -> None:
    path = whole / "checkpoints" / "epoch-001.safetensors"
    done = launcher.run("evaluate", [f"checkpoint={path}", f"output_dir={tmp_path}", "name=e1"])
    assert done.code == 0, done.stderr
    rows = {row["epoch"]: row["value"] for row in read_rows(whole / "rows.jsonl") if row["score"] == "val_loss"}
    assert read_result(tmp_path / "e1")["metrics"]["val/loss"] == rows[1] != rows[3]


def test_a_finished_run_is_not_trained_again_and_another_config_is_refused(
    launcher: Launcher, outputs: Path, whole: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != "lock"}
    argv = [*RUN, f"output_dir={outputs}", "name=whole"]
    done = launcher.run("train", argv)
    assert done.code == 0 and "finished already" in done.stdout
    refused = launcher.run("train", [*argv, "optimizer.lr=1e-3"])
    assert refused.code == 2 and len(refused.stderr.splitlines()) == 1
    assert "another config" in refused.stderr and "overwrite=true" in refused.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    renamed = launcher.run("train", [*RUN, f"output_dir={outputs}", "name=fresh", "resume=must"])
    assert renamed.code == 2 and "resume: must" in renamed.stderr


def test_a_run_that_fails_says_why_and_the_same_command_goes_on(launcher: Launcher, outputs: Path, whole: Path) -> None:
    argv = [*RUN, f"output_dir={outputs}", "name=failed"]
    failed = launcher.run("train", argv, patch="training_faults.fail_at_step_6")
    assert failed.code == 1 and "RuntimeError" in failed.stderr
    result = read_result(outputs / "failed")
    assert result["status"] == "failed" and result["reason"] == "RuntimeError: the plug was pulled"
    again = launcher.run("train", argv)
    assert again.code == 0, again.stderr
    assert_same_run(outputs / "failed", whole)
    assert "reason" not in read_result(outputs / "failed")


def test_a_last_measurement_that_fails_loses_no_training(launcher: Launcher, outputs: Path, whole: Path) -> None:
    argv, folder = [*RUN, f"output_dir={outputs}", "name=unmeasured"], outputs / "unmeasured"
    failed = launcher.run("train", argv, patch="training_faults.fail_in_the_last_scoring")
    assert failed.code == 1 and read_result(folder)["status"] == "failed"
    assert (folder / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    assert (folder / "adapter.json").is_file()
    again = launcher.run("train", argv, die=STEP)  # which kills it if it makes a step
    assert again.code == 0, again.stderr
    assert_same_run(folder, whole)


def test_no_tracks_means_none(launcher: Launcher, tmp_path: Path) -> None:
    argv = [*NOISE, "trainer.max_epochs=1", "evaluation.tracks=[]", f"output_dir={tmp_path}", "name=bare"]
    done = launcher.run("train", argv)
    assert done.code == 0, done.stderr
    assert not any("noun_accuracy" in name for name in read_result(tmp_path / "bare")["metrics"])
    assert (tmp_path / "bare" / "predictions.jsonl").read_text() == ""
    rows = list(read_rows(tmp_path / "bare" / "rows.jsonl"))
    assert {row["split"] for row in rows} == {"train", "val"}


def test_an_interrupted_run_says_so_and_goes_on(launcher: Launcher, outputs: Path, whole: Path) -> None:
    argv = [*RUN, f"output_dir={outputs}", "name=stopped"]
    stopped = launcher.run("train", argv, patch="training_faults.interrupt_at_step_6")
    assert stopped.code == 130 and "Traceback" not in stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert read_result(outputs / "stopped")["status"] == "interrupted"
    assert launcher.run("train", argv).code == 0
    assert_same_run(outputs / "stopped", whole)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(launcher: Launcher, outputs: Path, whole: Path) -> None:
    argv = [*RUN, f"output_dir={outputs}", "name=full"]
    full = launcher.run("train", argv, patch="training_faults.fill_the_disk_at_the_second_checkpoint")
    assert full.code == 2 and len(full.stderr.splitlines()) == 1 and "no space left" in full.stderr
    assert read_result(outputs / "full")["status"] == "failed"
    assert launcher.run("train", argv).code == 0
    assert_same_run(outputs / "full", whole)


def test_a_second_writer_in_one_folder_is_refused(launcher: Launcher, outputs: Path) -> None:
    argv = [*RUN, f"output_dir={outputs}", "name=shared", "trainer.max_epochs=50"]
    first = launcher.start("train", argv)
    end = time.monotonic() + 60
    while not (outputs / "shared" / "result.json").is_file() and time.monotonic() < end:
        time.sleep(0.02)
    second = launcher.run("train", argv)
    first.kill()
    assert first.wait() == -9
    assert second.code == 2 and "another process" in second.stderr and len(second.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=stamps_single", "data.nouns=[unicorn]"], "data.nouns: no stamp shows 'unicorn'"),
        (["llm=hf", "llm.path=/nonexistent"], "llm.path: '/nonexistent' cannot be loaded"),
        (["llm.family=gpt5"], "llm.family: 'gpt5' is not one of"),
        (["intervention=skip_ffn", "intervention.skip_ffn.start=9"], "intervention.skip_ffn.start: blocks start=9"),
        (["alignment.sites=[resid_mud]"], "resid_mud"),
    ],
)
def test_what_a_part_refuses_when_it_is_made_is_one_line(
    overrides: list[str], said: str, tmp_path: Path, launcher: Launcher
) -> None:
    folder, table = draw_stamps(tmp_path / "stamps")
    mine = [f"data.folder={folder}", f"data.table={table}"] if overrides[0] == "data=stamps_single" else []
    base = [text for text in NOISE if not mine or not text.startswith("data")]
    done = launcher.run("train", [*base, *overrides, *mine, f"output_dir={tmp_path / 'out'}", "name=r"])
    assert done.code == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and said in done.stderr, done.stderr
