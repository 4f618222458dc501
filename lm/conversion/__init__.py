"""Conversion to and from Hugging Face checkpoints, one tensor at a time.

    imported = read(Path("gpt2"))            # imported.model: config.Model; imported.params: numpy arrays, our names
    write(model, params, Path("out"))        # safetensors files and config.json

`read` takes every tensor of the file and fills every parameter of ours, or raises and lists what does not match; so does a
config.json attribute that is not implemented. Dropout rates are not converted: they belong to a training run.
"""

from lm.conversion.families import FAMILIES, check_family
from lm.conversion.reader import Imported, read
from lm.conversion.writer import describe, write

__all__ = ["FAMILIES", "Imported", "check_family", "describe", "read", "write"]
