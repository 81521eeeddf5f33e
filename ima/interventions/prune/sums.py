"""Calibration statistics: for every linear map the sum of squares of each input feature, by the role of the token.

Sums are additive over batches and examples (fp32 inside a batch, fp64 over batches), kept by role, so that one pass
gives the statistics of percept, text and both, with answers and without: earlier positions never see later ones. PAD is
in no sum. Rows of padding are taken out before anything is computed on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.tensor_file import check_sum, checksum_of, write_tensors
from ima.core.types import Role

FORMAT = "ima-calibration-1"
RoleSet = Literal["percept", "text", "both"]
ROLE_SETS: dict[str, tuple[Role, ...]] = {
    "percept": (Role.PERCEPT,),
    "text": (Role.PROMPT, Role.ANSWER),
    "both": (Role.PERCEPT, Role.PROMPT, Role.ANSWER),
}


def chosen_roles(roles: str, answers: bool = True) -> tuple[Role, ...]:
    return tuple(role for role in ROLE_SETS[roles] if answers or role != Role.ANSWER)


class Sums:
    """`squares`: module path -> (roles, in) fp64, indexed by Role; `num_tokens` (roles,)."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.num_tokens = torch.zeros(len(Role), dtype=torch.int64)

    def add(self, path: str, squares_RI: Tensor) -> None:
        found = self.squares.get(path)
        self.squares[path] = squares_RI if found is None else found + squares_RI

    def norm(self, path: str, roles: tuple[Role, ...]) -> Tensor:
        """norm_I fp32 over the tokens of these roles. Raises UserError where there are none."""
        places = self._counted(roles)
        return self._finite(path, self.squares[path][places].sum(0)).sqrt().float()

    def gram(self, path: str, roles: tuple[Role, ...]) -> Tensor:
        """(in, in) fp64 of a `GramWatch` of these roles. Raises UserError where there are no such tokens."""
        self._counted(roles)
        return self._finite(path, self.squares[path])

    def _counted(self, roles: tuple[Role, ...]) -> list[int]:
        places = [int(role) for role in roles]
        if not int(self.num_tokens[places].sum()):
            names = ", ".join(role.name.lower() for role in roles)
            raise UserError(f"roles: no calibration token is {names}; choose other roles or another task")
        return places

    @staticmethod
    def _finite(path: str, found: Tensor) -> Tensor:
        if not bool(torch.isfinite(found).all()):
            raise UserError(f"calibration: activations at {path} are not finite; use llm.dtype=float32")
        return found

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        tensors = {name: each.clone() for name, each in self.squares.items()}  # maps with one input share theirs
        tensors |= {"num_tokens": self.num_tokens}
        metadata = {"format": FORMAT, "facts": json.dumps(dict(facts))}
        write_tensors(path, tensors, metadata | {"checksum": checksum_of(tensors, metadata)})

    @classmethod
    def load(cls, path: Path) -> tuple[Sums, dict[str, Any]]:
        """Raises UserError where the file is no statistics or not what was written."""
        from safetensors import SafetensorError, safe_open

        sums = cls()
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not readable calibration statistics ({error}); delete it") from error
        if metadata.get("format") != FORMAT or "num_tokens" not in tensors:
            raise UserError(f"{path}: no calibration statistics (format {metadata.get('format')!r}); delete it")
        check_sum(path, tensors, metadata)
        sums.num_tokens = tensors.pop("num_tokens")
        sums.squares = tensors
        try:
            return sums, json.loads(metadata["facts"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: calibration statistics without their facts ({error}); delete it") from error


class Watch:
    """Hooks on linear maps that add their inputs to `sums`. Maps that share an input share the work."""

    def __init__(self, linears: Mapping[str, nn.Linear]) -> None:
        self.linears = linears
        self.sums = Sums()
        self._roles_N: Tensor | None = None
        self._rows_N: Tensor | None = None
        self._of_role_RN: Tensor | None = None
        self._last: tuple[Tensor, Tensor] | None = None
        self.on_seen: Any = None

    def begin(self, roles_BS: Tensor) -> None:
        """What the next passes are over: one batch's roles."""
        roles_N = roles_BS.reshape(-1)
        real_N = roles_N != Role.PAD
        self._rows_N = None if bool(real_N.all()) else real_N.nonzero()[:, 0]
        kinds_R1 = torch.arange(len(Role), device=roles_BS.device)[:, None]
        self._of_role_RN = (roles_N[real_N][None] == kinds_R1).float()
        self._last = None

    def count(self, roles_BS: Tensor) -> None:
        found = torch.bincount(roles_BS.reshape(-1).cpu(), minlength=len(Role))
        found[int(Role.PAD)] = 0
        self.sums.num_tokens += found

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for path, linear in self.linears.items():
                stack.callback(linear.register_forward_pre_hook(self._see(path)).remove)
            yield
        self._last = None

    def _see(self, path: str) -> Any:
        def see(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if self._last is None or self._last[0] is not x:
                self._last = (x, self._squares(x.detach()))
            self.sums.add(path, self._last[1])
            if self.on_seen is not None:
                self.on_seen(path)

        return see

    def _squares(self, x: Tensor) -> Tensor:
        """(roles, in) of one batch."""
        assert self._of_role_RN is not None, "begin a batch first"
        x_NI = x.reshape(-1, x.shape[-1])
        if self._rows_N is not None:
            x_NI = x_NI.index_select(0, self._rows_N)
        return (self._of_role_RN @ x_NI.float().square_() if x_NI.dtype != torch.float32
                else self._of_role_RN @ x_NI.square()).double().cpu()  # fmt: skip


class GramWatch(Watch):
    """The same, but of tokens of the given roles alone the Gram matrix of the inputs: (in, in) fp64 a map."""

    def __init__(self, linears: Mapping[str, nn.Linear], roles: tuple[Role, ...]) -> None:
        super().__init__(linears)
        self.roles = roles

    def _squares(self, x: Tensor) -> Tensor:
        assert self._of_role_RN is not None, "begin a batch first"
        x_NI = x.reshape(-1, x.shape[-1])
        if self._rows_N is not None:
            x_NI = x_NI.index_select(0, self._rows_N)
        chosen_N = self._of_role_RN[[int(role) for role in self.roles]].any(0)
        x_NI = x_NI[chosen_N].double()
        return x_NI.T @ x_NI
