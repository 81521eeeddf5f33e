"""`python -m ima masks make|subnet|info|iou|export`: pruning masks from trained runs, and what they have in common."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ima.core.environment import prepare
from ima.core.errors import UserError
from ima.core.trust import check_foreign, recorded_dtype, trusting
from ima.interventions.prune.mask import Mask
from ima.interventions.prune.recipe import CALIBRATED, OF_A_SET, Recipe

if TYPE_CHECKING:
    from ima.interventions.prune.builder import MaskBuilder


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m ima masks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="make|subnet|info|iou|export")

    make = commands.add_parser("make", help="masks of one method: for Wanda one of each run and set of roles")
    subnet = commands.add_parser("subnet", help="the subnet of all runs, and what it is compared with")
    for command in (make, subnet):
        command.add_argument("runs", nargs="+", metavar="RUN", help="trained runs (outputs/<run>) with one LLM")
        command.add_argument("--num-examples", type=int, default=128, help="training samples of each run (128)")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--no-answers", action="store_true", help="answer tokens do not count among text")
        command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the mask files go")
    make.add_argument("--method", default="wanda", choices=["wanda", "sparsegpt", "magnitude", "random"])
    make.add_argument("--ratio", type=float, nargs="+", default=[0.5], help="share of weights that is pruned")
    make.add_argument("--roles", nargs="+", default=["both"], choices=["percept", "text", "both"])
    make.add_argument("--group", choices=["row", "matrix", "global"])
    make.add_argument("--pattern", default="unstructured", choices=["unstructured", "2:4", "4:8"])
    make.add_argument("--order", choices=["one_shot", "sequential"])
    make.add_argument("--layers", default="equal", choices=["equal", "diversity"], help="diversity: TAMP's ratios")
    make.add_argument("--percepts", default="all", choices=["all", "changed"], help="changed: ATV's calibration")
    make.add_argument("--percept-share", type=float, default=1.0, help="of percepts=changed (1)")
    subnet.add_argument("--final-ratio", type=float, nargs="+", default=[0.5], help="sparsity of the subnet itself")
    subnet.add_argument("--roles", nargs="+", default=["both"], choices=["percept", "text", "both"])

    info = commands.add_parser("info", help="where a mask comes from and how dense it is")
    info.add_argument("masks", nargs="+", metavar="MASK")
    iou = commands.add_parser("iou", help="how much masks overlap, beside chance; rows and a page with --out")
    iou.add_argument("masks", nargs="+", metavar="MASK")
    iou.add_argument("--without", metavar="MASK", help="leave the weights that this one keeps out of a second set")
    iou.add_argument("--out", type=Path, metavar="FOLDER")
    export = commands.add_parser("export", help="a pruned checkpoint that plain transformers loads")
    export.add_argument("mask", metavar="MASK")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    for command in (make, subnet, export):
        command.add_argument(
            "--trust", action="append", default=[], metavar="MODULE", help="of yours, which a run or mask may name"
        )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    prepare()
    try:
        with trusting(getattr(options, "trust", ()), ask="--trust {}"):
            {"make": make, "subnet": subnet, "info": info, "iou": iou, "export": export}[options.command](options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def maker_of(runs: Iterable[str]) -> MaskBuilder:
    """For the LLM that all runs share. Raises UserError where they do not."""
    import torch

    from ima.config.instantiation import build
    from ima.interventions.prune.builder import MaskBuilder
    from ima.models.llm.frozen import FrozenLLM
    from ima.pipeline.calibration import CalibrationTask
    from ima.pipeline.checkpoint import load_llm
    from ima.pipeline.stages import apply_stage
    from ima.runs.find import find_adapter, run_config, run_folder
    from ima.runs.identity import canonical, with_dtype
    from ima.runs.record import read_record

    nodes: list[dict[str, Any]] = []
    runs = list(runs)
    for run in runs:
        node = dict(apply_stage(run_config(run), training=False)["llm"])
        place = run_folder(run)
        nodes.append(with_dtype(node, read_record(place).facts, place / "result.json"))
        if canonical(nodes[-1]) != canonical(nodes[0]):
            raise UserError(f"{run}: trained with another LLM than the first run ({nodes[-1]} and {nodes[0]})")
    llm: FrozenLLM = build({"llm": nodes[0]}, "llm")
    if llm.trains != "none":
        load_llm(find_adapter(next(iter(runs)))[1], llm)
        llm.merge()
    llm.to("cuda" if torch.cuda.is_available() else "cpu")
    return MaskBuilder(llm, CalibrationTask, nodes[0])


def make(options: argparse.Namespace) -> None:
    maker = maker_of(options.runs)
    for ratio in options.ratio:
        calibrated = options.method in CALIBRATED
        for run in options.runs if calibrated else [None]:
            for roles in options.roles if calibrated else options.roles[:1]:
                recipe = Recipe(
                    options.method, ratio, options.group, options.pattern, roles, not options.no_answers, options.order,
                    options.num_examples, options.seed, run, layers=options.layers, percepts=options.percepts,
                    percept_share=options.percept_share,
                )  # fmt: skip
                take(maker.path(recipe), options.out)


def subnet(options: argparse.Namespace) -> None:
    """The subnet; at its sparsity, overall and in every matrix: the union, each run's mask, magnitude, random."""
    maker = maker_of(options.runs)
    rest = {"answers": not options.no_answers, "num_examples": options.num_examples, "seed": options.seed}
    for ratio in options.final_ratio:
        for roles in options.roles:
            shared = rest | {"ratio": ratio, "roles": roles, "runs": tuple(options.runs)}
            take(maker.path(Recipe("subnet", **shared)), options.out)
            for matched in ("overall", "matrix"):
                for method in ("union", "magnitude", "random"):
                    take(maker.path(Recipe(method, matched=matched, **shared)), options.out)
                for run in options.runs:
                    take(maker.path(Recipe("wanda", matched=matched, run=run, **shared)), options.out)


