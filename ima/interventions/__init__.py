"""Interventions: context managers on a frozen LLM. Entered, they act; left, the model is bit for bit what it was.

`base.Intervention` is what one's own subclasses, `stack.stack` enters several, `flops` and `plan` say what is left.
"""

from ima.interventions.base import Intervention

__all__ = ["Intervention"]
