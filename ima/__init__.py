"""Implicit multimodal alignment: train a mapping adapter into a frozen LLM and look at what happens inside.

The names below are what notebooks need (docs/python.md); each is imported when it is first used, so that `import ima`
itself costs nothing and torch stays out until then.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ima.core import moved_imports

if TYPE_CHECKING:
    from ima.alignment.states import HiddenStates
    from ima.config.compose import compose
    from ima.core.errors import UserError
    from ima.core.types import Role, Sample, Site
    from ima.interventions.base import Intervention
    from ima.interventions.prune.compare import overlap
    from ima.interventions.prune.intervention import MaskWeights, Prune
    from ima.interventions.prune.mask import Mask
    from ima.interventions.skip.plan import Skip
    from ima.models.llm.frozen import FrozenLLM
    from ima.models.multimodal import MultimodalModel
    from ima.pipeline.api.models import (
        LoadedLmm,
        LoadedModel,
        flops,
        hidden_states,
        intervene,
        load_lmm,
        logit_lens,
        measure_alignment,
    )
    from ima.pipeline.api.runs import Run, evaluate, fit, load_run
    from ima.report.build import write_report

__version__ = "0.1.0"

_HOMES = {
    "ima.alignment.states": ("HiddenStates",),
    "ima.config.compose": ("compose",),
    "ima.core.errors": ("UserError",),
    "ima.core.types": ("Role", "Sample", "Site"),
    "ima.interventions.base": ("Intervention",),
    "ima.interventions.prune.compare": ("overlap",),
    "ima.interventions.prune.intervention": ("MaskWeights", "Prune"),
    "ima.interventions.prune.mask": ("Mask",),
    "ima.interventions.skip.plan": ("Skip",),
    "ima.models.llm.frozen": ("FrozenLLM",),
    "ima.models.multimodal": ("MultimodalModel",),
    "ima.pipeline.api.models": ("LoadedLmm", "LoadedModel", "flops", "hidden_states", "intervene", "load_lmm",
                                "logit_lens", "measure_alignment"),
    "ima.pipeline.api.runs": ("Run", "evaluate", "fit", "load_run"),
    "ima.report.build": ("write_report",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "FrozenLLM", "HiddenStates", "Intervention", "LoadedLmm", "LoadedModel", "Mask", "MaskWeights", "MultimodalModel",
    "Prune", "Role", "Run", "Sample", "Site", "Skip", "UserError", "compose", "evaluate", "fit", "flops",
    "hidden_states", "intervene", "load_lmm", "load_run", "logit_lens", "measure_alignment", "overlap", "write_report",
]  # fmt: skip

moved_imports.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ima' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
