"""Examples of TFDS as the JSON values that records are parsed from: nested features, read without TensorFlow.

Sequence({"role": Text(), "content": Text()})    stored as {"role": [b"user", ...], "content": [b"Hello", ...]}
                                                 read as   [{"role": "user", "content": "Hello"}, ...]
"""

from collections.abc import Mapping
from typing import Any

from lm import config
from lm.data import records
from lm.data.corpus.documents import SKIP, CorruptRecord, content, decode
from lm.errors import UserError, nearest


def check_features(source: config.Source, features: Mapping[str, Any]) -> None:
    """UserError if the builder's features are no records of the source's format, or lack its field."""
    if source.format == "text":
        if source.field not in features:
            raise UserError(f"tfds {source.path!r} has no field {source.field!r}{nearest(source.field, features)}")
        return
    known = records.FIELDS[source.format]
    if not features.keys() & set(known):
        raise UserError(
            f"tfds {source.path!r} has no field of a {source.format} record ({', '.join(known)}), and its fields are "
            f"{', '.join(features)}: set another format of the source"
        )


def text_of(example: Mapping[str, Any], features: Mapping[str, Any], source: config.Source, where: str) -> str:
    """The text of an example; where the source's format is not text, its record as a line of JSON. CorruptRecord if
    there is none."""
    if source.format != "text":
        names = [name for name in features if name in records.FIELDS[source.format]]
        return content({name: plain(example[name], features[name], where) for name in names}, source, where)
    text = example[source.field]
    if text is None:  # of a truncated file
        raise CorruptRecord(f"{where}: nothing in field {source.field!r}; {SKIP}")
    if not isinstance(text, (bytes, str)):
        raise UserError(f"{where}: field {source.field!r} is not text; set field= of the source")
    return plain(text, features[source.field], where)


def plain(value: Any, feature: Any, where: str) -> Any:
    """The JSON value of one feature of an example. A class is its name, and what is missing is None.
    CorruptRecord for bytes that are no UTF-8."""
    import tensorflow_datasets as tfds

    if value is None:
        return None
    if isinstance(value, bytes):
        return decode(value, "utf-8", where)  # tfds stores text as UTF-8
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else None
    if isinstance(feature, tfds.features.Sequence | tfds.features.Dataset):
        inner = feature.feature
        if isinstance(value, Mapping):
            if len({len(column) for column in value.values()}) > 1:
                raise CorruptRecord(f"{where}: lists of different lengths in what is a list of objects")
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [plain(one, inner, where) for one in value]
    if isinstance(value, Mapping):
        return {name: plain(one, feature[name], where) for name, one in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
