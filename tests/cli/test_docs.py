"""Every command of README.md and docs/ runs as written, in a checkout of small parts (tests/documented.py).

What needs days, a GPU or files that must be fetched is composed and priced by doctor; what is not run at all is named
with its reason in the output.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
from documented import Done, Place
from hub_server import HubServer, hub_server
from omegaconf import OmegaConf
from PIL import Image
from wandb_server import wandb_server

from ima.cli.sweep import plan
from ima.config.compose import compose

ROOT = Path(__file__).resolve().parents[2]
BY_DOCUMENT = [documented.fenced(text) for text in documented.documents()]
FENCED, INLINE = documented.unique(itertools.chain(*BY_DOCUMENT)), documented.inline()
COMMANDS = documented.unique([*FENCED, *INLINE])
# Words of commands that need large models, a GPU or published corpora -> composed and priced.
LARGE = re.compile(r"/data/|/models/|=vicuna|trainer=gpu|mt_llava15|data\.path=org/name|data=hf_|lmm\.path=|IMA_DATA=")
# What is not run here, and why. A command that begins with one of these is named in the output.
NOT_RUN = {
    "sbatch": "needs Slurm",
    "srun": "needs Slurm",
    "python -m ima submit --workers": "needs Slurm",
    "torchrun": "needs as many GPUs as it names; ranks on a CPU are in make test-processes",
    "make bench": "a benchmark of many minutes",
    "make mutants": "tests of the tests, many minutes",
    "make test": "the tests themselves",
    "make setup": "has run before any test",
    "make models": "fetches gigabytes",
    "make docs": "installs MkDocs; the site is built in tests/core/test_links.py",
    "pip install": "the wheel and its extras are in make test-processes (tests/cli/test_wheel.py)",
    "python train.py --multirun hydra/launcher=joblib": "needs Hydra's plugins (ima[sweeps])",
    "python train.py experiment=smoke adapter=sparse": "run in make test-processes (tests/cli/test_readme.py)",
}
NAMES = ("ima train", "ima evaluate")
PLACEHOLDERS = {"outputs/<run> --out folder": "outputs/focus --out outputs/folder", "outputs/<run>": "outputs/demo",
                "outputs/<evaluations>": "outputs/demo/evaluate-*", "--out FOLDER": "--out outputs/exported",
                "DIR ...": "outputs/demo outputs/encoders", "experiment=...": "experiment=demo"}  # fmt: skip
# Refused where a picture is a smaller share of the tokens than in the demo, by this line.
REFUSED = {"intervention.skip_auto.budget=0.6": "error: intervention.skip_auto.budget: 0.6 is out of reach"}
# What makes the folders that a reader has by then, each by a documented command; others are runs of the demo.
MAKERS = {
    "demo": "python train.py experiment=demo",
    "demo_control": "python train.py experiment=demo_control",
    "st_image_vqa": "python train.py experiment=st_image_vqa",
    "st_video_qa": "python train.py experiment=st_video_qa",
    "st_video_caption": "python train.py experiment=st_video_caption",
    "st_audio_caption": "python train.py experiment=st_audio_caption",
    "mt_stampworld": "python train.py experiment=mt_stampworld",
    "encoders": "python sweep.py sweep=encoders",
    "seeds": "python sweep.py sweep=seeds",
    "masks": "python -m ima masks make outputs/demo outputs/st_image_vqa --roles percept text --out outputs/masks",
    "full_*": "python evaluate.py checkpoint=outputs/demo alignment=full name=full_demo && "
    "python evaluate.py checkpoint=outputs/st_image_vqa alignment=full name=full_other",
    "demo_skipped": "python train.py experiment=demo intervention=skip_block name=demo_skipped",
    "focus": "python train.py experiment=demo encoder=focus_vit adapter=mlp name=focus",
}
EVALUATED = "python evaluate.py checkpoint=outputs/demo alignment=full alignment.split=T0"
# Whose pages are drawn; `python -m ima report` draws by itself.
DRAWN = ("make demo", "make sweep-demo")
SWEEPS_OF_TASKS = ("sweep=pruning", "sweep=mask_iou", "sweep=subnet", "sweep=transfer")
PUSH = "python -m ima push checkpoint=outputs/demo repo=user/name"


def is_mention(command: str) -> bool:
    """The name of a command in running text, whose arguments stand elsewhere."""
    names = command in INLINE and command not in FENCED and len(command.split()) < 6
    whole = re.sub(r"^ima ", "python -m ima ", command)
    return names and (any(other.startswith(f"{whole} ") for other in COMMANDS) or command in NAMES)


def reason_not_run(command: str) -> str:
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), "")


COMMANDS = [command for command in COMMANDS if not is_mention(command)]
LEFT_OUT = {command: reason for command in COMMANDS if (reason := reason_not_run(command))}
PRICED = [command for command in COMMANDS if command not in LEFT_OUT and LARGE.search(command)]
RUN = [command for command in COMMANDS if command not in LEFT_OUT and command not in PRICED]
# Of each document the first cheap command and the first large one, which the CI runs in some minutes.
CHEAP = re.compile(r"python (train\.py|evaluate\.py|-m ima (?!submit|push|cones|correlate))(?!.*(multirun|hub:|mt_))")


def needed(command: str) -> list[str]:
    """Names below outputs/ that must be there before the command."""
    found = re.findall(r"(?<!--out )outputs/([\w*]+)", command)
    if any(text in command for text in SWEEPS_OF_TASKS):
        found += ["demo", "st_image_vqa"]
    if "mask.path=mask.safetensors" in command:
        found.append("masks")
    if match := re.match(r"for run in (.*?);", command):
        found += match[1].split()
    return found


def sample() -> set[str]:
    cheap = [command for command in RUN if CHEAP.match(command) and set(needed(command)) <= {"demo"}]
    chosen = [next((each for each in own if each in wanted), "") for own in BY_DOCUMENT for wanted in (cheap, PRICED)]
    return set(chosen) - {""}


if os.environ.get("IMA_DOCS") == "sample":
    FEW = sample()
    RUN, PRICED = ([command for command in commands if command in FEW] for commands in (RUN, PRICED))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("docs") / "ima")
    yield found
    found.close()


def provide(place: Place, names: list[str]) -> None:
    for name in names:
        if name == "*":
            provide(place, ["demo", "demo_control", "st_image_vqa"])
        elif not list((place.folder / "outputs").glob(name)):
            maker = MAKERS.get(name, f"python train.py experiment=demo name={name}")
            provide(place, [other for other in needed(maker) if other != name])
            done = place.run(maker)
            assert done.code == 0, f"{maker}\n{done.text}"


@pytest.mark.docs
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs_as_written(command: str, place: Place) -> None:
    text = documented.options(command, PLACEHOLDERS)
    provide(place, needed(text))
    if "evaluate-*" in text:
        assert place.run(EVALUATED).code == 0
    if "mask.path=mask.safetensors" in text:
        shutil.copy(next((place.folder / "outputs/masks").glob("*.safetensors")), place.folder / "mask.safetensors")
    if "dog.png" in text:
        Image.new("RGB", (64, 64), "brown").save(place.folder / "dog.png")
    if "my_pictures" in text:
        pictures_of_ones_own(place.folder / "my_pictures")
    if "user/name" in text:
        with hub_server() as hub:
            done = as_with_a_hub(text, hub, place)
    elif "ima submit" in text:  # submitit knows its jobs by their process
        done = place.run(text, **{documented.ALONE: "1"})
    elif "sync" in text:
        with wandb_server() as server:
            done = place.run(text, **server.env)
            assert server.committed(), done.text
    else:
        done = place.run(text, draw=command in DRAWN)
    if line := next((line for part, line in REFUSED.items() if part in text), None):
        assert done.code == 2 and done.text.startswith(line) and done.text.count("\n") == 1, done.text
        return
    assert done.code == 0 and "Traceback" not in done.text, f"{text}\n{done.text}"


def pictures_of_ones_own(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"{color}.png,a {color} square" for color in ("red", "green", "blue", "brown", "black", "white")]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *lines]) + "\n")
    for line in lines:
        name = line.partition(".")[0]
        Image.new("RGB", (32, 32), name).save(folder / f"{name}.png")


def as_with_a_hub(command: str, hub: HubServer, place: Place) -> Done:
    env = hub.env(place.folder / "hub")
    if "hub:" in command:
        provide(place, ["demo"])
        pushed = place.run(PUSH, **env)
        assert pushed.code == 0, pushed.text
    return place.run(command, **env)


@pytest.mark.docs
@pytest.mark.parametrize("command", PRICED)
def test_a_command_for_large_machines_composes_and_is_priced(
    command: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(documented.options(command.splitlines()[-1], PLACEHOLDERS))
    while "=" in words[0]:  # a variable before the command
        monkeypatch.setenv(*words.pop(0).split("="))
    if words[1] == "evaluate.py":
        arguments = words[2:]
        trained: Any = OmegaConf.to_container(compose(["experiment=demo"]))
        if command.startswith("tasks="):
            arguments = [text.replace("$tasks", command.splitlines()[0].partition("=")[2]) for text in arguments]
        composed: Any = OmegaConf.to_container(compose(arguments, "evaluate", trained=trained))
        assert (composed["llm"] or composed["lmm"]) and ("data" in composed or "mixture" in composed)
        return
    if words[1] == "sweep.py":
        assert len(plan(words[2:])[1]) > 1
        return
    if words[0] == "make":  # make doctor ARGS="..."
        words = ["", *shlex.split(words[-1].partition("=")[2])]
    arguments = [word for word in words[1:] if "=" in word]
    done = place.run(shlex.join(["python", "-m", "ima", "doctor", *arguments]))
    assert done.code in (0, 1) and re.search(r"^needs +LLM weights", done.text, flags=re.MULTILINE), done.text


@pytest.mark.docs
def test_commands_that_are_not_run_are_named(record_property: Callable[[str, str], None]) -> None:
    record_property("said", "\n  ".join(["documented commands that are composed and priced, not run:", *PRICED]))
    record_property("said", "\n  ".join(["not run:", *(f"{text}: {why}" for text, why in LEFT_OUT.items())]))
    assert len(RUN) + len(PRICED) >= 3 * len(LEFT_OUT) > 0 or os.environ.get("IMA_DOCS") == "sample"


# -- the reading of the documents itself, in `make test` ---------------------------------------------------------------


def test_a_block_is_read_as_a_person_types_it() -> None:
    block = (
        "for a in b c; do\n  python x.py $a   # why\ndone\ntasks=a,b\npython y.py \\\n    t=$tasks\nplain words\nmake z"
    )
    wanted = ["for a in b c; do\npython x.py $a\ndone", "tasks=a,b\npython y.py t=$tasks", "make z"]
    assert list(documented.statements(block)) == wanted


def test_small_parts_differ_in_how_much_they_ask_for_and_in_the_llm_only() -> None:
    node = {"data": {"num_train": 800, "num_movers": 2}, "trainer": {"max_epochs": 8, "lr": 0.1}, "epochs": [1, 2]}
    small = {"data": {"num_train": 8, "num_movers": 2}, "trainer": {"max_epochs": 1, "lr": 0.1}, "epochs": [1]}
    assert documented.smaller(node) == small
    whole = {"_target_": "ima.models.llm.load.smollm2", "dtype": "auto", "seed": "${seed}"}
    assert documented.smaller({"llm": whole}) == {"llm": documented.SMALL_LLM | {"seed": "${seed}"}}
    sweep = {"params": {"a": [1, 2, 3], "b": [1, 2, 3]}, "points": [["x"], ["y"], ["z"], ["w"]], "script": "evaluate"}
    short = {"params": {"a": [1, 2], "b": [1]}, "points": [["x"], ["z"]], "script": "evaluate"}
    assert documented.shorter(sweep) == short
