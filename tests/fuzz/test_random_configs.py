"""Random configs of supported parts: two steps of training, an evaluation and a page, or one line that refuses.

No NaN among the headline numbers. A case that fails is printed as the commands that repeat it. Cases are drawn by
number; hypothesis would spend half of them, each a training, on its simplest examples and their neighbours.
"""

from __future__ import annotations

import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora_files
import fuzzing
import pytest
from launcher import Launcher
from test_ddp import TWO, free_port

import ima
from ima.core.errors import UserError
from ima.models.llm.chat import TOKENS
from ima.models.llm.tiny import FAMILY_NAMES
from ima.report.collect import table_row
from ima.report.load import load_run

pytestmark = pytest.mark.fuzz
BASE = ["llm=tiny", "trainer.accelerator=cpu", "loader.batch_size=4", "logger=none", "name=fuzz",
        "trainer.max_epochs=1"]  # fmt: skip
SMALL = ["data.num_train=8", "data.num_test=4", "data.size=32"]
# data -> what encodes its media
DATA: dict[str, dict[str, dict[str, list[Any]]]] = {
    "shapes": {"noise": {"dim": [4, 8, 12], "num_tokens": [1, 2, 4, 9]}, "random_efficientnet": {}},
    "audiocaps": {"noise_audio": {"dim": [8], "num_tokens": [3, 5]}, "log_mel": {"seconds": [1.0]}},
    "msrvtt": {"noise_video": {"dim": [8], "num_tokens": [8, 16]}},
    "vqav2": {"noise": {"dim": [8], "num_tokens": [4]}},
    "coco": {"noise": {"dim": [8], "num_tokens": [4]}},
}
CORPORA = ("audiocaps", "msrvtt", "vqav2", "coco")
ADAPTERS = {
    "linear": {},
    "mlp": {},
    "pool": {"grid": [1, 2, 3], "hidden": [8]},
    "query": {"num_tokens": [1, 3], "hidden": [8], "num_blocks": [1], "num_heads": [2], "inner": [8]},
    "perceiver": {"num_tokens": [2], "hidden": [8, 10], "num_blocks": [1], "num_heads": [2], "inner": [8]},
    "video": {"num_frames": [8], "grid": [1, 2], "hidden": [8], "num_motion": [1, 2]},
}
SKIP = {
    "start": [0, 1],
    "ratio": [0.5, 1.0],
    "every": [1, 2],
    "roles": ["[percept]", "[percept,prompt]", "[text]"],
    "select": ["first", "random", "norm", "similar"],
    "phase": ["both", "both", "prefill", "prefill", "decode"],
}
SEEN = {"visibility": ["visible", "hidden"]}  # of what attends
INTERVENTIONS: dict[str, dict[str, list[Any]]] = {
    "skip_ffn": SKIP,
    "skip_attn": SKIP | SEEN,
    "skip_block": SKIP | SEEN,
    "skip_auto": {"budget": [0.3, 0.8], "part": ["block", "ffn", "attn"]},
    "exit": {"block": [0, 1], "leaving": ["context", "percept", "last"]},
    "isolate": {"num_blocks": [1, 3]},
    "merge": {"start": [0, 1], "every": [2]},
    "parallel": {"start": [0, 1], "norm": ["own"]},
    "drop": {"start": [1, 2]},
    "knock_out": {"source": ["percept", "prompt"], "destination": ["percept", "prompt", "answer", "text"],
                  "start": [0, 1], "width": [1, 2], "with_sinks": ["true"]},
    "back_patch": {"to_block": [0, 1], "from_block": [1, 2]},
    "steer": {"alpha": [-1.0, 0.5, 1.0], "layer": [0, 1], "direction": ["text", "random"], "num_examples": [4]},
    "entropy": {"threshold": [0.0, 4.0], "start": [1]},
    "prune": {"method": ["wanda", "magnitude", "random"], "ratio": [0.0, 0.5, 1.0], "pattern": ["unstructured", "2:4"]},
}  # fmt: skip
# Whose defaults suit an LLM of many blocks, so that they are always drawn.
ALWAYS = {"skip_ffn": ["start"], "skip_attn": ["start"], "skip_block": ["start"], "exit": ["block"], "merge": ["start"],
          "isolate": ["num_blocks"], "parallel": ["start"], "drop": ["start"], "knock_out": ["start", "width"],
          "back_patch": ["to_block", "from_block"], "steer": ["layer"], "entropy": ["start"]}  # fmt: skip
