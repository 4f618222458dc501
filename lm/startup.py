"""Settings before and after the import of jax: XLA flags and malloc options for speed on a CPU, and the compilation cache.

Nothing overrides the user's environment variables, and the CPU settings are skipped where an accelerator may be present or
`LM_CPU_TUNING=0` is set. Ratios measured on two cores, see experiments/speed/README.md.
"""

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import platform
import warnings
from typing import Any

from lm import paths

# From jaxlib 0.12 on, these run matmuls and reductions in libraries: 2.2x as fast in bfloat16, 1.1x in float32. Earlier
# versions accept the flags, but crash or become slower. oneDNN gets products alone. With LIBRARY_FUSION_TYPE_DOT it also gets
# what is multiplied with a product; where XLA (jaxlib 0.12.0) lets the result take that operand's memory, a product that is
# summed in parts overwrites it before it is read: gradients of float32 weights were up to 10,000 times too large
# (tests/unit/models/test_matmul.py).
FLAGS = (
    "--xla_cpu_use_onednn=true",
    "--xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE",
    "--xla_cpu_prefer_vector_width=512",
)
DECODING = {
    "xla_cpu_use_onednn": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_prefer_vector_width": 256,
}
_keeps_pages = False
ENOUGH_MEMORY = 12 * 2**30  # bytes. Below this, freed pages are not kept: that can quadruple the memory in use


def before_jax() -> None:
    """Sets XLA_FLAGS and malloc options. Must be called before jax is imported, in every program that computes."""
    if os.environ.get("LM_CPU_TUNING") == "0" or not cpu_only():
        return
    version = tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2])
    if version >= (0, 12) and platform.machine() == "x86_64":
        current = os.environ.get("XLA_FLAGS", "")
        added = [flag for flag in FLAGS if flag.partition("=")[0] not in current]
        os.environ["XLA_FLAGS"] = " ".join([current, *added]).strip()
    _keep_pages()


def decoding_options() -> dict[str, Any] | None:
    """Returns `compiler_options` for `jax.jit` of a program that writes token by token: close to what XLA does without FLAGS.

    Such a program multiplies matrices by one or a few vectors, for which FLAGS are wrong: it is 1.7 times as fast without
    them for one text, and 1.6 times for sixteen (experiments/speed/README.md).
    """
    return DECODING if FLAGS[0] in os.environ.get("XLA_FLAGS", "") else None


def cpu_only() -> bool:
    """Whether jax will run on the CPU: JAX_PLATFORMS says so, or no plugin of an accelerator is installed."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return not any(importlib.util.find_spec(name) for name in plugins)


def _keep_pages() -> None:
    """Makes glibc keep freed memory instead of unmapping it and faulting it in again in each step: steps are 1.2x as fast."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if platform.libc_ver()[0] != "glibc" or memory < ENOUGH_MEMORY or any(name.startswith("MALLOC_") for name in os.environ):
        return
    global _keeps_pages
    _keeps_pages = True
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((-4, 0), (-1, -1), (-8, 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_ARENA_MAX
        libc.mallopt(option, value)


def release_pages() -> None:
    """Gives freed memory back to the system, where `before_jax` makes malloc keep it. The next step faults in what it uses.

    The heap has holes that nothing fits: glibc before 2.38 rounds an aligned block, such as a step's working memory, up to a
    little more than it leaves when it is freed. So the process comes to hold two to four times what a step needs.
    """
    if _keeps_pages:
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def after_jax() -> None:
    """Enables the persistent compilation cache, so that a step compiles once per machine and version, and silences loggers."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            jax.config.update("jax_compilation_cache_dir", str(paths.expanded("~/.cache/lm/compiled")))
        except RuntimeError:  # without a home directory each start compiles again
            pass
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Programs with products of oneDNN, which newer jax makes on CPUs, cannot be kept; nobody can do anything about it.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry .* ToProto is not implemented")
    # Orbax logs the traceback of errors that it also raises, and that commands report in one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
