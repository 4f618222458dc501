"""What is set before jax is imported, in a process of its own, since malloc and the environment are of the whole process."""

import json
import os
import platform
import subprocess
import sys

import pytest

HELD = """
import ctypes, json, resource, sys
from lm import startup
startup.ENOUGH_MEMORY = int(sys.argv[1])
startup.before_jax()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(ctypes.c_size_t(1 << 26)) for _ in range(2)]  # the second keeps the first from the end of the heap
ctypes.memset(ctypes.c_void_p(blocks[0]), 1, 1 << 26)
libc.free(blocks[0])
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before = held()
startup.release_pages()
print(json.dumps([before, held()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.parametrize(("enough", "kept"), [(0, True), (1 << 60, False)])
def test_freed_memory_is_kept_for_the_next_step_until_it_is_released(enough, kept):
    """64 MiB, freed: kept where there is memory enough, until they are released; where there is not, malloc gives them back."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HELD, str(enough)]
    ran = subprocess.run(command, env=outside | {"LM_CPU_TUNING": "1"}, capture_output=True, text=True, check=True)
    before, after = json.loads(ran.stdout)
    assert (before > 1 << 26) == kept and after < 1 << 26