AFTER_A_RUN = ("skip_auto", "steer", "prune")  # which ask for a run that is there
PAGE_EVERY = 10
NUM_PARTS = 4  # for as many workers
GROUPS = ["maps", "sinks", "connector", "probes"]
SITES = ["resid_pre", "sa", "fc1", "fc2", "resid_post"]  # of every family
MORE_SITES = ["ln1", "resid_mid", "ln2"]
VARIANTS = ["nosink", "nomassive", "scaled", "centred", "update"]
CAPTION = "{_target_: ima.tasks.caption.CaptionTask, max_new_tokens: 3}"
SHAPES = "{_target_: ima.data.shapes.Shapes, num_train: 8, num_test: 4, size: 32}"
ENTRY = f"_target_: ima.config.settings.Entry, data: {SHAPES}, task: {CAPTION}"
NOISE = "{_target_: ima.models.encoders.controls.NoiseEncoder, dim: 6, num_tokens: 2}"


def chosen(draw: random.Random, group: str, table: dict[str, dict[str, list[Any]]]) -> list[str]:
    """A choice of a group and its keys."""
    name = draw.choice(sorted(table))
    return [f"{group}={name}", *(f"{group}.{key}={draw.choice(values)}" for key, values in table[name].items())]


def stacked(draw: random.Random, most: int, without: tuple[str, ...] = ()) -> list[str]:
    """No, one or several interventions."""
    names = draw.sample(sorted(INTERVENTIONS.keys() - set(without)), draw.randint(0, most))
    out = [f"intervention=[{','.join(names)}]"] if names else []
    for name in names:
        for key, values in INTERVENTIONS[name].items():
            if key in ALWAYS.get(name, ()) or draw.random() < 0.3:
                out.append(f"intervention.{name}.{key}={draw.choice(values)}")
    return out


def aligned(draw: random.Random) -> list[str]:
    name = draw.choice(["none", *["default"] * 5, *["groups"] * 3, "full"])
    if name == "groups":
        return [f"alignment=[{','.join(draw.sample(GROUPS, draw.randint(1, 2)))}]"]
    out = [f"alignment={name}"]
    if name == "full":
        out += ["alignment.num_tsne_layers=1", "alignment.num_vocabulary_layers=2"]
    if name == "default":
        out.append(
            f"alignment.sites=[{','.join(draw.sample(SITES + draw.choice([[], [], MORE_SITES]), draw.randint(1, 3)))}]"
        )
        if variants := draw.sample(VARIANTS, draw.choice([0, 0, 1, 2])):
            out.append(f"alignment.variants=[{','.join(variants)}]")
    return out


