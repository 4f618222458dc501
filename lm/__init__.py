"""Language models on one transformer trunk: masked and autoregressive, compared fairly."""

import sys

from lm import moved

if sys.argv[:1] == ["-m"]:  # `python -m lm...`, whose module is not found yet: a signal may come before all is imported
    from lm import process

    process.begin()
    moved.check_command(sys.orig_argv)
sys.meta_path.append(moved.Finder)

from importlib import metadata  # noqa: E402  after `process.begin`, since it takes a while

try:
    __version__ = metadata.version("lm")  # setuptools-scm made it of the git tags when the package was built or installed
except metadata.PackageNotFoundError:
    __version__ = "0.0"  # a copy of the source that is not installed
