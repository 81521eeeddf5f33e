"""Probes: what of the medium can be read off a state by a linear map, noun and category, by layer.

Ridge on standardised mean tokens without sinks, 5 folds by cluster over classes with at least two clusters. Beside each
accuracy: its null (labels permuted over clusters), the encoder's features, and for T the prompt of the same pass, which
does not know the answer, at nine layers. `selectivity`: 2 folds by view, minus the same with labels drawn at random for
each cluster. Decodable is not aligned: an untrained adapter passes on what its encoder knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ima.alignment.kept_means import Means, TextBank
from ima.alignment.ridge import NUM_FOLDS, fits, folds_of, out_of_fold
from ima.alignment.rows import Base
from ima.alignment.scores import mean_with_error
from ima.alignment.views import evenly
from ima.core.types import Row, Site

NUM_NULL = 20
LEAST = 20  # examples
NUM_PROMPT_LAYERS = 9  # that the prompt is looked at


def probe_rows(
    bank: TextBank,
    labels: dict[str, list[str]],
    media: Means,
    prompts: Means | None,
    features_EN: Tensor | None,
    base: Base,
) -> Iterator[Row]:
    """labels: noun, category -> of each example of the pairing, "" for none."""
    clusters = bank.pairing.clusters
    for label, names in labels.items():
        for role, side in (("P", media), ("T.prompt", prompts)):
            if side is None:
                continue
            looked = bank.layers if role == "P" else evenly(bank.layers, NUM_PROMPT_LAYERS)
            for layer in looked:
                index = bank.layers.index(layer)
                fields = base | {
                    "site": Site.RESID_POST.value,
                    "role_a": role,
                    "layer_a": layer,
                    "variant": "nosinkdim",
                }
                yield from probed(label, side.nosink_ELD[:, index], names, clusters, fields)
        if features_EN is not None:
            yield from probed(label, features_EN, names, clusters, base | {"role_a": "P", "variant": "encoder"})


def probed(label: str, x_ED: Tensor, names: Sequence[str], clusters: Sequence[str], fields: Base) -> Iterator[Row]:
    kept = usable(x_ED, names, clusters)
    if len(kept) < LEAST:
        note = f"{len(kept)} examples of a {label} with two clusters; at least {LEAST}"
        yield Row(score=f"probe_{label}", value=math.nan, n=len(kept), note=note, **fields)
        return
    x, chosen = x_ED[kept].double(), [names[index] for index in kept]
    mine = [clusters[index] for index in kept]
    folds = folds_of(mine, NUM_FOLDS, chosen)
    y_NC = targets(chosen)
    num_classes = y_NC.shape[1]
    null = torch.cat([targets(permuted(chosen, mine, seed), sorted(set(chosen))) for seed in range(NUM_NULL)], dim=1)
    made_NC, null_NX = out_of_fold(x, y_NC, mine, folds, null)
    right_N = (made_NC.argmax(1) == y_NC.argmax(1)).double()
    value, se, n = mean_with_error(right_N, mine)
    yield Row(score=f"probe_{label}", value=value, se=se, n=n, note=f"{num_classes} classes", **fields)
    assert null_NX is not None
    chance = [
        float((part.argmax(1) == wanted.argmax(1)).double().mean())
        for part, wanted in zip(null_NX.split(num_classes, dim=1), null.split(num_classes, dim=1), strict=True)
    ]
    spread = torch.tensor(chance, dtype=torch.float64)
    yield Row(score=f"probe_{label}_null", value=float(spread.mean()), se=float(spread.std()), n=n, **fields)
    chosen_by_view = selectivity(x, chosen, mine)
    unmeasured = None if chosen_by_view == chosen_by_view else f"fewer than {LEAST} examples of clusters with two views"
    yield Row(score=f"probe_{label}_selectivity", value=chosen_by_view, n=n, note=unmeasured, **fields)


def usable(x_ED: Tensor, names: Sequence[str], clusters: Sequence[str]) -> list[int]:
    """Examples that have a state and a class which at least two clusters have."""
    there = (~x_ED.isnan().any(1)).tolist()
    of_class: dict[str, set[str]] = {}
    for index, name in enumerate(names):
        if name and there[index]:
            of_class.setdefault(name, set()).add(clusters[index])
    return [index for index, name in enumerate(names) if there[index] and len(of_class.get(name, ())) > 1]


def targets(names: Sequence[str], classes: Sequence[str] | None = None) -> Tensor:
    order = {name: number for number, name in enumerate(sorted(set(names)) if classes is None else classes)}
    return one_hot(torch.tensor([order[name] for name in names]), len(order)).double()


def permuted(names: Sequence[str], clusters: Sequence[str], seed: int) -> list[str]:
    """Labels given to each other by cluster: all examples of a cluster get the label of another one."""
    label = dict(zip(clusters, names, strict=True))
    keys = sorted(label)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    given = {key: label[keys[place]] for key, place in zip(keys, order, strict=True)}
    return [given[cluster] for cluster in clusters]


def selectivity(x_ND: Tensor, names: Sequence[str], clusters: Sequence[str]) -> float:
    """Accuracy over views of known clusters, minus that of labels drawn for each cluster; NaN without second views."""
    seen: dict[str, int] = {}
    view = []
    for cluster in clusters:
        view.append(seen.get(cluster, 0) % 2)
        seen[cluster] = seen.get(cluster, 0) + 1
    kept = [index for index, cluster in enumerate(clusters) if seen[cluster] > 1]
    if len(kept) < LEAST:
        return math.nan
    classes = sorted(set(names))
    generator = torch.Generator().manual_seed(0)
    drawn = dict(
        zip(sorted(set(clusters)), torch.randint(len(classes), (len(seen),), generator=generator), strict=True)
    )
    random = [classes[int(drawn[cluster])] for cluster in clusters]
    mine = [clusters[index] for index in kept]
    asked = [targets([labels[index] for index in kept], classes) for labels in (names, random)]
    right = [torch.zeros(len(kept), dtype=torch.float64) for _ in asked]
    for test_N, fit in fits(x_ND[kept], mine, [view[index] for index in kept]):
        for y_NC, right_N in zip(asked, right, strict=True):
            made_MC = fit.predictions(y_NC[~test_N], fit.penalty(y_NC[~test_N]))
            right_N[test_N] = (made_MC.argmax(1) == y_NC[test_N].argmax(1)).double()
    return float(right[0].mean() - right[1].mean())
