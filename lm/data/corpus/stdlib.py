"""The tfds builder `stdlib`: the source files of Python's standard library, those of the Python that runs this.

Left out are tests, other people's packages, and files that are tables rather than programs: the encodings and pydoc's topics.
"""

import functools
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import UserError

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


def files() -> list[tuple[str, Path]]:
    """Each file's name in the library, such as "json/decoder.py", and where it is, sorted by name. UserError if there are
    none."""
    root = Path(sysconfig.get_path("stdlib"))
    found = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    kept = sorted((name.as_posix(), path) for name, path in found if not LEFT_OUT.intersection(name.parts))
    if not kept:
        raise UserError(f"the corpus 'stdlib' is Python's library, and {root} has no source files: take another Python")
    return kept


def version() -> str:
    """That of this Python, which determines the text."""
    return ".".join(map(str, sys.version_info[:3]))


@functools.cache  # tfds refuses to register a second builder class of the same name
def _builder_class() -> Any:
    import tensorflow_datasets as tfds

    class Stdlib(tfds.core.GeneratorBasedBuilder):
        """Source files of Python's standard library."""

        VERSION = tfds.core.Version(version())

        def _info(self) -> Any:
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"id": text, "text": text})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(files())}

        def _generate_examples(self, found: list[tuple[str, Path]]) -> Iterator[tuple[int, dict[str, str]]]:
            for index, (name, path) in enumerate(found):
                yield index, {"id": name, "text": path.read_text(encoding="utf-8", errors="replace")}

    return Stdlib


def builder(data_dir: str) -> Any:
    """A tfds builder with one split, `train`, of records {id: bytes, text: bytes}, one per file, sorted by name."""
    return _builder_class()(data_dir=data_dir, file_format="array_record")
