"""Masks on an LLM: exact, restored bit for bit, together with skips, the fast path and training; the subnet's search;
masks made from runs and found again; exported checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_masks_calibration import Inputs, equal, examples

from ima.cli.masks import llm_of
from ima.core.errors import UserError
from ima.interventions.base import Setting
from ima.interventions.prune import subnet
from ima.interventions.prune.apply import masked
from ima.interventions.prune.builder import MaskBuilder
from ima.interventions.prune.calibration import one_shot
from ima.interventions.prune.compare import density_by_chance
from ima.interventions.prune.export import complaint_sparse, export, semi_structured
from ima.interventions.prune.intervention import MaskWeights, Prune
from ima.interventions.prune.mask import Mask
from ima.interventions.prune.recipe import Recipe
from ima.interventions.prune.scores import linears_of, rounded_id, wanda, weights_id
from ima.interventions.prune.select import keep_by
from ima.interventions.prune.sums import ROLE_SETS, Sums
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.models.llm.pass_context import Generation
from ima.models.llm.tuning import weight_sum
from ima.pipeline.calibration import CalibrationTask

FAMILIES = ("opt", "llama", "gemma3", "phi3", "gpt_neox")


def any_mask(llm: FrozenLLM, ratio: float = 0.5, seed: int = 0) -> Mask:
    return MaskBuilder(llm, node={"_target_": "ima.models.llm.load.tiny"}).make(
        Recipe("random", ratio, seed=seed), None, []
    )


def batch(llm: FrozenLLM) -> Inputs:
    inputs = examples(llm)[::2]  # of one length
    return torch.cat([x for x, _ in inputs]), torch.cat([roles for _, roles in inputs])


def run(llm: FrozenLLM) -> torch.Tensor:
    x_BSD, roles_BS = batch(llm)
    with torch.no_grad():
        return llm(x_BSD, roles_BS, ["a", "b"])


# -- application -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_under_a_mask_the_model_computes_what_one_with_zeros_computes_and_then_is_what_it_was(family: str) -> None:
    llm, twin = tiny(family), tiny(family)
    mask = any_mask(llm)
    for path, linear in linears_of(twin).items():
        linear.weight.mul_(torch.from_numpy(mask.kept(path)))
    before, plain = weight_sum(llm), run(llm)
    with masked(llm, mask):
        assert torch.equal(run(llm), run(twin)) and not torch.equal(run(llm), plain)
    assert weight_sum(llm) == before and torch.equal(run(llm), plain)


def test_weights_come_back_bit_for_bit_after_an_exception_also_odd_ones() -> None:
    llm = tiny("llama", dtype="bfloat16")
    first = next(iter(linears_of(llm).values())).weight
    with torch.no_grad():
        first[0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-40])
    before = weight_sum(llm)
    with (
        pytest.raises(RuntimeError, match="inside"),
        masked(llm, any_mask(llm, 0.9)),
        masked(llm, any_mask(llm, 0.5, 1)),
    ):
        raise RuntimeError("inside")
    assert weight_sum(llm) == before


def test_packed_copies_of_weights_follow_a_mask_that_comes_and_goes_while_they_are_in_use() -> None:
    llm, slow = tiny("llama", width=64), tiny("llama", width=64)
    mask = any_mask(llm)
    with accelerate(llm.model) as fast:
        assert fast.num_accelerated == llm.num_blocks
        plain = run(llm)
        with masked(llm, mask):
            pruned = run(llm)
        assert torch.equal(run(llm), plain)
    with masked(slow, mask):
        torch.testing.assert_close(pruned, run(slow), rtol=1e-4, atol=1e-5)
    assert (pruned - plain).abs().max() > 1e-2


@pytest.mark.parametrize("part", ["ffn", "attn", "block"])
def test_a_mask_and_a_skip_together_are_the_skip_on_the_pruned_model(part: Any, tmp_path: Path) -> None:
    llm, twin = tiny("llama"), tiny("llama")
    mask = any_mask(llm)
    mask.save(tmp_path / "m.safetensors")
    skip = Skip(part, ("percept",), start=1, ratio=0.5)
    for path, linear in linears_of(twin).items():
        linear.weight.mul_(torch.from_numpy(mask.kept(path)))
    with stack(llm, [skip, MaskWeights(str(tmp_path / "m.safetensors"))]), stack(twin, [skip]):
        assert torch.equal(run(llm), run(twin))
        x_BSD, roles_BS = batch(llm)
        settings = Generation(4)
        found, expected = (each.generate(x_BSD, roles_BS, settings, ["a", "b"]) for each in (llm, twin))
    assert found == expected


def test_a_gradient_under_a_mask_is_that_of_the_pruned_model() -> None:
    llm, twin = tiny("llama"), tiny("llama")
    mask = any_mask(llm)
    for path, linear in linears_of(twin).items():
        linear.weight.mul_(torch.from_numpy(mask.kept(path)))

    def gradient(each: FrozenLLM) -> torch.Tensor:
        x_BSD, roles_BS = batch(each)
        x_BSD = x_BSD.requires_grad_(True)
        return torch.autograd.grad(each(x_BSD, roles_BS).square().sum(), x_BSD)[0]

    with masked(llm, mask):
        assert torch.equal(gradient(llm), gradient(twin))


def test_a_mask_of_another_model_or_of_other_weights_is_refused_before_anything_is_changed() -> None:
    llm = tiny("llama")
    before = weight_sum(llm)
    with pytest.raises(UserError, match="does not fit tiny-llama"), masked(llm, any_mask(tiny("opt"))):
        pass
    other = any_mask(tiny("llama", seed=1))
    with pytest.raises(UserError, match="other weights than tiny-llama has"), masked(llm, other):
        pass
    with masked(llm, other, any_weights=True):
        assert weight_sum(llm) != before
    assert weight_sum(llm) == before


def test_the_fingerprint_of_weights_is_of_their_bits_and_no_sum_of_floats() -> None:
    """Sums of floats come out differently on each device. Whole numbers do not: the value is written down here."""
    llm = tiny("llama", dtype="bfloat16")
    for index, linear in enumerate(linears_of(llm).values()):
        places = torch.arange(linear.weight.numel()).view_as(linear.weight) + index
        linear.weight.copy_(((places * 37) % 64 - 32) / 16)
    before = weights_id(llm)
    assert before == "bits:4e1ad720656356cd"
    first = next(iter(linears_of(llm).values())).weight
    first[0, :2] = first[0, :2].flip(0)  # 16-bit numbers lie in pairs
    assert weights_id(llm) != before
    first[0, :2] = first[0, :2].flip(0)
    assert weights_id(llm) == before


def test_a_mask_with_the_old_fingerprint_is_recognised_here_or_said_to_be_unknowable() -> None:
    llm = tiny("llama")
    mask = any_mask(llm)
    mask.facts["weights"] = rounded_id(llm)
    with masked(llm, mask):
        pass
    mask.facts["weights"] = "0123456789abcdef"
    with pytest.raises(UserError, match="cannot be told here; make it again, or set any_weights=true"):
        masked(llm, mask).__enter__()
    with masked(llm, mask, any_weights=True):
        pass


@pytest.mark.parametrize("change", ["data", "parameter"])
def test_weights_come_back_where_the_model_is_when_it_moved_under_the_mask(tmp_path: Path, change: str) -> None:
    """Trainers move a model to the CPU at their end. Here the copy is one of another type instead of another device:
    what was kept aside fits neither by itself."""
    llm = tiny("llama")
    expected = {name: value.double() for name, value in llm.state_dict().items()}
    any_mask(llm).save(tmp_path / "m.safetensors")
    with stack(llm, [MaskWeights(str(tmp_path / "m.safetensors")), Skip("ffn", start=1)]):
        run(llm)
        for module in llm.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if change == "data":
                    parameter.data = parameter.data.clone().double()
                else:
                    setattr(module, name, torch.nn.Parameter(parameter.data.double(), requires_grad=False))
    assert all(torch.equal(value.double(), expected[name]) for name, value in llm.state_dict().items())


def test_the_facts_of_a_mask_stand_in_its_description(tmp_path: Path) -> None:
    llm = tiny("llama")
    any_mask(llm, 0.3).save(tmp_path / "m.safetensors")
    told = MaskWeights(str(tmp_path / "m.safetensors")).describe()
    assert told["kind"] == "mask" and told["method"] == "random" and told["asked"] == 0.3
    assert told["sparsity"] == pytest.approx(0.3, abs=1e-3) and "save no time" in told["note"]


# -- the subnet ------------------------------------------------------------------------------------------------------


def three_tasks(llm: FrozenLLM) -> list[Sums]:
    inputs = examples(llm)
    for index, (x, _) in enumerate(inputs):
        x.mul_(torch.linspace(0.2, 3, llm.width).roll(7 * index))
    return [one_shot(llm, inputs[index : index + 2]) for index in range(3)]


@pytest.mark.parametrize("reduce", ["intersection", "union"])
@pytest.mark.parametrize("final", [0.3, 0.5, 0.8])
def test_the_search_finds_the_per_task_sparsity_that_trying_all_finds(reduce: subnet.Reduce, final: float) -> None:
    llm = tiny("phi3")
    linears, sums = linears_of(llm), three_tasks(llm)
    shapes = {path: (linear.out_features, linear.in_features) for path, linear in linears.items()}

    def scores(path: str) -> list[torch.Tensor]:
        return [wanda(linears[path], each.norm(path, ROLE_SETS["both"])) for each in sums]

    def achieved(ratio: float) -> float:
        masks = [Mask.of({path: keep_by("row", scores(path)[t], ratio) for path in shapes}) for t in range(3)]
        whole = masks[0] & masks[1] & masks[2] if reduce == "intersection" else masks[0] | masks[1] | masks[2]
        return 1 - whole.density

    found = subnet.search(subnet.curve(scores, shapes, reduce), final)
    assert found.final_ratio == pytest.approx(achieved(found.task_ratio))
    tried = [achieved(n / 64) for n in range(65)]
    assert abs(found.final_ratio - final) <= min(abs(each - final) for each in tried) + 1e-12
    kept = {path: subnet.combined(scores(path), found.task_ratio, reduce) for path in shapes}
    assert 1 - Mask.of(kept).density == pytest.approx(found.final_ratio)


def test_chance_density_of_a_subnet_is_the_product() -> None:
    llm = tiny("llama")
    masks = [any_mask(llm, ratio, seed) for seed, ratio in enumerate((0.3, 0.5, 0.2))]
    assert density_by_chance(masks) == pytest.approx(0.7 * 0.5 * 0.8, abs=1e-3)


# -- making ----------------------------------------------------------------------------------------------------------


class MadeUp(CalibrationTask):
    """A task without a run folder."""

    passes = 0

    def __init__(self, folder: Path | str, num_examples: int, seed: int) -> None:
        self.folder, self.num_examples, self.seed = Path(folder), num_examples, seed
        self.key, self.source = f"{self.folder.name}{num_examples}{seed}", "made-up"

    def inputs(self, llm: FrozenLLM) -> Any:
        type(self).passes += 1
        turn = int(self.folder.name[-1])
        for x, roles in examples(llm):
            yield x * torch.linspace(0.2, 3, llm.width).roll(9 * turn), roles


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MaskBuilder:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    MadeUp.passes = 0
    return MaskBuilder(tiny("llama"), MadeUp, {"_target_": "ima.models.llm.load.tiny", "family": "llama"})


RUNS = ("task0", "task1", "task2")


def test_each_task_is_calibrated_once_whatever_masks_are_made_of_it(maker: MaskBuilder) -> None:
    for roles in ("percept", "text", "both"):
        for ratio in (0.3, 0.5):
            for name in RUNS:
                maker.path(Recipe("wanda", ratio, roles=roles, run=name))  # type: ignore[arg-type]
    maker.path(Recipe("subnet", 0.5, runs=RUNS))
    assert MadeUp.passes == 3
    again = MaskBuilder(maker.llm, MadeUp, maker.node)
    assert again.path(Recipe("wanda", 0.5, run="task0")) == maker.path(Recipe("wanda", 0.5, run="task0"))
    again.path(Recipe("wanda", 0.7, run="task0"))
    assert MadeUp.passes == 3
    again.path(Recipe("wanda", 0.7, run="task0", seed=1))
    assert MadeUp.passes == 4


def test_other_weights_never_get_a_cached_mask(maker: MaskBuilder) -> None:
    recipe = Recipe("magnitude", 0.5)
    assert maker.path(recipe) != MaskBuilder(tiny("llama", seed=1), MadeUp).path(recipe)


@pytest.mark.parametrize("matched", ["overall", "matrix"])
@pytest.mark.parametrize("method", ["wanda", "magnitude", "random", "union"])
def test_what_a_subnet_is_compared_with_has_its_sparsity(maker: MaskBuilder, method: Any, matched: Any) -> None:
    whole = Mask.load(maker.path(Recipe("subnet", 0.5, runs=RUNS)))
    assert abs(1 - whole.density - 0.5) < 0.02 and whole.facts["task_ratio"] < 0.5
    assert 1 - whole.density < whole.facts["chance_sparsity"]  # tasks share |W|: they agree more than chance
    own = {"run": "task1"} if method == "wanda" else {}
    other = Mask.load(maker.path(Recipe(method, 0.5, runs=RUNS, matched=matched, **own)))
    if matched == "matrix":
        assert other.densities() == whole.densities()
    elif method == "union":
        assert other.density == pytest.approx(whole.density, abs=0.02)
    else:
        assert other.num_kept == whole.num_kept
        assert max(other.densities().values()) - min(other.densities().values()) <= 1 / 512  # one weight of a matrix


def test_sequential_and_one_shot_masks_of_a_run_are_two(maker: MaskBuilder) -> None:
    one, other = (
        Mask.load(maker.path(Recipe("wanda", 0.5, run="task0", order=order))) for order in ("one_shot", "sequential")
    )
    assert one != other and one.density == other.density
    first = [path for path in one.shapes if path.startswith("model.layers.0.")]
    assert equal({path: one.kept(path) for path in first}, {path: other.kept(path) for path in first})


def test_wanda_without_a_run_says_what_to_name() -> None:
    with pytest.raises(UserError, match="run: name the run folder"):
        Prune("wanda").resolve(tiny("llama"), Setting())


# -- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_plain_transformers_loads_an_exported_checkpoint_and_computes_the_same(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = tiny(family)
    mask = any_mask(llm)
    before = weight_sum(llm)
    export(mask, "m", tmp_path / "out", lambda: llm)
    assert weight_sum(llm) == before
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")("hello").input_ids])
    with masked(llm, mask), torch.no_grad():
        torch.testing.assert_close(model(ids).logits, llm.model(ids).logits)
    weights = dict(model.named_parameters())
    assert all(((weights[f"{path}.weight"] != 0).numpy() <= mask.kept(path)).all() for path in mask.shapes)
    with pytest.raises(UserError, match="exists already"):
        export(mask, "m", tmp_path / "out", lambda: llm)


def test_an_export_loads_the_llm_that_the_mask_names(tmp_path: Path) -> None:
    llm = tiny("llama")
    mask = any_mask(llm)
    path = export(mask, "m", tmp_path / "out", lambda: llm_of(mask, "m"))
    assert (path / "config.json").is_file() and (path / "mask.json").is_file()
    with pytest.raises(UserError, match="does not say how its LLM is loaded"):
        llm_of(MaskBuilder(llm).make(Recipe("random"), None, []), "m")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they are multiplied")
def test_two_to_four_without_a_gpu_is_one_clear_line() -> None:
    llm = tiny("llama")
    mask = MaskBuilder(llm).make(Recipe("random", 0.5, pattern="2:4"), None, [])
    with pytest.raises(UserError, match="no CUDA GPU here"), semi_structured(llm, mask):
        pass
    assert "2:4 is needed" in complaint_sparse(llm, any_mask(llm))
    kept = np.concatenate([mask.kept(path).reshape(-1, 4) for path in mask.shapes])
    assert (kept.sum(1) == 2).all()
