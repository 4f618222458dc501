"""What must be set around the import of jax: flags and an allocator that make a CPU fast, the compilation cache.

Nothing here overrides what the user has set in the environment, and nothing is set where an accelerator may be found.
`LM_CPU_TUNING=0` leaves everything as it is. Ratios measured on two cores, see experiments/speed/README.md.
"""

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import platform
from pathlib import Path

# From jaxlib 0.12 on these hand products and reductions to libraries: 2.2x in bfloat16, 1.1x in float32. Earlier
# versions know the names, but crash or slow down with them.
FLAGS = (
    "--xla_cpu_use_onednn=true",
    "--xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_DOT",
    "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE",
    "--xla_cpu_prefer_vector_width=512",
)
ROOMY = 12 * 2**30  # bytes of memory from which on keeping freed pages is safe: it takes up to four times as many


def before_jax() -> None:
    """Call first in every `__main__` that computes."""
    if os.environ.get("LM_CPU_TUNING") == "0" or not _cpu_alone():
        return
    version = tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2])
    if version >= (0, 12) and platform.machine() == "x86_64":
        given = os.environ.get("XLA_FLAGS", "")
        more = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *more]).strip()
    _keep_pages()


def decoding_options(*, single: bool) -> dict[str, bool | str] | None:
    """`compiler_options` for `jax.jit` of a program that decodes a single text, or several together.

    Training multiplies matrices, decoding a single text multiplies a vector by matrices. Where FLAGS are set, oneDNN does
    both, and takes four times as long for the latter as XLA's own code in float32, 1.5 times in bfloat16. From two texts on
    it is the faster one, in float32 by a factor of two.
    """
    return {"xla_cpu_use_onednn": False} if single and FLAGS[0] in os.environ.get("XLA_FLAGS", "") else None


def _cpu_alone() -> bool:
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return not any(importlib.util.find_spec(name) for name in plugins)


def _keep_pages() -> None:
    """Freed memory stays with the process instead of being unmapped and faulted in anew at each step: 1.2x."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if platform.libc_ver()[0] != "glibc" or memory < ROOMY or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((-4, 0), (-1, -1), (-8, 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_ARENA_MAX
        libc.mallopt(option, value)


def after_jax() -> None:
    """The persistent compilation cache: a step compiles once per machine and version, not once a start."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/lm/compiled").expanduser()))
        except RuntimeError:  # no home directory: a step is compiled anew
            pass
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Orbax and its tasks log the traceback of an error that Orbax raises as well, and that we turn into one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
