"""Starts the cases with simulated devices, each file in its own processes: the number of devices is fixed when jax starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import HANGS, free_port

HERE = Path(__file__).parent


def environment(devices: int) -> dict[str, str]:
    # Programs run for milliseconds, so compile time matters more than speed, even more than in tests/conftest.py.
    more = f"--xla_force_host_platform_device_count={devices} --xla_llvm_disable_expensive_passes=true"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {more}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": ""}


@pytest.mark.parametrize(
    "file,part",
    [
        ("cases.py", "0/1"),
        ("attention_cases.py", "0/1"),
        ("speech_cases.py", "0/1"),
        ("tree_cases.py", "0/1"),
        ("picture_cases.py", "0/1"),
        ("image_text_cases.py", "0/1"),
        ("families.py", "0/2"),
        ("families.py", "1/2"),
    ],
)
def test_eight_devices(file, part):
    words = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(HERE / file)]
    done = subprocess.run(words, env=environment(8) | {"PART": part}, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(processes, reference):
    assert digests(processes) == reference


@pytest.fixture(scope="module")
def reference():
    return digests(1)


def digests(processes: int) -> list[str]:
    """The digests of some global batches as seen by each of the processes, which must agree."""
    words = [sys.executable, str(HERE / "hosts.py"), str(free_port()), str(processes)]
    started = [
        subprocess.Popen(
            [*words, str(i)], env=environment(4 // processes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(processes)
    ]
    outs = [p.communicate(timeout=HANGS) for p in started]
    assert all(p.returncode == 0 for p in started), outs
    # Gloo also writes to standard output.
    seen = [[line for line in out.splitlines() if line.startswith("digest ")] for out, _ in outs]
    assert all(s == seen[0] and len(s) == 4 for s in seen)
    return seen[0]
