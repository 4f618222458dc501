"""What must be set around the import of jax: flags that make a CPU fast, the compilation cache.

Nothing here overrides what the user has set in the environment.
"""

import logging
import os
from pathlib import Path


def before_jax() -> None:
    """Call first in every `__main__`."""


def after_jax() -> None:
    """The persistent compilation cache: a step compiles once per machine and version, not once a start."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/lm/compiled").expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Orbax logs the traceback of an error that it raises as well, and that we turn into one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
