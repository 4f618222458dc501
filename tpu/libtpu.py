"""The compiler of TPUs, as a library on any machine: where it is, and how it must be started. Imports no jax."""

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

# It then looks for no TPU and no machine around it, and lets others use it at the same time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # it does not serve programs for machines that are not here
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of no consequence, but asked for
    "TPU_WORKER_HOSTNAMES": "localhost",
}
PATH = "TPU_LIBRARY_PATH"  # jax's own variable
LOGS = "TPU_LOG_DIR"
UNBUFFERED = "--logbuflevel=-1"


def prepare(init_args: str = "") -> None:
    """Call before jax is imported; UserError where there is no libtpu. `init_args` are XLA's flags, if none are set."""
    path = os.environ.get(PATH)
    if path and not Path(path).is_file():
        raise UserError(f"{PATH}={path} is no file; name a libtpu.so, or pip install 'jax[tpu]'")
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
    """What libtpu has written of itself in this process, to its file: what it compiles for, and each program's memory."""
    files = sorted(Path(os.environ.get(LOGS, "/tmp/tpu_logs")).glob(f"*.INFO.*.{os.getpid()}"))
    return "".join(file.read_text(errors="replace") for file in files)


def memory(done: Any) -> dict[str, int]:
    """XLA's memory analysis of a compiled program, in bytes of a device."""
    parts, analysis = ("argument", "output", "alias", "generated_code", "temp"), done.memory_analysis()
    return {name: getattr(analysis, f"{name}_size_in_bytes") for name in parts}


def peak(memory: Mapping[str, int], fragmentation: float | None) -> float:
    """Bytes of HBM: arguments, results that have places of their own, code and temporaries, as XLA's own check adds up.

    The analysis counts what the log calls fragmentation, some of it loops' own temporaries, twice (libtpu 0.0.42 and
    0.0.50, beside the sums in their logs); where no log tells how much it is, the result is too large by that. Its
    `peak_memory_in_bytes` counts what lies on the chip as well.
    """
    apart = memory["output"] - memory["alias"]
    return float(memory["argument"] + apart + memory["generated_code"] + memory["temp"]) - (fragmentation or 0.0)


def fragmentation(text: str) -> float | None:
    """Bytes of HBM, to three digits, of the last program that a log tells of; None where it tells of none.

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
    """Of the package that the library lies in."""
    path = os.environ.get(PATH)
    folders = {"path": [str(Path(path).parents[1])]} if path else {}
    found = (d.version for d in importlib.metadata.distributions(**folders) if d.metadata["Name"] == "libtpu")
    return next(found, "unknown")
