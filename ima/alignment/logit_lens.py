"""The logit lens: hidden states as distributions over the vocabulary, softmax(lm_head(final_norm(h))).

P and T always come from the same layer of the same example. A role's distribution is the mean of those of its tokens;
divergences are between the two of one example, then averaged over examples. Norm and head are those of the model, in
fp32 whatever its dtype; divergences are made of logarithms, so that nothing underflows. Costs one LM head per kept
token and layer: on a small LLM more than the blocks themselves.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ima.alignment.reservoir import Tokens
from ima.alignment.rows import Base, make
from ima.alignment.scores import mean_with_error
from ima.core.types import Row, Site
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.sites import final_norm

TOP = 5
NUM_SHOWN = 8
CHUNK = 8192


class Head:
    """The way from a hidden state to the vocabulary: copies in fp32, for as long as they are looked through."""

    @torch.no_grad()
    def __init__(self, llm: FrozenLLM) -> None:
        output: Any = llm.model.get_output_embeddings()
        self.norm = copy.deepcopy(final_norm(llm.model)).float()
        self.weight_VD = output.weight.float()
        self.bias_V = None if getattr(output, "bias", None) is None else output.bias.float()
        self.cap: float | None = getattr(llm.model.config, "final_logit_softcapping", None)

    @torch.no_grad()
    def __call__(self, x_ND: Tensor) -> Tensor:
        """logp_NV of hidden states of any layer."""
        normed_ND = self.norm(x_ND.to(self.weight_VD.device, torch.float32))
        logits_NV = torch.nn.functional.linear(normed_ND, self.weight_VD, self.bias_V)
        if self.cap:
            logits_NV = torch.tanh(logits_NV / self.cap) * self.cap
        return logits_NV.log_softmax(-1)


def mean_log(logp_NV: Tensor) -> Tensor:
    """Logarithm of the mean distribution."""
    return logp_NV.logsumexp(0) - torch.log(torch.tensor(float(len(logp_NV))))


def kl(logp_V: Tensor, logq_V: Tensor) -> float:
    """KL(p || q) in nats."""
    return float((logp_V.exp() * (logp_V - logq_V)).sum())


def js(logp_V: Tensor, logq_V: Tensor) -> float:
    """Jensen-Shannon divergence in nats, between 0 and ln 2."""
    middle_V = mean_log(torch.stack([logp_V, logq_V]))
    return (kl(logp_V, middle_V) + kl(logq_V, middle_V)) / 2


@dataclasses.dataclass
class Lens:
    """What the lens sees at some layers. values[score, layer, role]: one number per example, NaN without tokens."""

    layers: tuple[int, ...]
    ids: list[str]
    clusters: list[str]
    values: dict[tuple[str, int, str], Tensor]
    shown: list[dict[str, Any]]


@torch.no_grad()
def look(tokens: Tokens, llm: FrozenLLM, layers: Sequence[int]) -> Lens:
    """One pass over the examples, all layers of one at a time: the cosine of consecutive layers needs both."""
    lens, head = Lens(tuple(sorted(layers)), tokens.ids, tokens.clusters_of(tokens.ids), {}, []), Head(llm)
    states = {(layer, role): tokens.of(layer, role) for layer in lens.layers for role in ("P", "T")}

    def put(score: str, layer: int, role: str, index: int, value: float) -> None:
        empty = torch.full((len(lens.ids),), torch.nan)
        lens.values.setdefault((score, layer, role), empty)[index] = value

    for index, name in enumerate(lens.ids):
        before: dict[str, Tensor] = {}
        for layer in lens.layers:
            means: dict[str, Tensor] = {}
            sides = [states[layer, role][index] for role in ("P", "T")]
            logp = head(torch.cat(sides)).split([len(side) for side in sides])  # the head's weight is read once
            for role, logp_NV in zip(("P", "T"), logp, strict=True):
                put("entropy", layer, role, index, torch.nan)
                put("vocabulary_cosine", layer, role, index, torch.nan)
                if not len(logp_NV):
                    continue
                p_NV = logp_NV.exp()
                means[role] = mean_log(logp_NV)
                put("entropy", layer, role, index, float(-(p_NV * logp_NV).sum(-1).mean()))
                if role in before:
                    cosine_N = torch.nn.functional.cosine_similarity(before[role], p_NV, dim=-1, eps=1e-30)
                    put("vocabulary_cosine", layer, role, index, float(cosine_N.mean()))
                before[role] = p_NV
                if role == "P" and index < NUM_SHOWN:
                    lens.shown += [{"sample": name, "layer": layer, "token": n, "top": top}
                                   for n, top in enumerate(top_tokens(llm, p_NV))]  # fmt: skip
            both = len(means) == 2
            put("kl", layer, "PT", index, kl(means["P"], means["T"]) if both else torch.nan)
            put("js", layer, "PT", index, js(means["P"], means["T"]) if both else torch.nan)
    return lens


def top_tokens(llm: FrozenLLM, p_NV: Tensor, num: int = TOP) -> list[list[tuple[str, float]]]:
    """Per row the most probable tokens, decoded, with their probabilities."""
    found = p_NV.topk(min(num, p_NV.shape[1]), dim=-1)
    rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [
        [(llm.tokenizer.decode([token]), round(p, 6)) for token, p in zip(ids, values, strict=True)]
        for ids, values in rows
    ]


@torch.no_grad()
def translation(tokens: Tokens, llm: FrozenLLM) -> dict[str, Tensor]:
    """value_E by role: mean over the example's tokens of the cosine with the nearest vocabulary embedding, at layer 0.
    T tokens are embeddings themselves, so theirs is the nearest but one (their own is held out): the chance level of
    what a token that stands for a word would reach."""
    result = {}
    for role in ("P", "T"):
        groups = tokens.of(0, role)
        x_ND = torch.nn.functional.normalize(torch.cat(groups), dim=-1)
        best_N2 = torch.full((len(x_ND), 2), -torch.inf)
        for ids in torch.arange(llm.model.get_input_embeddings().num_embeddings).split(CHUNK):
            words_VD = torch.nn.functional.normalize(llm.embed(ids[None].to(llm.device))[0].float().cpu(), dim=-1)
            cosine_NV = x_ND @ words_VD.T
            best_N2 = torch.cat([best_N2, cosine_NV], dim=1).topk(2, dim=1).values
        value_N = best_N2[:, 0 if role == "P" else 1]
        parts = value_N.split([len(group) for group in groups])
        result[role] = torch.stack([part.mean() if len(part) else torch.tensor(torch.nan) for part in parts])
    return result


def vocabulary_rows(lens: Lens, base: Base) -> Iterator[Row]:
    """kl, js: P against T in nats; entropy: of a token, in nats; vocabulary_cosine: a token's distributions at layer_a
    and at the next layer that was looked at, layer_b."""
    fields = base | {"site": Site.RESID_POST.value, "variant": "raw"}
    previous = dict(zip(lens.layers[1:], lens.layers, strict=False))
    for (score, layer, role), value_E in lens.values.items():
        value, se, n = mean_with_error(value_E, lens.clusters)
        role_a, role_b = ("P", "T") if role == "PT" else (role, role)
        layers = {"layer_a": layer, "layer_b": layer}
        if score == "vocabulary_cosine":
            if layer not in previous:
                continue
            layers["layer_a"] = previous[layer]
        yield make(score, value, fields, se=se, n=n, role_a=role_a, role_b=role_b, **layers)


def translation_rows(value_E: dict[str, Tensor], clusters: Sequence[str], base: Base) -> Iterator[Row]:
    """translation: cosine with the nearest vocabulary embedding."""
    for role, values in value_E.items():
        value, se, n = mean_with_error(values, clusters)
        fields = {"site": Site.RESID_POST.value, "variant": "raw", "layer_a": 0, "layer_b": 0}
        yield make("translation", value, base | fields, se=se, n=n, role_a=role, role_b=role)
