"""Makes `lm_eval --model lm` known to the harness's own command, which looks for no models of other packages.

`lm_harness.pth`, which is installed beside the package, calls `register` when the harness imports its list of models, and does
nothing in other programs. A program that imports `lm_eval` before the package was installed calls it itself.
"""

import importlib.util
import sys
from pathlib import Path

from lm import startup
from lm.errors import UserError


def require() -> None:
    """UserError if the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks of the harness need lm-eval: pip install -e '.[harness]'")


def register() -> None:
    """In the harness's own command it also chooses XLA's flags, since jax is not imported yet."""
    from lm_eval.api.registry import model_registry

    program = Path(sys.argv[0])
    if "lm_eval" in (program.name.replace("-", "_"), program.parent.name):
        startup.before_jax()
    if "lm" not in model_registry:
        model_registry.register("lm", target="lm.evaluation.harness:Harness")
