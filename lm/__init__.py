"""Language models on one transformer trunk: masked and autoregressive, compared fairly."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # `python -m lm...`, whose module is being looked for: Ctrl-C may come before all is imported
    from lm import cli

    cli.begin()
