"""An error of Hydra or OmegaConf as one line for a person: which key, what is allowed."""

from __future__ import annotations

from typing import Any

import yaml
from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ima.config.choices import yaml_message
from ima.config.synonyms import synonym
from ima.core.errors import UserError, nearest


def one_line(error: BaseException) -> str:
    """What to print in place of the error's own lines."""
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, yaml.YAMLError):
            return yaml_message(cause)
        if isinstance(cause, RecursionError):
            return "conf: the defaults of a file include the file itself; remove that"
    for cause in causes:
        if isinstance(cause, MissingConfigException) and cause.options:
            name = str(cause.missing_cfg_file).rpartition("/")
            return f"{name[0] or 'config'}: no choice {name[2]!r}; {nearest(name[2], cause.options)}"
        if isinstance(cause, OmegaConfBaseException) and (text := about_key(cause)):
            return text
    return first_line(next((cause for cause in causes if str(cause).strip()), error))


def chain(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def about_key(error: OmegaConfBaseException) -> str:
    """A line that begins with the key that the error is about; "" where it names none."""
    full = str(error.full_key or error.key or "")
    if not full:
        return ""
    parent, last = error.parent_node, full.rpartition(".")[2]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if known := synonym(last):
        return f"{full}: no such key; {known}"
    reason = lines[0].rstrip(".") if lines else type(error).__name__
    names = [str(key) for key in parent] if isinstance(parent, DictConfig) and not parent._is_none() else []
    if names and last not in names:
        return f"{full}: no {last!r} there; {nearest(last, names)}"
    return f"{full}: {reason}"


def first_line(error: BaseException) -> str:
    """The first line of an error, and the hint below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = f"; {lines[1].rstrip('.')}" if lines[1:] and lines[1].startswith("Did you mean") else ""
    return lines[0].rstrip(".") + hint if lines else type(error).__name__
