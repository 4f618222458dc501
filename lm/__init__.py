"""Language models on one transformer trunk: masked and autoregressive, compared fairly."""

import sys

from lm import moved

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # `python -m lm...`, whose module is not found yet: a signal may come before all is imported
    from lm import process

    process.begin()
    moved.check_command(sys.orig_argv)
sys.meta_path.append(moved.Finder)
