"""Stubs for packages that MaxText imports but compiling does not use."""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

# Packages for data pipelines, tokenizers, checkpoint conversion, clouds and profilers.
UNUSED = (
    *("tensorflow", "transformers", "huggingface_hub", "tokenizers", "tiktoken", "PIL", "librosa"),
    *("google.cloud", "tensorboardX", "xprof", "mlperf_logging", "fastapi", "uvicorn"),
)


class _Empty:
    """Has every attribute; each is created on first access."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # A class that accepts any arguments, can be subclassed, and can be used in an `except`.
        setattr(self, name, _Kind(name, (Exception,), {"__init__": lambda self, *args, **kwargs: None}))
        return getattr(self, name)


class _Kind(_Empty, type):
    pass


class _Module(_Empty, types.ModuleType):
    __version__ = "5.17.0"  # MaxText requires transformers 5.17 or later


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if any(fullname == name or fullname.startswith(name + ".") for name in UNUSED):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Installs the stubs; call it before importing MaxText. Real packages are hidden too, so that all machines behave the
    same."""
    sys.meta_path.insert(0, _Finder())
