"""Models as a person uses them in a notebook: answers, hidden states, alignment, interventions, in a few lines.

Thin by intention: every number comes from the code that the scripts use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ima.alignment.logit_lens import Head, top_tokens
from ima.alignment.states import HiddenStates, KeepStates, states_rows
from ima.alignment.tap import Tap
from ima.config.settings import Alignment, SiteName
from ima.core.errors import UserError
from ima.core.types import Row, Site
from ima.data.collate import LiveMediaInputs
from ima.data.given import GivenMedia, GivenTask, guess_modality
from ima.interventions.base import Intervention, Setting
from ima.interventions.flops import sequence
from ima.interventions.plan import plan_facts, plan_of
from ima.interventions.stack import stack
from ima.models.hf_multimodal import Lmm
from ima.models.hf_multimodal import hf as load_hf
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.models.multimodal import MultimodalModel
from ima.pipeline.calibration import CalibrationTask
from ima.pipeline.evaluator import Evaluator
from ima.pipeline.hf_evaluator import LmmEvaluator
from ima.pipeline.parts import TaskStream

if TYPE_CHECKING:
    import pandas

BATCH_SIZE = 8
Media = Any  # one medium, or a sequence of them: paths, PIL pictures, arrays, (wave, rate)


@dataclasses.dataclass
class LoadedModel:
    """A run's model: the network (`module`) and, for each task that it learnt, how a sample enters it."""

    name: str
    module: MultimodalModel
    streams: list[TaskStream]

    @property
    def llm(self) -> FrozenLLM:
        return self.module.llm

    def stream(self, entry: str = "") -> TaskStream:
        """Of a mixture the entry's; the only one of a run of one task."""
        found = {stream.name: stream for stream in self.streams}
        if not entry:
            return self.streams[0]
        if entry not in found:
            raise UserError(f"entry: {entry!r} is none of {', '.join(found)}")
        return found[entry]

    def generate(
        self, medium: Media, prompt: str = "", entry: str = "", max_new_tokens: int | None = None
    ) -> str | list[str]:
        """What the model says about one picture, sound or clip; a list for a list of them. prompt: the question, or
        what is continued; the task's own where it has one."""
        media, one = several(medium, self.stream(entry).source.modality)
        return answers(self, media, one, prompt, entry, max_new_tokens)


@dataclasses.dataclass
class LoadedLmm:
    """A whole multimodal model of Hugging Face; everything of this page takes it like a run's model."""

    name: str
    module: Lmm

    @property
    def llm(self) -> FrozenLLM:
        return self.module.llm

    def generate(self, medium: Media, prompt: str = "", max_new_tokens: int | None = None) -> str | list[str]:
        """What the model says about one picture, sound or clip; a list for a list of them."""
        media, one = several(medium, modality_of(self, medium))
        return answers(self, media, one, prompt, "", max_new_tokens)


Loaded = LoadedModel | LoadedLmm


def load_lmm(path: str, device: str | None = None, dtype: Any = "auto", num_frames: int = 8) -> LoadedLmm:
    """A whole multimodal model of Hugging Face, from a folder or a hub name (docs/models.md says which types).
    num_frames: of a clip that are shown."""
    lmm = load_hf(path, dtype, num_frames=num_frames)
    lmm.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return LoadedLmm(lmm.llm.name, lmm)


def hidden_states(
    model: Loaded,
    media: Media,
    texts: Sequence[str] | str = (),
    prompts: Sequence[str] | str = (),
    sites: Sequence[SiteName] = ("resid_post",),
    layers: Sequence[int] | None = None,
    entry: str = "",
) -> HiddenStates:
    """Hidden states of the LLM by layer, site and role. texts: what is said about each medium (the answer tokens);
    prompts: what is asked. Sites and layers: as in docs/alignment.md; all layers where not given."""
    evaluator, samples = given(model, media, texts, prompts, entry)
    keep = KeepStates()
    tap = Tap(model.llm, [keep], [Site(site) for site in sites], layers)
    with tap, torch.no_grad():
        for batch in evaluator.batches(samples, answers=bool(texts)):
            x_BSD, roles_BS, _ = evaluator.module.splice(batch)
            ids = [sample.id for sample in batch.samples]
            with tap.batch(roles_BS, ids):
                model.llm(x_BSD, roles_BS, ids)
    return keep.states()


