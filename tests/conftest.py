"""For every tier: the CPU, a compiler that takes no pains with programs that run once (six times as fast), and signals that
arrive: a shell's background job or `nohup` would hand them to the runs under test as ignored, and a run leaves them so."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jax").startswith("0.10."):  # later ones do not know it, and an unknown flag ends the process
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

gc.set_threshold(100_000, 20, 20)  # tracing makes many objects: by default a twelfth of the time is garbage collection

for number, usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


MAPPED = 30_000  # ranges of memory; Linux gives a process 65,530 (vm.max_map_count)


def pytest_runtest_teardown(item, nextitem):
    """After a file whose programs bring the process near the kernel's limit, lets go of all programs. Each takes three or four
    ranges, a worker compiles some 20,000 of them, and XLA ends the process where it gets no more."""
    maps = Path("/proc/self/maps")
    if (nextitem is None or nextitem.path != item.path) and maps.exists() and maps.read_bytes().count(b"\n") > MAPPED:
        import jax

        jax.clear_caches()
        gc.collect()


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="write the golden files anew instead of comparing with them")
