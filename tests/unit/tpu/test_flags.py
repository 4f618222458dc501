"""libtpu knows our XLA flags, and none of them is one that breaks reproducibility."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.processes import HANGS
from tpu import flags, topologies
from tpu.__main__ import main

LIBTPU = os.environ.get("LM_LIBTPU")
needs_libtpu = pytest.mark.skipif(
    not LIBTPU and not importlib.util.find_spec("libtpu"), reason="needs libtpu: pip install libtpu, or LM_LIBTPU=libtpu.so"
)


def _starts(init_args: str) -> subprocess.CompletedProcess:
    """libtpu reads its flags when a topology is requested, which needs no TPU."""
    program = (
        "from jax.experimental import topologies\n"
        "print(topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4').devices[0].device_kind)"
    )
    env = dict(os.environ, JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    env |= {"LIBTPU_INIT_ARGS": init_args} | ({"TPU_LIBRARY_PATH": LIBTPU} if LIBTPU else {})
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=HANGS)


@needs_libtpu
def test_libtpu_knows_every_flag_and_finds_a_misspelt_one():
    done = _starts(" ".join(map(str, flags.FLAGS)))
    assert done.returncode == 0 and "TPU v5" in done.stdout, done.stderr
    done = _starts(str(flags.FLAGS[0]).replace("vmem", "wmem"))
    assert done.returncode != 0 and "Unknown command line flag" in done.stderr


def test_flags_of_a_generation(capsys):
    names = {flag.name for flag in flags.FLAGS}
    assert not names & set(flags.AVOID) and len(names) == len(flags.FLAGS)
    assert {g for flag in flags.FLAGS for g in flag.generations} <= set(topologies.CHIPS)
    assert "scoped_vmem" in flags.init_args("v6e") and "scoped_vmem" not in flags.init_args("v5e")
    assert "data_parallel" in flags.init_args("v5e", 2) and "data_parallel" not in flags.init_args("v5e")
    assert flags.init_args("v3") == ""
    assert main(["flags", "v6e"]) == 0
    said = capsys.readouterr()
    assert said.out == flags.init_args("v6e") + "\n" and "not --xla_tpu_spmd" in said.err