def drawn(number: int) -> tuple[list[str], list[str]]:
    """(overrides of a training, more of its evaluation)."""
    draw = random.Random(f"{fuzzing.SEED} {number}")
    out = [*BASE, f"llm.family={draw.choice(FAMILY_NAMES)}", f"seed={draw.randint(0, 9)}"]
    data = draw.choice(["shapes", "shapes", *CORPORA])
    out += [f"data={data}", *(SMALL if data == "shapes" else [f"data.folder={data}"])]
    adapters = {name: keys for name, keys in ADAPTERS.items() if name != "video" or data == "msrvtt"}
    out += chosen(draw, "encoder", DATA[data]) + chosen(draw, "adapter", adapters)
    if draw.random() < 0.5:
        out.append(f"llm.chat={draw.choice(sorted(TOKENS))}")
    out.append(f"llm.train={draw.choice(['none', 'none', 'lora', 'all'])}")
    out.append(f"llm.num_blocks={draw.choice([1, *[3, 4] * 5])}")
    out += stacked(draw, 2, without=AFTER_A_RUN) + aligned(draw)
    if data in ("shapes", "coco", "vqav2") and draw.random() < 0.25:
        own = [f", encoder: {NOISE}" if draw.random() < 0.5 else "" for _ in "ab"]
        out.append(f"mixture={{a: {{{ENTRY}{own[0]}}}, b: {{{ENTRY}, weight: {draw.choice([0.5, 2])}{own[1]}}}}}")
        out.append(f"loader.batches={draw.choice(['mixed', 'homogeneous'])}")
    else:
        out += ["task=qa"] * (data == "vqav2") + ["task.max_new_tokens=3", f"task.num_beams={draw.choice([1, 1, 2])}"]
    out += TWO * (draw.random() < 0.08)
    return out, stacked(draw, 3)


def train_on_two_ranks(launcher: Launcher, overrides: list[str], place: Path) -> None:
    """As torchrun starts them. Raises UserError with the line that refuses."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
              "TORCHELASTIC_RUN_ID": "fuzz", "GROUP_RANK": "0", "IMA_CACHE": str(place / "cache")}  # fmt: skip
    ranks = [
        launcher.start("train", overrides, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=place)
        for rank in (0, 1)
    ]
    code = ranks[0].wait(fuzzing.CASE_SECONDS - 60)
    if code != 0:
        ranks[1].kill()
    ranks[1].wait()
    said = ranks[0].err.read_text()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 2 and len(lines) == 1 and "Traceback" not in said:
        raise UserError(lines[0].removeprefix("error: "))
    assert code == 0, f"exit code {code}: {said[-2000:]}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ima.pipeline.run.write_report", lambda folders: folders[0] / "report.html")
    for name in CORPORA:
        (tmp_path / name).mkdir()
        getattr(corpora_files, name)(tmp_path / name)
    return tmp_path


def check(run: Any) -> None:
    """What a run says of itself is finite; a loss or an accuracy is never missing."""
    assert not (odd := fuzzing.odd_numbers(run.metrics)), f"NaN or infinite: {odd[:3]}"
    missing = [name for name, value in run.metrics.items() if value is None and name.endswith(("loss", "accuracy"))]
    assert not missing, f"no number: {missing[:3]}"


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_a_random_config_trains_evaluates_and_reports_or_is_refused_in_one_line(
    part: int, place: Path, launcher: Launcher, record_property: Callable[[str, str], None]
) -> None:
    cases = fuzzing.Cases(share=0.6 / NUM_PARTS)
    num_cases = 0

    number = part - NUM_PARTS
    while not cases.is_over:
        number, num_cases = number + NUM_PARTS, num_cases + 1
        training, more = drawn(number)
        shutil.rmtree(place / "outputs", ignore_errors=True)
        with cases.case(f"{number}: python train.py {shlex.join(training)}\n  then evaluate.py {shlex.join(more)}"):
            if set(TWO) <= set(training):
                train_on_two_ranks(launcher, training, place)
                run = ima.load_run(place / "outputs/fuzz")
                cases.counts["on two ranks"] += 1
            else:
                run = ima.fit(training)
            cases.counts["trained"] += 1
            check(run)
            found = ima.evaluate(["checkpoint=outputs/fuzz", *more, "trainer=cpu", "overwrite=true"])
            check(found)
            cases.counts["evaluated"] += 1
            table_row(load_run(run.folder))
            if cases.counts["evaluated"] % PAGE_EVERY == 1:  # most of the time of a case would go into drawing
                assert run.report().is_file()
                cases.counts["drawn"] += 1
    record_property("said", cases.said("random configs", num_cases))
    assert cases.failures == [], "\n".join(cases.failures)
