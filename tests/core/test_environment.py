import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ima.core.environment import UnbreakableText, survive_closed_pipes

BLOCKS = """
import ctypes, resource
from ima.core.environment import prepare
prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def batch():
    blocks = [libc.malloc(size * 2**20) for size in (20, 30, 10, 30)]
    for block, size in zip(blocks, (20, 30, 10, 30)):
        ctypes.memset(block, 1, size * 2**20)
    for block in blocks:
        libc.free(block)
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_page_faults(**variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", BLOCKS], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_memory_that_a_batch_frees_serves_the_next_unless_the_user_says_otherwise() -> None:
    pages_per_batch = 90 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert num_page_faults() < pages_per_batch // 20
    assert num_page_faults(MALLOC_TRIM_THRESHOLD_="131072") > pages_per_batch // 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="torch has another OpenMP")
@pytest.mark.parametrize(("policy", "wanted"), [({}, "10000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")])
def test_threads_of_torch_wait_actively_for_a_short_while_only(policy: dict[str, str], wanted: str) -> None:
    """Beside other programs an active wait of OpenMP's own length takes the cores that the work would need: a
    reservoir of a tiny model took minutes. What a person sets wins."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", "from ima.core.environment import prepare; prepare(); import torch"],
        env=kept | policy | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{wanted}'" in done.stderr


def test_what_is_said_to_nobody_is_lost_and_breaks_nothing() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        text = UnbreakableText(stream)
        print("heard", file=text, flush=True)
        assert os.read(reader, 100) == b"heard\n"
        os.close(reader)
        for _ in range(3):
            print("x" * 100_000, file=text)
            text.flush()
        print("held by the stream until its end", file=text)


def test_only_pipes_of_our_own_are_made_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe, open(tmp_path / "file", "w") as file, os.fdopen(reader):
        for own, there, changed in ((pipe, pipe, True), (file, file, False), (file, pipe, False)):
            monkeypatch.setattr(sys, "__stdout__", own)
            monkeypatch.setattr(sys, "stdout", there)
            survive_closed_pipes()
            found, sys.stdout = sys.stdout, there
            assert isinstance(found, UnbreakableText) is changed
