"""Which positions of a pass take part in a computation, and how to take only these.

Where the rows of a batch agree closely enough, the taken positions are one slice of columns (no index arithmetic, one
copy); else they are gathered. Both give the same numbers. Hides padding, OPT's flattened states and query gathering.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SURPLUS = 1.25  # a slice may hold this many times the positions that are asked for


class TokenIndex:
    """Positions keep_BS of a pass with real (not PAD) positions real_BS. PAD may be computed or not: nobody reads it.

    lo, hi: the slice of columns, where it is one; mask_Bn says which of its positions are to be kept (None: all).
    index_N: flat positions otherwise.
    """

    def __init__(self, keep_BS: Tensor, real_BS: Tensor) -> None:
        self.batch, self.length = keep_BS.shape
        self.wanted_BS: Tensor = keep_BS & real_BS
        self.num = int(self.wanted_BS.sum())
        columns = self.wanted_BS.any(0).nonzero()[:, 0]
        self.lo, self.hi = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        self.index_N: Tensor | None = None
        self.mask_Bn: Tensor | None = None
        if self.batch * (self.hi - self.lo) > MAX_SURPLUS * self.num:
            self.index_N = self.wanted_BS.flatten().nonzero()[:, 0]
        elif bool((real_BS & ~keep_BS)[:, self.lo : self.hi].any()):
            self.mask_Bn = self.wanted_BS[:, self.lo : self.hi]

    @property
    def is_slice(self) -> bool:
        return self.index_N is None

    @property
    def num_given(self) -> int:
        """How many rows `pick` gives."""
        return self.batch * (self.hi - self.lo) if self.index_N is None else len(self.index_N)

    def pick(self, x: Tensor) -> Tensor:
        """Rows of x, (B, S, ...) or flattened (B * S, ...): (B, n, ...) or (1, N, ...), flattened where x is."""
        flat = not self.is_whole(x)
        if self.index_N is not None:
            rows = (x if flat else x.flatten(0, 1)).index_select(0, self.index_N)
            return rows if flat else rows[None]
        x = x.unflatten(0, (self.batch, self.length)) if flat else x
        rows = x[:, self.lo : self.hi].contiguous()  # linear layers copy their weight per example for strided input
        return rows.flatten(0, 1) if flat else rows

    def put(self, y: Tensor, flat: bool = False) -> Tensor:
        """The inverse of `pick`: zeros where nothing was taken. `flat`: to (B * S, D)."""
        width = y.shape[-1]
        if self.index_N is not None:
            out = y.new_zeros(self.batch * self.length, width).index_copy(0, self.index_N, y.reshape(-1, width))
            return out if flat else out.view(self.batch, self.length, width)
        y = y.reshape(self.batch, self.hi - self.lo, width)
        if self.mask_Bn is not None:
            y = torch.where(self.mask_Bn[..., None], y, 0)
        out = F.pad(y, (0, 0, self.lo, self.length - self.hi))
        return out.flatten(0, 1) if flat else out

    def is_whole(self, x: Tensor) -> bool:
        """Whether x has the two dimensions (B, S) of the pass, as opposed to B * S in one."""
        return x.dim() > 2 and tuple(x.shape[:2]) == (self.batch, self.length)

    def queries(self) -> Tensor:
        """Columns of the taken positions per example, (B or 1, n); a row with fewer has some that are not wanted."""
        device = self.wanted_BS.device
        if self.index_N is None:
            return torch.arange(self.lo, self.hi, device=device)[None]
        most = int(self.wanted_BS.sum(1).max())
        return self.wanted_BS.int().argsort(dim=1, descending=True, stable=True)[:, :most]

    def put_queries(self, y_BnHW: Tensor, columns: Tensor) -> Tensor:
        """(B, S, H, W) with y at `columns`, zeros elsewhere and where a column is not wanted."""
        if self.index_N is None:
            return F.pad(y_BnHW, (0, 0, 0, 0, self.lo, self.length - self.hi))
        wanted_Bn = self.wanted_BS.gather(1, columns)
        y_BnHW = torch.where(wanted_Bn[..., None, None], y_BnHW, 0)
        out = y_BnHW.new_zeros(self.batch, self.length, *y_BnHW.shape[2:])
        return out.scatter(1, columns[..., None, None].expand_as(y_BnHW), y_BnHW)