def measure_alignment(
    model: Loaded | Sequence[torch.Tensor],
    media: Media = None,
    texts: Sequence[str] = (),
    prompts: Sequence[str] = (),
    roles: torch.Tensor | None = None,
    alignment: Alignment | None = None,
    entry: str = "",
) -> pandas.DataFrame:
    """The alignment scores as a table, one row a number.

    Either of a model, with media and what is said about each; or of hidden states of your own: one (N, S, D) tensor a
    layer and `roles` (N, S) of `ima.Role`. Raises UserError where these do not fit together.
    """
    if isinstance(model, LoadedModel | LoadedLmm):
        evaluator, samples = given(model, media, texts, prompts, entry)
        if not texts:
            raise UserError("texts: alignment compares media with text; give what is said about each medium")
        _, suite = evaluator.teacher_forced(samples, alignment or Alignment())
        assert suite is not None
        rows, _ = suite.rows({"run": "python", "modality_a": evaluator.source.modality}, {})
        return rows_table(rows)
    if roles is None:
        raise UserError("roles: give (N, S) of ima.Role with hidden states of your own")
    return rows_table(states_rows(model, roles))


@contextmanager
def intervene(model: Loaded | FrozenLLM, *interventions: Intervention) -> Iterator[None]:
    """While this is open, the interventions act on the model's LLM; afterwards it is bit for bit what it was."""
    llm = model if isinstance(model, FrozenLLM) else model.llm
    setting = Setting(calibrate=CalibrationTask)
    with stack(llm, [intervention.resolve(llm, setting) for intervention in interventions]):
        yield


def flops(
    model: Loaded | FrozenLLM, *interventions: Intervention, percept: int = 10, prompt: int = 8
) -> dict[str, Any]:
    """GFLOPs of a prompt with so many perceptual and text tokens, and what the interventions leave of them."""
    llm = model if isinstance(model, FrozenLLM) else model.llm
    tokens = {"percept": percept, "special": int(llm.bos_id is not None), "prompt": prompt}
    assert sequence(tokens).shape[1]
    found: dict[str, Any] = plan_facts(plan_of(llm, interventions, tokens))["flops"]
    return found


def logit_lens(model: Loaded | FrozenLLM, x_ND: torch.Tensor, num: int = 5) -> list[list[tuple[str, float]]]:
    """What hidden states (N, D) of any layer would say if the LLM ended there: per state the `num` likeliest tokens
    with their probabilities, through the final norm and the LM head in fp32."""
    llm = model if isinstance(model, FrozenLLM) else model.llm
    return top_tokens(llm, Head(llm)(x_ND).exp(), num)


# -- what these have in common ---------------------------------------------------------------------------------------


def modality_of(model: Loaded, media: Media, entry: str = "") -> str:
    """Of a run what it was trained on; a whole model is shown what the first medium looks like."""
    if isinstance(model, LoadedModel):
        return model.stream(entry).source.modality
    can = model.module.modalities
    found = guess_modality(media)
    return found if found in can or len(can) > 1 else can[0]


def several(media: Media, modality: str) -> tuple[list[Any], bool]:
    """(a list of media, whether one was given). A tuple (wave, rate) is one sound, a list of frames one clip only where
    it is inside a list."""
    is_list = isinstance(media, list) and not (modality == "video" and media and not isinstance(media[0], (list, str)))
    return (list(media), False) if is_list else ([media], True)


def given(
    model: Loaded, media: Media, texts: Sequence[str] | str, prompts: Sequence[str] | str, entry: str
) -> tuple[Evaluator, list[Any]]:
    modality = modality_of(model, media, entry)
    found, _ = several(media, modality)
    texts, prompts = ([each] if isinstance(each, str) else list(each) for each in (texts, prompts))
    source = GivenMedia(found, modality, texts, prompts)
    if isinstance(model, LoadedLmm):
        evaluator: Evaluator = LmmEvaluator(model.module, GivenTask(), source, BATCH_SIZE)
    else:
        stream = model.stream(entry)
        percepts = LiveMediaInputs(source, stream.channel.encoder)
        evaluator = Evaluator(
            model.module, GivenTask(stream.task), source, percepts, BATCH_SIZE, 0, stream.channel.name
        )
    return evaluator, source.samples("given")


def answers(
    model: Loaded, media: list[Any], one: bool, prompt: str, entry: str, max_new_tokens: int | None
) -> str | list[str]:
    evaluator, samples = given(model, media, (), [prompt] * len(media) if prompt else (), entry)
    settings = evaluator.settings
    if max_new_tokens is not None:
        settings = Generation(max_new_tokens, settings.num_beams)
    texts: list[str] = []
    for batch in evaluator.batches(samples, answers=False):
        texts += [evaluator.task.clean(text) for text in evaluator.module.generate(batch, settings)]
    return texts[0] if one else texts


def table(records: Iterator[dict[str, Any]] | Any) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(list(records))


def rows_table(rows: Sequence[Row]) -> pandas.DataFrame:
    """Only the columns that say something."""
    return table(dataclasses.asdict(row) for row in rows).dropna(axis=1, how="all").drop(columns=["schema", "run"])
