import os
import platform
import subprocess
import sys

import pytest

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