def take(path: Path, folder: Path) -> None:
    """A copy of a mask of the cache under its name, and a line about it."""
    mask = Mask.load(path)
    target = folder / f"{str(mask.facts['name']).replace(' ', '-').replace(':', 'of')}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    words = f"sparsity {1 - mask.density:.4f}"
    if mask.facts.get("method") in OF_A_SET and mask.facts.get("task_ratio") is not None:
        words += f" from {mask.facts['task_ratio']:.4f} per task (by chance {mask.facts['chance_sparsity']:.4f})"
    print(f"{target}  {words}", flush=True)


def info(options: argparse.Namespace) -> None:
    for path in options.masks:
        mask = Mask.load(path)
        print(f"{path}: {mask.num_weights} weights in {len(mask.shapes)} matrices, sparsity {1 - mask.density:.4f}")
        for name, value in mask.facts.items():
            if name not in ("llm_node", "versions", "sparsity"):
                print(f"  {name}: {value}")
        for by in ("part", "kind", "block"):
            values = mask.densities(by)
            print(f"  kept by {by}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))


def iou(options: argparse.Namespace) -> None:
    from ima.interventions.prune.rows import matrix_text, named, write_comparison

    masks = named(options.masks)
    if len(masks) < 2:
        raise UserError("iou: the masks given are one and the same; give two")
    without = Mask.load(options.without) if options.without else None
    print("\n".join(matrix_text(masks)))
    if options.out is not None:
        from ima.report.build import write_report

        command = shlex.join(["python", "-m", "ima", *sys.argv[1:]])
        print(f"page: {write_report([write_comparison(masks, options.out, command, without)])}")


def export(options: argparse.Namespace) -> None:
    from ima.interventions.prune.export import export as write

    mask = Mask.load(options.mask)
    print(write(mask, options.mask, options.out, lambda: llm_of(mask, options.mask)))


def llm_of(mask: Mask, name: str) -> Any:
    """The LLM that the mask was made for. Raises UserError where the mask does not say how to load it."""
    from ima.config.instantiation import build

    node = mask.facts.get("llm_node")
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{name}: does not say how its LLM is loaded; make it with python -m ima masks make")
    dtype = recorded_dtype(mask.facts, "dtype", name) or node.get("dtype", "auto")
    check_foreign({"llm_node": node}, name)
    return build({"llm": dict(node) | {"dtype": dtype}}, "llm")
