"""libtpu, the TPU compiler, on a machine without TPUs: setting it up, and reading its logs. Imports no jax."""

import atexit
import importlib.metadata
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import UserError

# With these, libtpu does not look for a TPU or its host's metadata, and several processes can use it at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # it cannot cache programs for other machines
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # required, without effect on what is compiled
    "TPU_WORKER_HOSTNAMES": "localhost",
}
PATH = "TPU_LIBRARY_PATH"  # jax's own variable
LOGS = "TPU_LOG_DIR"
UNBUFFERED = "--logbuflevel=-1"


def prepare(init_args: str = "") -> None:
    """Sets the environment for libtpu; call it before jax is imported. `init_args`: XLA's flags, unless LIBTPU_INIT_ARGS is
    set. Raises UserError if there is no libtpu."""
    path = os.environ.get(PATH)
    if path and not Path(path).is_file():
        raise UserError(f"{PATH}={path} is not a file; name a libtpu.so, or pip install 'jax[tpu]'")
    if not path and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"libtpu, which compiles for TPUs, is not installed: pip install 'jax[tpu]', or name a libtpu.so in {PATH}"
        )
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', init_args)} {UNBUFFERED}".strip()
    if LOGS not in os.environ:
        os.environ[LOGS] = tempfile.mkdtemp(prefix="libtpu-")
        atexit.register(shutil.rmtree, os.environ[LOGS], ignore_errors=True)


def log() -> str:
    """libtpu's log of this process, which has the memory of each compiled program."""
    files = sorted(Path(os.environ.get(LOGS, "/tmp/tpu_logs")).glob(f"*.INFO.*.{os.getpid()}"))
    return "".join(file.read_text(errors="replace") for file in files)


def memory(done: Any) -> dict[str, int]:
    """XLA's memory analysis of a compiled program: kind -> bytes per device."""
    parts, analysis = ("argument", "output", "alias", "generated_code", "temp"), done.memory_analysis()
    return {name: getattr(analysis, f"{name}_size_in_bytes") for name in parts}


def peak(memory: Mapping[str, int], fragmentation: float | None) -> float:
    """Peak bytes of HBM per device: arguments, results that do not alias arguments, code and temporaries, as XLA's own check.

    The analysis counts twice what the log calls fragmentation, part of which are temporaries of loops (libtpu 0.0.42 and
    0.0.50, compared with the sums in their logs). If `fragmentation` is None, the result is too large by that. The analysis's
    own `peak_memory_in_bytes` also counts on-chip memory.
    """
    unaliased = memory["output"] - memory["alias"]
    return float(memory["argument"] + unaliased + memory["generated_code"] + memory["temp"]) - (fragmentation or 0.0)


def fragmentation(text: str) -> float | None:
    """Bytes of fragmentation of the last program in a log, to three digits; None if the log has no program.

    Program hbm requirement 4.31G:
        global            2.63M
        HLO temp          4.18G (100.0% utilization: Unpadded (2.44G) Padded (2.44G), 41.5% fragmentation (1.74G))
    """
    programs = re.findall(r"Program hbm requirement [^\n]*\n((?: +[^\n]*\n)*)", text)
    if not programs:
        return None
    found = re.search(r"HLO temp .*fragmentation \(([\d.]+)([BKMGT])\)", programs[-1])
    return float(found[1]) * 1024.0 ** "BKMGT".index(found[2]) if found else 0.0


def version() -> str:
    """The version of the installed libtpu package, or of the one that holds TPU_LIBRARY_PATH; "unknown" if there is none."""
    path = os.environ.get(PATH)
    folders = {"path": [str(Path(path).parents[1])]} if path else {}
    found = (d.version for d in importlib.metadata.distributions(**folders) if d.metadata["Name"] == "libtpu")
    return next(found, "unknown")
