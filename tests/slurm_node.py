"""A real Slurm of one node on loopback, with files and ports of its own: munged, slurmctld and slurmd as children.

`python tests/slurm_node.py` installs Debian's slurm-wlm and munge with apt-get, as root, or says in one line why not.
Nothing of a Slurm that this machine may have is read or changed: every command gets SLURM_CONF.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PACKAGES = ("slurm-wlm", "munge")
SECONDS = 60.0  # for the node to become idle
SBIN = f"/usr/sbin{os.pathsep}/usr/local/sbin"

CONF = """ClusterName=ima
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here; empty where there can be one."""
    lacking = [name for name in DAEMONS if find(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: {' and '.join(PACKAGES)})"
    return "" if os.geteuid() == 0 else "only root can start a Slurm whose jobs run"


def find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + SBIN)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class SlurmNode:
    """The daemons, until `close`. environment: what commands need to find them."""

    def __init__(self, folder: Path, cores: int = 2) -> None:
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)  # munged trusts no place that others can write to
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        conf = folder / "slurm.conf"
        ports = {"controller": free_port(), "node": free_port()}
        host = socket.gethostname().split(".")[0]
        conf.write_text(CONF.format(host=host, folder=folder, cores=cores, **ports))
        self.environment = os.environ | {"SLURM_CONF": str(conf)}
        munge = [f"--{what}={folder}/munge.{what.partition('-')[0]}" for what in ("socket", "pid-file", "log-file")]
        munge += [f"--key-file={key}", f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
        self.daemons: list[subprocess.Popen[bytes]] = []
        try:
            self.start("munged", *munge)
            self.wait_for(lambda: (folder / "munge.socket").exists())
            self.start("slurmctld", "-D")
            self.start("slurmd", "-D", "-N", host)
            self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%t") == "idle")
        except BaseException:
            self.close()
            raise

    def start(self, name: str, *options: str) -> None:
        command = [str(find(name)), *options]
        with open(self.folder / f"{name}.out", "wb") as out:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def wait_for(self, condition: object) -> None:
        assert callable(condition)
        until = time.monotonic() + SECONDS
        while not condition():
            ended = [one for one in self.daemons if one.poll() is not None]
            if ended or time.monotonic() > until:
                raise RuntimeError(f"no Slurm here: {self.told()}")
            time.sleep(0.2)

    def told(self) -> str:
        """The last lines of every log."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "; ".join(f"{path.name}: {path.read_text(errors='replace')[-600:]}" for path in sorted(logs))

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.ask("scancel", "--user=root", "--signal=KILL", "--full")
        for one in reversed(self.daemons):
            one.terminate()
        for one in self.daemons:
            try:
                one.wait(timeout=20)
            except subprocess.TimeoutExpired:
                one.kill()


def install() -> str:
    """Why there is none after trying to install it; empty where there is one."""
    if not why_not():
        return ""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return f"{why_not()}; only root on Debian or its kin can install and start it"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["apt-get failed"])[-1]
    return why_not()


if __name__ == "__main__":
    reason = install()
    if reason and os.environ.get("IMA_REQUIRE_ALL") == "1":
        sys.exit(f"no Slurm for its tests: {reason}")
    if reason:
        print(f"THE TESTS ON SLURM ARE SKIPPED: {reason}", file=sys.stderr)
