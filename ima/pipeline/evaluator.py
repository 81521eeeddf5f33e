"""One way to measure a model, used before, during and after training and by evaluate.py, so that numbers agree.

A pass runs over this rank's share of the samples and its results are combined over ranks: sums for the loss and the
alignment statistics, gathered predictions for tasks. Every example counts once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ima.alignment.groups import NEED_WORDS
from ima.alignment.kept_means import TextBank, text_bank
from ima.alignment.measurement import Measurement
from ima.alignment.pairing import Pairing, TextKey
from ima.alignment.tap import Tap
from ima.config.settings import Alignment
from ima.core.distributed import num_ranks, rank
from ima.core.metric_names import LIMITS, limit_score
from ima.core.progress import progress
from ima.core.types import Row, Sample, Site
from ima.data.collate import Collate, MediaInputs, NoMediaInputs
from ima.data.loader import eval_loader
from ima.data.source import Source
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Generation
from ima.pipeline.beside import WordBanks, beside_of, cluster_of
from ima.pipeline.own_passes import own_passes
from ima.tasks.base import Metric, Prediction, Task


class Multimodal(Protocol):
    """What is measured: a frozen LLM, and how a batch of its own kind enters it."""

    @property
    def llm(self) -> FrozenLLM: ...

    @property
    def device(self) -> torch.device: ...

    def splice(self, batch: Any, /) -> tuple[Tensor, Tensor, Tensor]:
        """x_BSD, roles_BS, labels_BS."""

    def generate(self, batch: Any, settings: Generation, /) -> list[str]:
        """Text per sample of a prompt-only batch."""


class Evaluator:
    """Measures `module` on samples of one source and task, whose media go through `channel`. `batch_size` is this
    rank's."""

    def __init__(
        self,
        module: Multimodal,
        task: Task,
        source: Source,
        percepts: MediaInputs,
        batch_size: int,
        num_workers: int = 0,
        channel: str = "",
        max_tokens: int | None = None,
    ) -> None:
        self.module, self.task, self.source, self.percepts = module, task, source, percepts
        self.channel, self.max_tokens = channel, max_tokens
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seconds: dict[str, float] = {}
        self._bank: tuple[object, TextBank] | None = None
        self._words = WordBanks()

    @property
    def settings(self) -> Generation:
        return Generation(self.task.max_new_tokens, self.task.num_beams)

    def teacher_forced(
        self, samples: Sequence[Sample], alignment: Alignment | None
    ) -> tuple[float, Measurement | None]:
        """Mean loss per labelled token, and what the tap's sinks hold (None where nothing is asked)."""
        module, llm = self.module, self.module.llm
        suite = None
        if alignment is not None:
            by_id = {sample.id: sample for sample in samples}
            clusters = {name: cluster_of(sample) for name, sample in by_id.items()}
            bank = self._texts(samples, alignment)
            beside = None
            if bank is not None and alignment.groups:
                kept = [by_id[name] for name in bank.pairing.ids]
                beside = beside_of(kept, self.percepts, module, self.channel, self.batch_size)
                if NEED_WORDS & set(alignment.groups):
                    words = self._words.of(llm, self.source, beside.namer, alignment.words)
                    beside = dataclasses.replace(beside, words=words)
            suite = Measurement(alignment, llm, [sample.id for sample in samples], clusters, bank, beside)
            if suite.groups is not None:
                own_passes(suite.groups, module, by_id, self.batches, self._shown_text)
            self._scales(samples, suite)
        start = time.perf_counter()
        loader = self._loader(samples, self._collate(self.percepts))
        total = torch.zeros(2, dtype=torch.float64)
        tap = suite.tap() if suite is not None else None
        if tap is not None:
            tap.__enter__()
        try:
            with (
                torch.no_grad(),
                progress(len(samples), "measure alignment" if tap else "validate", "sample") as advance,
            ):
                for batch in loader:
                    batch = batch.to(module.device)
                    x_BSD, roles_BS, labels_BS = module.splice(batch)
                    sample_ids = [sample.id for sample in batch.samples]
                    with tap.batch(roles_BS, sample_ids) if tap is not None else nullcontext():
                        h_BSD = llm(x_BSD, roles_BS, sample_ids)
                    total[0] += float(llm.loss_sum(h_BSD, labels_BS))
                    total[1] += int((labels_BS != -100).sum())
                    advance(len(batch))
        finally:
            if tap is not None:
                tap.__exit__(None, None, None)
        if num_ranks() > 1:
            total = total.to(module.device)
            dist.all_reduce(total)
        if suite is not None:
            suite.reduce()
        self._spent("alignment" if tap else "validate", start)
        return float(total[0] / total[1]), suite

    def batches(self, samples: Sequence[Sample], answers: bool = True) -> Iterator[Any]:
        """This rank's share of the samples on the module's device; with their answers, or the prompt alone."""
        for batch in self._loader(samples, self._collate(self.percepts, answers)):
            yield batch.to(self.module.device)

    def _texts(self, samples: Sequence[Sample], alignment: Alignment) -> TextBank | None:
        """T.text: the states of the texts alone. Of a frozen LLM they are computed once and kept."""
        if not alignment.num_paired or Site.RESID_POST not in alignment.sites:
            return None
        key = [sample.id for sample in samples], alignment.num_paired, alignment.layers, alignment.seed
        if self._bank is None or self._bank[0] != key or self.module.llm.trains != "none":
            start = time.perf_counter()
            texts = [self._shown_text(sample) for sample in samples]
            clusters = [cluster_of(sample) for sample in samples]
            pairing = Pairing.of(key[0], clusters, texts, alignment.num_paired, alignment.seed)
            by_id = {sample.id: sample for sample in samples}
            shown = [by_id[pairing.ids[index]] for index in pairing.representatives]
            bank = text_bank(self.module.llm, pairing, alignment.layers, lambda tap: self._show(shown, tap))
            self._bank = key, bank
            self._spent("texts", start)
        return self._bank[1]

    @torch.no_grad()
    def _show(self, samples: Sequence[Sample], tap: Tap) -> None:
        """A pass over the texts of these samples alone; every rank makes it over all of them."""
        collate = self._collate(NoMediaInputs())
        with tap, progress(len(samples), "measure texts alone", "text") as advance:
            for start in range(0, len(samples), self.batch_size):
                part = samples[start : start + self.batch_size]
                batch = collate([(sample, 0) for sample in part]).to(self.module.device)
                x_BSD, roles_BS, _ = self.module.splice(batch)
                ids = [sample.id for sample in part]
                with tap.batch(roles_BS, ids):
                    self.module.llm(x_BSD, roles_BS, ids)
                advance(len(part))

    def _shown_text(self, sample: Sample) -> TextKey:
        """Token ids of a sample's text with its answer and without its media, and their roles."""
        ids, roles, _ = self._collate(NoMediaInputs()).text(sample, 0)
        return tuple(ids), tuple(roles)

    @torch.no_grad()
    def _scales(self, samples: Sequence[Sample], suite: Measurement) -> None:
        """The earlier pass, over its subset of the samples."""
        tap = suite.first_tap()
        if tap is None or suite.scales is None:
            return
        start = time.perf_counter()
        chosen = [sample for sample in samples if sample.id in suite.scales.sample_ids]
        loader = self._loader(chosen, self._collate(self.percepts))
        with tap, progress(len(chosen), "measure scales", "sample") as advance:
            for batch in loader:
                x_BSD, roles_BS, _ = self.module.splice(batch.to(self.module.device))
                sample_ids = [sample.id for sample in batch.samples]
                with tap.batch(roles_BS, sample_ids):
                    self.module.llm(x_BSD, roles_BS, sample_ids)
                advance(len(batch))
        suite.scales.reduce()
        self._spent("scales", start)

    def predict(self, samples: Sequence[Sample], blind: bool = False) -> list[Prediction]:
        """Generated text of every sample, in the order of `samples`, on all ranks. `blind`: no perceptual tokens, so
        that samples that show the model the same text share one generation."""
        start = time.perf_counter()
        percepts: MediaInputs = NoMediaInputs() if blind else self.percepts
        asked, shown = list(samples), dict[str, str]()
        if blind:
            shown = {sample.id: self._shown_blind(sample) for sample in samples}
            groups = {shown[sample.id]: sample for sample in samples}
            asked = [dataclasses.replace(sample, id=key) for key, sample in groups.items()]
        texts: dict[str, str] = {}
        by_likelihood = bool(asked and self.task.candidates_for(asked[0]))
        if by_likelihood:
            texts = self._likeliest(asked, percepts)
        loader = self._loader([] if by_likelihood else asked, self._collate(percepts, answers=False))
        with progress(len(asked), "generate", "sample") as advance:
            for batch in loader:
                generated = self.module.generate(batch.to(self.module.device), self.settings)
                texts |= {sample.id: text for sample, text in zip(batch.samples, generated, strict=True)}
                advance(len(batch))
        if num_ranks() > 1:
            parts: list[dict[str, str]] = [{} for _ in range(num_ranks())]
            dist.all_gather_object(parts, texts)
            texts = {key: text for part in parts for key, text in part.items()}
        if blind:
            texts = {sample.id: texts[shown[sample.id]] for sample in samples}
        self._spent("blind" if blind else "generate", start)
        return [Prediction(sample, self.task.clean(texts[sample.id])) for sample in samples]

    def _shown_blind(self, sample: Sample) -> str:
        """A name for what the model sees of a sample without its media, however many turns that has, and what it
        chooses from. Interventions that draw by sample draw by it, whichever samples there are."""
        seen = self._asked_blind(sample), tuple(self.task.candidates_for(sample))
        return f"blind/{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}"

    def _asked_blind(self, sample: Sample) -> tuple[int, ...]:
        return tuple(self._collate(NoMediaInputs(), answers=False).text(sample, 0)[0])

    @torch.no_grad()
    def _likeliest(self, samples: Sequence[Sample], percepts: MediaInputs) -> dict[str, str]:
        """This rank's samples by id -> the candidate whose tokens are likeliest on average."""
        module, best = self.module, dict[str, tuple[float, str]]()
        asked = Candidates(self.task)  # type: ignore[abstract]  # only its texts are asked for
        collate = self._collate(percepts, task=asked)
        items = [
            (sample, number)
            for sample in samples[rank() :: num_ranks()]
            for number in range(len(self.task.candidates_for(sample)))
        ]
        with progress(len(items), "compare", "option") as advance:
            for start in range(0, len(items), self.batch_size):
                part = items[start : start + self.batch_size]
                batch = collate(part).to(module.device)
                x_BSD, roles_BS, labels_BS = module.splice(batch)
                h_BSD = module.llm(x_BSD, roles_BS, [sample.id for sample in batch.samples])
                for (sample, number), value in zip(part, module.llm.log_likelihood(h_BSD, labels_BS), strict=True):
                    found = float(value), self.task.candidates_for(sample)[number]
                    if sample.id not in best or found[0] > best[sample.id][0]:
                        best[sample.id] = found
                advance(len(part))
        return {key: text for key, (_, text) in best.items()}

    def prior(self, samples: Sequence[Sample]) -> list[Prediction] | None:
        """The task's guess without looking, from the answers of the training split."""
        train = self.source.samples("train") if "train" in self.source.splits else []
        return self.task.prior(train, samples) if train else None

    def score(self, predictions: Sequence[Prediction], split: str) -> list[Metric]:
        """Metrics with intervals; idf always from the references of the whole split."""
        return self.task.score(predictions, [sample.references for sample in self.source.samples(split)])

    def _collate(self, percepts: MediaInputs, answers: bool = True, task: Task | None = None) -> Any:
        asked, llm = task or self.task, self.module.llm
        return Collate(asked, llm, percepts, answers, channel=self.channel, max_tokens=self.max_tokens)

    def _loader(self, samples: Sequence[Sample], collate: Any) -> Any:
        return eval_loader(samples, collate, self.batch_size, rank(), num_ranks(), self.num_workers)

    def _spent(self, what: str, start: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start


class Candidates(Task):
    """A task whose target is the candidate that `draw` counts."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def prompt_for(self, sample: Sample) -> str:
        return self.task.prompt_for(sample)

    def target_for(self, sample: Sample, draw: int) -> str:
        return f" {self.task.candidates_for(sample)[draw]}"


def metric_rows(metrics: Sequence[Metric], base: dict[str, Any]) -> Iterator[Row]:
    """A row per metric; its interval as two more."""
    for metric in metrics:
        yield Row(
            score=metric.name, value=metric.value, n=metric.n, **base | ({"note": metric.note} if metric.note else {})
        )
        if metric.low == metric.low:  # NaN: too few clusters for an interval
            for limit, value in zip(LIMITS, (metric.low, metric.high), strict=True):
                yield Row(score=limit_score(metric.name, limit), value=value, n=metric.n, **base)
