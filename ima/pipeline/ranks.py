"""What Lightning is told about the ranks of a run: those that the run has found itself, and nothing else.

Hides Lightning's environments, Slurm's list of hosts and the address at which ranks meet.
"""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ima.core.distributed import Place


class KnownRanks(LightningEnvironment):
    """What Lightning is told about ranks: the place of this process, which is known, and nothing else of the
    environment. Its own detection would take part in whatever left a variable behind."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.set_global_rank(place.rank)

    @property
    def creates_processes_externally(self) -> bool:
        return not self.place.starts

    @property
    def main_address(self) -> str:
        if self.place.starts:
            return "127.0.0.1"
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        if self._main_port == -1:
            job = os.environ.get("SLURM_JOB_ID", "")[-4:]
            of_job = 15000 + int(job) if job.isdecimal() else 12910
            told = int(os.environ.get("MASTER_PORT") or of_job)
            self._main_port = find_free_network_port() if self.place.starts else told
        return self._main_port

    def world_size(self) -> int:
        return self.place.num

    def set_world_size(self, size: int) -> None:
        assert size == self.place.num, (size, self.place)

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        rank_zero_only.rank = self.place.rank  # type: ignore[attr-defined]

    def local_rank(self) -> int:
        return self.place.local

    def node_rank(self) -> int:
        return self.place.node

    def teardown(self) -> None:
        """WORLD_SIZE stays: the next stage of the run asks for its place again."""
